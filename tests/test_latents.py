"""Perceivers and token decoder."""

import math

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import tiny_config  # noqa: E402

from trainer.attention import SelfAttention, rotation_of, sinusoid  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.latents import LatentDecoder, LatentEncoder, TokenDecoder, attention_shape  # noqa: E402

_KINDS = [{"perceiver_block": "joint"}, {"perceiver_block": "split"}, {"qk_norm": False}]


def _config(**model: object) -> TrainConfig:
    return tiny_config({"latent_width": 12, "width": 32, "encoder_layers": 2, "decoder_layers": 2,
                        "token_decoder_width": 32} | model, data={"sequence_length": 16})


def _hidden(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("num_latents", [16, 8, 20])
def test_latents_have_unit_rms_whatever_their_number(num_latents: int, kind: dict) -> None:
    z = LatentEncoder(_config(num_latents=num_latents, **kind), 24)(_hidden() * 7)
    assert z.shape == (3, num_latents, 12)
    assert torch.allclose(z.square().mean(-1), torch.ones(3, num_latents), atol=1e-3)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("num_latents", [16, 8])
def test_decoder_gives_hidden_states_whatever_the_scale_of_the_latents(num_latents: int, kind: dict) -> None:
    decoder = LatentDecoder(_config(num_latents=num_latents, **kind), 24)
    z = torch.randn(3, num_latents, 12, generator=torch.Generator().manual_seed(2))
    assert decoder(z).shape == (3, 16, 24)
    assert torch.allclose(decoder(z), decoder(10 * z), atol=1e-3)


@pytest.mark.parametrize("kind", _KINDS)
def test_untrained_latent_listens_most_to_the_token_at_its_own_position(kind: dict) -> None:
    torch.manual_seed(0)
    config = tiny_config({"latent_width": 64, "width": 128, "num_heads": 4, "encoder_layers": 2} | kind,
                         data={"sequence_length": 64})
    encoder, hidden = LatentEncoder(config, 96), torch.randn(4, 64, 96)
    for position in range(0, 64, 9):
        changed = hidden.clone()
        changed[:, position] *= -1
        moved = (encoder(changed) - encoder(hidden)).square().sum(-1).mean(0)
        assert moved.argmax() == position


def test_untrained_latents_say_more_about_the_text_than_about_their_position() -> None:
    torch.manual_seed(0)
    assert LatentEncoder(_config(), 24)(_hidden(64)).var(0).mean() > 0.3


def test_split_perceiver_projects_only_between_different_widths() -> None:
    def linear_names(hidden_size: int, latent_width: int) -> set[str]:
        perceiver = LatentEncoder(_config(perceiver_block="split", latent_width=latent_width),
                                  hidden_size).perceiver
        return {name for name in ("input", "output") if isinstance(getattr(perceiver, name), torch.nn.Linear)}

    assert linear_names(32, 32) == set()
    assert linear_names(24, 32) == {"input"}
    assert linear_names(32, 12) == {"output"}


def test_longest_wave_spans_the_sequence() -> None:
    waves = sinusoid(64, 8)
    angle = torch.atan2(waves[1, 3], waves[1, 7]).item()
    assert angle == pytest.approx(2 * math.pi / 64)
    assert torch.allclose(sinusoid(8, 8, stretch=8.0), waves[::8], atol=1e-5)


def test_rotary_attention_knows_distance_and_not_place() -> None:
    """A sequence repeated after itself reads the same there, but for what its two ends see."""
    torch.manual_seed(0)
    attention = SelfAttention(attention_shape(_config().model))
    query, key = torch.randn(2, 1, 12, 32, generator=torch.Generator().manual_seed(4))
    rotation = rotation_of(12, 16, query.device)

    def read_at(place: int) -> torch.Tensor:
        """What one query reads of one key three places further on, against a dull one everywhere else."""
        queries, keys, values = torch.zeros(3, 1, 12, 32).unbind()
        queries[:, place], keys[:, place + 3], values[:, place + 3] = query[:, 0], key[:, 0], 1.0
        return attention.mix(queries, keys, values, rotation=rotation)[:, place]

    assert torch.allclose(read_at(0), read_at(7), atol=1e-5)
    flat = rotation._replace(cos=torch.ones_like(rotation.cos), sin=torch.zeros_like(rotation.sin))
    unrotated = attention.mix(query, key, key, rotation=flat)
    assert torch.allclose(unrotated, attention.mix(query, key, key))
    assert not torch.allclose(unrotated, attention.mix(query, key, key, rotation=rotation), atol=1e-3)


@pytest.mark.parametrize("mlp", ["plain", "gated"])
def test_token_decoder_looks_both_ways_and_its_parts_make_the_whole(mlp: str) -> None:
    torch.manual_seed(0)
    decoder, hidden = TokenDecoder(_config(token_decoder_mlp=mlp), 24, 50), _hidden()
    logits = decoder(hidden)
    assert logits.shape == (3, 16, 50)
    assert torch.equal(decoder.head(decoder.features(hidden)), logits)
    changed = hidden.clone()
    changed[:, 8] *= -1
    assert ((decoder(changed) - logits).abs().amax((0, 2)) > 1e-6).all()


def test_dropout_acts_in_training_alone() -> None:
    config = _config(dropout=0.3)
    for part in (LatentEncoder(config, 24), TokenDecoder(config, 24, 50)):
        part.train()
        assert not torch.equal(part(_hidden()), part(_hidden()))
        part.eval()
        assert torch.equal(part(_hidden()), part(_hidden()))
