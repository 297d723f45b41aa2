from datetime import timedelta
from decimal import Decimal

import pytest
from launch_examples import example_recipe

from launcher.cost import (
    EncoderSize,
    Range,
    flops_per_token,
    hours_range,
    price_for,
    total,
    trained_parameters,
    usd_range,
)
from trainer.config import ModelConfig


def test_parameters_at_paper_scale_match_the_papers_sizes():
    # Sizes of the paper's parts, read as: ~50 M, ~50 M, ~66 M, ~132 M; 1,024 positions, GPT-2's vocabulary.
    parts = trained_parameters(ModelConfig(), num_latents=1024, vocabulary=50_257)
    assert parts["latent_encoder"] == pytest.approx(49.5e6, rel=0.01)
    assert parts["latent_decoder"] == pytest.approx(49.5e6, rel=0.01)
    assert parts["token_decoder"] + parts["vocabulary_head"] == pytest.approx(66.9e6, rel=0.01)
    assert parts["denoiser"] == pytest.approx(132.3e6, rel=0.01)


@pytest.fixture
def unknown(tmp_path) -> str:
    """An override that names an encoder whose size nobody knows."""
    (tmp_path / "config.json").write_text("{}")
    return f"train.token_encoder.name={tmp_path}"


def test_flops_follow_the_rule_by_hand(unknown):
    # d = d_z = 8, one layer each, 4 latents for 4 tokens, token decoder 8 wide, encoder not counted:
    # Perceivers 14*64 each, token decoder 16*64, head 10,000*8, DiT 18*64 + 2*64 + 2*64 + 4*8 + 2*64 + 64.
    recipe = example_recipe(
        "train.model={latent_width: 8, width: 8, num_heads: 1, encoder_layers: 1, decoder_layers: 1, "
        "denoiser_layers: 1, token_decoder_layers: 1, token_decoder_width: 8, token_decoder_heads: 1}",
        "train.data.sequence_length=4", unknown, "train.token_loss_fraction=0.5")
    trained = 896 + 896 + 1024 + 80_000 * 0.5 + 1632
    assert flops_per_token(recipe.train) == pytest.approx(6 * trained + 0.5 * 2 * 1632)


def test_a_known_encoder_counts_up_to_the_layer_that_is_read(unknown):
    # 10.7 M parameters in 6 layers; hidden_states[-3] of 7 entries is the output of layer 4.
    known = flops_per_token(example_recipe().train)
    uncounted = flops_per_token(example_recipe(unknown).train)
    assert known - uncounted == pytest.approx(2 * 10.7e6 * 4 / 6)


@pytest.mark.parametrize(("layer", "share"), [(-1, 1.0), (6, 1.0), (0, 0.0), (-7, 0.0), (3, 0.5)])
def test_layers_count_from_either_end(layer, share):
    assert EncoderSize(600.0, 6, 8, 10).active_parameters(layer) == 600.0 * share


def test_fewer_latents_than_tokens_cost_less():
    full = flops_per_token(example_recipe().train)
    assert flops_per_token(example_recipe("train.model.num_latents=16").train) < full


def test_ninety_minutes_at_two_dollars_are_three():
    assert price_for(timedelta(minutes=90), Decimal("2")) == Decimal("3")


def test_ranges_add_end_by_end():
    one = Range(low=Decimal(1), mid=Decimal(2), high=Decimal(4))
    assert total([one, one]) == Range(low=Decimal(2), mid=Decimal(4), high=Decimal(8))
    assert total([]) == Range(low=Decimal(0), mid=Decimal(0), high=Decimal(0))


def test_hours_come_from_tokens_and_speed_and_dollars_from_hours():
    hours = hours_range(7200, 1.0, 0.5, 2.0)
    assert hours == Range(low=Decimal(1), mid=Decimal(2), high=Decimal(4))
    assert usd_range(hours, Decimal("0.5")) == Range(low=Decimal("0.5"), mid=Decimal(1), high=Decimal(2))
