"""Parameters, arithmetic and bytes by hand; against the modules themselves: tests/test_sizes_torch.py."""

import pytest

from trainer.config import TrainConfig
from trainer.encoder_shape import EncoderShape, encoder_shape
from trainer.sizes import (
    checkpoint_bytes,
    encoder_bytes,
    flops_per_token,
    head_rows,
    num_trained,
    trained_parameters,
)


def config_of(profile: str, **over: object) -> TrainConfig:
    base = {"profile": profile, "steps": 1, "data": {"source": "python-docs"},
            "checkpoint": {"every_steps": 1}}
    return TrainConfig.model_validate({**base, **over})


def shape_of(config: TrainConfig) -> EncoderShape:
    found = encoder_shape(config.token_encoder.name)
    assert found is not None
    return found


def test_parameters_at_paper_scale_match_the_papers_sizes():
    # Sizes of the paper's parts, by relay: ~50 M, ~50 M, ~66 M, ~132 M.
    config = config_of("paper-gpt2")
    parts = trained_parameters(config, shape_of(config))
    assert parts["latent_encoder"] == pytest.approx(50e6, rel=0.05)
    assert parts["latent_decoder"] == pytest.approx(50e6, rel=0.05)
    assert parts["token_decoder"] + parts["vocabulary_head"] == pytest.approx(67e6, rel=0.02)
    assert parts["denoiser"] == pytest.approx(132.3e6, rel=0.005)
    assert num_trained(config, shape_of(config)) == sum(parts.values())


def test_the_head_of_a_text_not_yet_read_is_guessed():
    config = config_of("smoke")
    assert head_rows(config, shape_of(config)) == 10_000
    assert head_rows(config, shape_of(config), 123) == 123
    assert trained_parameters(config, shape_of(config), 123)["vocabulary_head"] == 123 * 193
    assert head_rows(config_of("paper-gpt2"), None) == 10_000


def test_arithmetic_at_paper_scale_is_the_published_rule_of_thumb():
    # About 2.1 GFLOP a token by 2 N_encoder + 6 N_trained + N_denoiser, with the head on every position;
    # less the modulation of the denoiser, 6 d^2 in each of 12 blocks, which runs once a sequence.
    config = config_of("paper-gpt2", token_loss_fraction=1.0, data={"source": "x", "sequence_length": 128})
    flops = flops_per_token(config, shape_of(config))
    assert flops.total == pytest.approx(2.1e9 - 7 * 72 * 768**2, rel=0.03)
    assert flops.recomputed == 0
    assert flops.self_conditioning == pytest.approx(0.5 * 2 * 90e6, rel=0.2)  # AdaLN runs once a sequence


def test_one_linear_token_decoder_layer_by_hand():
    # All else as small as it gets: what one layer more adds is 3 x (2 x 16 d^2 + 4 L d) a token.
    one, two = (flops_per_token(config_of("paper-gpt2", model={"token_decoder_layers": layers}), None)
                for layers in (1, 2))
    assert two.total - one.total == pytest.approx(3 * (32 * 768**2 + 4 * 1024 * 768))


def test_an_unknown_encoder_counts_nothing():
    config = config_of("paper-gpt2")
    assert flops_per_token(config, None).encoder == 0
    known = flops_per_token(config, shape_of(config))
    assert known.encoder == shape_of(config).forward_flops_per_token(-3, 1024)


def test_a_prefix_is_one_more_token_to_encode():
    config = config_of("smoke")
    each = shape_of(config).forward_flops_per_token(-3, 65)
    assert flops_per_token(config, shape_of(config)).encoder == pytest.approx(each * 65 / 64)


def test_checkpointing_costs_about_a_third_of_the_blocks_forward_and_backward():
    without, with_it = (flops_per_token(config_of("paper-gpt2", activation_checkpointing=on), None)
                        for on in (False, True))
    assert 0.2 < with_it.recomputed / without.trained < 1 / 3
    assert with_it.trained == without.trained


def test_fewer_latents_than_tokens_cost_less():
    full, half = (flops_per_token(config_of("paper-gpt2", model={"num_latents": number}), None)
                  for number in (1024, 512))
    assert half.total < full.total


@pytest.mark.parametrize(("weights", "gib"), [("bf16", 60.5), ("fp8", 30.8), ("nf4", 16.8)])
def test_frozen_weights_shrink_with_their_format(weights, gib):
    config = config_of("qwen3.6-35b-a3b", token_encoder={"weights": weights})
    assert encoder_bytes(config, shape_of(config)) / 2**30 == pytest.approx(gib, abs=0.1)


def test_bytes_of_one_format_by_hand():
    # GPT-2: 12 d^2 weights in matrices, 13 d others a block; rows as stored: d + d + d + 4 d.
    block, others, rows = 12 * 768**2, 13 * 768, 7 * 768
    outside = 2 * (50_257 + 1024) * 768
    by_format = {weights: encoder_bytes(config_of("paper-gpt2", token_encoder={"weights": weights}),
                                        encoder_shape("openai-community/gpt2")) - outside
                 for weights in ("bf16", "fp8", "nf4")}
    assert by_format["bf16"] == 10 * 2 * (block + others)
    assert by_format["fp8"] == 10 * (block + 4 * rows + 2 * others)
    assert by_format["nf4"] == 10 * (block // 2 + block // 64 * 2 + 2 * others)


def test_a_checkpoint_has_eleven_bytes_a_parameter_where_saves_meet_roundings():
    config = config_of("paper-gpt2", checkpoint={"every_minutes": 5})
    number = num_trained(config, shape_of(config))
    # Master weights in float32, variance in 24 bits, momentum and the average's distance in bfloat16.
    assert checkpoint_bytes(config, shape_of(config), 10) == (4 + 3 + 2 + 2) * number
    # Between two roundings all four are in float32.
    assert checkpoint_bytes(config, shape_of(config), 1) == 4 * 4 * number
    between = config_of("paper-gpt2", checkpoint={"every_steps": 7})
    assert checkpoint_bytes(between, shape_of(between), 10) == 4 * 4 * number
