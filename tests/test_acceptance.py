"""What the method's description promises of an implementation, number by number."""

import pytest

torch = pytest.importorskip("torch")

from tiny_model import LAYOUTS, name_of, tiny_config  # noqa: E402

from trainer.config import TrainConfig  # noqa: E402
from trainer.model import LatentDiffusionLM  # noqa: E402


def _millions(profile: str, hidden_size: int, vocabulary: int) -> dict[str, float]:
    """Parameters of each part of a profile, in millions, counted without memory for them."""
    config = TrainConfig.model_validate({"profile": profile, "steps": 1, "data": {"source": "none"},
                                         "checkpoint": {"every_steps": 1}})
    with torch.device("meta"):
        model = LatentDiffusionLM(config, hidden_size, None, vocabulary)
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) / 1e6
              for name, part in model.parts().items()}
    assert sum(counts.values()) * 1e6 == sum(parameter.numel() for parameter in model.parameters())
    return counts


def test_paper_scale_has_the_sizes_that_readers_report() -> None:
    counts = _millions("paper-gpt2", 768, 50_257)
    assert counts["latent_encoder"] == pytest.approx(50, rel=0.06)
    assert counts["latent_decoder"] == pytest.approx(50, rel=0.06)
    assert counts["token_decoder"] == pytest.approx(66, rel=0.03)
    assert counts["denoiser"] == pytest.approx(132, rel=0.01)
    assert sum(counts.values()) == pytest.approx(300, rel=0.03)


@pytest.mark.parametrize(("profile", "width", "denoiser", "decoders", "total"), [
    ("seed-35b-a3b", 2048, 206, 912, 1390), ("seed-27b", 5120, 1285, 3789, 6750)])
def test_seed_profiles_have_the_published_sizes(profile: str, width: int, denoiser: float, decoders: float,
                                                total: float) -> None:
    counts = _millions(profile, width, 248_320)
    assert counts["denoiser"] == pytest.approx(denoiser, rel=2e-3)
    assert counts["latent_decoder"] + counts["token_decoder"] == pytest.approx(decoders, rel=5e-4)
    assert sum(counts.values()) == pytest.approx(total, rel=3e-3)


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_every_layout_can_be_built_without_memory(layout: dict) -> None:
    with torch.device("meta"):
        model = LatentDiffusionLM(tiny_config(layout), 10, None, 40)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
