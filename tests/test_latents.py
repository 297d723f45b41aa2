"""Perceivers and token decoder."""

import math

import pytest

torch = pytest.importorskip("torch")

from trainer.latents import LatentDecoder, LatentEncoder, TokenDecoder, sinusoid  # noqa: E402

_SMALL = {"hidden_size": 24, "sequence_length": 16, "latent_width": 12, "width": 32, "num_heads": 2,
          "num_layers": 2}


def _hidden(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_latents", [16, 8, 20])
def test_latents_have_unit_rms_whatever_their_number(num_latents: int) -> None:
    z = LatentEncoder(num_latents=num_latents, **_SMALL)(_hidden() * 7)
    assert z.shape == (3, num_latents, 12)
    assert torch.allclose(z.square().mean(-1), torch.ones(3, num_latents), atol=1e-3)


@pytest.mark.parametrize("num_latents", [16, 8])
def test_decoder_gives_hidden_states_whatever_the_scale_of_the_latents(num_latents: int) -> None:
    decoder = LatentDecoder(num_latents=num_latents, **_SMALL)
    z = torch.randn(3, num_latents, 12, generator=torch.Generator().manual_seed(2))
    assert decoder(z).shape == (3, 16, 24)
    assert torch.allclose(decoder(z), decoder(10 * z), atol=1e-3)


def test_untrained_latent_listens_most_to_the_token_at_its_own_position() -> None:
    torch.manual_seed(0)
    encoder = LatentEncoder(96, 64, 64, latent_width=64, width=128, num_heads=4, num_layers=2)
    hidden = torch.randn(4, 64, 96)
    for position in range(0, 64, 9):
        changed = hidden.clone()
        changed[:, position] *= -1
        moved = (encoder(changed) - encoder(hidden)).square().sum(-1).mean(0)
        assert moved.argmax() == position


def test_untrained_latents_say_more_about_the_text_than_about_their_position() -> None:
    torch.manual_seed(0)
    z = LatentEncoder(num_latents=16, **_SMALL)(_hidden(64))
    assert z.var(0).mean() > 0.3


def test_longest_wave_spans_the_sequence() -> None:
    waves = sinusoid(64, 8)
    angle = torch.atan2(waves[1, 3], waves[1, 7]).item()
    assert angle == pytest.approx(2 * math.pi / 64)
    assert torch.allclose(sinusoid(8, 8, stretch=8.0), waves[::8], atol=1e-5)


def test_token_decoder_looks_both_ways_and_its_parts_make_the_whole() -> None:
    torch.manual_seed(0)
    decoder, hidden = TokenDecoder(24, 16, 50, 32, 2, 1), _hidden()
    logits = decoder(hidden)
    assert logits.shape == (3, 16, 50)
    assert torch.equal(decoder.head(decoder.features(hidden)), logits)
    changed = hidden.clone()
    changed[:, 8] *= -1
    assert ((decoder(changed) - logits).abs().amax((0, 2)) > 1e-6).all()


@pytest.mark.parametrize("part", [LatentEncoder, LatentDecoder])
def test_paper_scale_perceivers_have_the_size_that_readers_report(part: type) -> None:
    perceiver = part(768, 1024, 1024, 768, 768, 12, 6)
    assert sum(parameter.numel() for parameter in perceiver.parameters()) == pytest.approx(50e6, rel=0.06)
