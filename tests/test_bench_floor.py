"""The least time of a generation: by hand, by counting the real modules, by torch's count of operations."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from tests.tiny_ldlm import LAYOUTS, name_of, tiny_config, tiny_model  # noqa: E402
from trainer.bench_cases import Case, Model  # noqa: E402
from trainer.bench_floor import PartWork, Rates, floor_s, mode_of, projected_rtx5090, work_of  # noqa: E402
from trainer.bench_limits import measure_rates  # noqa: E402
from trainer.bench_models import profile_config, shape_of  # noqa: E402
from trainer.encoder_shape import shape_of_config  # noqa: E402
from trainer.sizes import generation_flops, generation_parameters  # noqa: E402

TINY = shape_of_config({"model_type": "gpt2", "n_embd": 10, "vocab_size": 40, "n_layer": 2})
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)


@pytest.mark.parametrize(("preset", "width", "denoiser_millions", "rest_millions"), [
    ("seed-35b-a3b", 2048, 206, 912), ("seed-27b", 5120, 1285, 3789)])
def test_weights_of_the_published_shapes_are_the_published_ones(
        preset, width, denoiser_millions, rest_millions):
    """The specification counts the two layers of the time embedding, d^2, with the denoiser."""
    config = profile_config(Model(name=preset, length=64))
    found = generation_parameters(config, shape_of(config))
    denoiser = found.pop("denoiser")
    assert denoiser + width**2 == pytest.approx(denoiser_millions * 1e6, abs=1e6)
    assert sum(found.values()) == pytest.approx(rest_millions * 1e6, abs=1e6)


def test_rates_are_measured_for_each_way_in_which_some_part_is_multiplied():
    rates = measure_rates(torch.device("cpu"), ["fp8", "fp4"]).flops_per_s  # fp4: emulated, so not one of it
    assert {"fp8", mode_of("vocabulary_head", "fp8"), "fp32"} == set(rates) == {"fp8", "bf16", "fp32"}


@LAYOUT
def test_weights_are_those_of_the_modules_that_run(layout):
    config = tiny_config(layout)
    model = tiny_model(config)

    def count(*parts, without=()):
        return sum(parameter.numel() for part in parts for name, parameter in part.named_parameters()
                   if not any(word in name.split(".") for word in without))

    head = count(model.token_decoder.head)
    assert generation_parameters(config, TINY) == {
        "denoiser": count(model.denoiser, without=("time", "modulation", "prompt")),
        "latent_decoder": count(model.decoder), "vocabulary_head": head,
        "token_decoder": count(model.token_decoder) - head}


def operations(work):
    """That torch counts; attention as plain products, which it counts the same on every device."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@LAYOUT
def test_operations_are_those_that_torch_counts(layout):
    config = tiny_config(layout)
    model = tiny_model(config).eval().requires_grad_(False)
    z, time = torch.randn(1, config.num_latents, config.model.latent_width), torch.tensor([0.5])
    of_time = sum(2 * module.weight.numel() for name, module in model.denoiser.named_modules()
                  if isinstance(module, torch.nn.Linear) and {"time", "modulation"} & set(name.split(".")))
    hidden = model.decoder(z)
    features = model.token_decoder.features(hidden)

    assert generation_flops(config, TINY) == {
        "denoiser": operations(lambda: model.denoiser(z, time, torch.zeros_like(z))) - of_time,
        "latent_decoder": operations(lambda: model.decoder(z)),
        "token_decoder": operations(lambda: model.token_decoder.features(hidden)),
        "vocabulary_head": operations(lambda: model.token_decoder.head(features))}


def test_a_floor_by_hand():
    """Two steps, batch 3, bf16, of a plain denoiser of one layer: 12 w^2 weights and what is beside them."""
    config = tiny_config({"denoiser_block": "plain", "self_conditioning": False, "latent_width": 16})
    case = Case(model=Model(name="tiny", length=8), steps=2, batch=3, mode="bf16")
    rates = Rates(read_bytes_per_s=1e6, flops_per_s={"bf16": 1e8}, read_how="")

    work = work_of(case, config, TINY, rates)

    # maps and their biases, two norms of queries and keys, two LayerNorms, positions, the last gain
    weights = 12 * 16**2 + (3 + 1 + 4 + 1) * 16 + 2 * 8 + 4 * 16 + 8 * 16 + 16
    flops = 8 * 24 * 16**2 + 4 * 8 * 8 * 16  # 8 latents
    denoiser = work["denoiser"]
    assert (denoiser.passes, denoiser.num_bytes, denoiser.flops) == (2, 2 * 2 * weights, 2 * 3 * flops)
    assert denoiser.read_s == pytest.approx(4 * weights / 1e6)
    assert denoiser.compute_s == pytest.approx(6 * flops / 1e8)
    assert list(work) == ["denoiser", "latent_decoder", "token_decoder", "vocabulary_head"]
    assert floor_s(work) == pytest.approx(sum(max(part.read_s, part.compute_s) for part in work.values()))
    for mode, bits in (("fp8", 8), ("fp4", 4.5)):
        quantised = work_of(case.model_copy(update={"mode": mode}), config, TINY,
                            rates.model_copy(update={"flops_per_s": {"bf16": 1e8, mode: 2e8}}))
        assert quantised["denoiser"].num_bytes == work["denoiser"].num_bytes * bits / 16
        assert quantised["denoiser"].compute_s == work["denoiser"].compute_s / 2
        assert quantised["vocabulary_head"] == work["vocabulary_head"]  # which is held in bf16
    slow = work_of(case, config, TINY, rates.model_copy(update={"flops_per_s": {"bf16": 1e6}}))
    assert slow["denoiser"].floor_s == slow["denoiser"].compute_s


@pytest.mark.parametrize(("flops_a_byte", "fast_here", "projected"), [
    (64, True, 4_000 * 1.79 / 4.4),  # one text of 64 tokens in bf16
    (128, True, None),  # two: an H200 has 175 operations for a byte, an RTX 5090 117
    (64, False, None)])
def test_a_projection_is_made_where_reading_is_all_that_counts_here_and_there(
        flops_a_byte, fast_here, projected):
    rates = Rates(read_bytes_per_s=4.4e12, flops_per_s={"bf16": 770e12 if fast_here else 200e12}, read_how="")
    work = {"denoiser": PartWork(passes=1, num_bytes=1e9, flops=flops_a_byte * 1e9, read_s=0, compute_s=0)}
    assert projected_rtx5090(4_000, work, "bf16", rates) == (projected and pytest.approx(projected))
