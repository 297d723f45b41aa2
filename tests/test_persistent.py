"""What is worked out for the persistent kernels before they run: where weights lie, which phases there are,
who waits for whom, shared memory; and that they are told to compute what the model computes.

Where a weight must lie is computed here, from the rules that persistent.cu and layout.py state in words.
"""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from phase_machine import PhaseMachine, unpaired, unswizzled, untiled  # noqa: E402

from trainer.bench_cases import Model  # noqa: E402
from trainer.bench_models import profile_config  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.fast.noise import sample_keys  # noqa: E402
from trainer.fast.persistent import program  # noqa: E402
from trainer.fast.persistent.compiling import cubin_of  # noqa: E402
from trainer.fast.persistent.layout import head_rows, pair_tiles, swizzled, tile_tiles  # noqa: E402
from trainer.fast.persistent.packing import mlp  # noqa: E402
from trainer.fast.persistent.phases import Kind  # noqa: E402
from trainer.fast.persistent.shape import SHAPES, Shape  # noqa: E402
from trainer.fast.program import FastModel  # noqa: E402
from trainer.generate import Generator, sample_latents  # noqa: E402
from trainer.model import LatentDiffusionLM  # noqa: E402
from trainer.sampler import SampleNoise  # noqa: E402

# Small, and with columns that must be filled up: 24 of queries, keys and values a CTA.
SMALL = Shape(1024, weight_slots=2, activation_slots=2, blocks_per_slot=1)
SMALL_FP8 = dataclasses.replace(SMALL, is_fp8=True)
ALL = pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: f"{shape.width}-{shape.is_fp8}")


def numbered(num_rows: int, width: int) -> torch.Tensor:
    """A matrix whose weights say which they are, from 1; 0 is what fills up."""
    return torch.arange(1, num_rows * width + 1, dtype=torch.int32).view(num_rows, width)


def occurrences(tiles: torch.Tensor) -> list[int]:
    """How often each number occurs."""
    return np.bincount(tiles.numpy().ravel()).tolist()


def test_a_swizzled_block_can_be_undone_by_the_written_rule() -> None:
    block = numbered(24, 64)
    assert not torch.equal(swizzled(block), block)
    assert np.array_equal(unswizzled(swizzled(block).numpy()), block.numpy())


@pytest.mark.parametrize("columns", [3, 4])
def test_every_weight_of_a_map_split_over_pairs_occurs_once_and_zeros_fill_up(columns: int) -> None:
    width = SMALL.width
    found = occurrences(pair_tiles(numbered(columns * width, width)))
    filled = {3: 128 * 8 * width, 4: 0}[columns]  # 24 columns a CTA are 8 short of 32
    assert found == [filled] + [1] * (columns * width * width)


@pytest.mark.parametrize("factor", [1, 4])
def test_every_weight_of_a_map_into_the_residual_stream_occurs_once(factor: int) -> None:
    width = SMALL.width
    assert occurrences(tile_tiles(numbered(width, factor * width))) == [0] + [1] * (factor * width * width)


def test_what_a_norm_takes_away_is_of_the_weights_as_they_are_held() -> None:
    """Rows of one number have no deviation, so that nothing may be left of them: mean W g less mean W g."""
    width, norm = SMALL.width, torch.nn.LayerNorm(SMALL.width)
    up = torch.nn.Linear(width, 4 * width)
    torch.nn.init.normal_(norm.weight)
    down = torch.nn.Linear(4 * width, width)
    first, _ = mlp(torch.nn.Sequential(up, torch.nn.GELU(), down), norm, SMALL).maps
    wanted = up.weight.detach().bfloat16().double() @ norm.weight.detach().double()
    assert torch.allclose(first.columns[1].double(), wanted, atol=1e-5)


def test_each_cta_of_a_pair_has_the_columns_of_both_for_its_half_of_the_sum() -> None:
    width, columns, padded = SMALL.width, 24, 32
    weights = numbered(3 * width, width).numpy()
    tiles = pair_tiles(torch.from_numpy(weights)).numpy()
    assert tiles.shape == (128, width // 2 // 64, 2 * padded, 64)
    for cta in (0, 1, 77, 126):
        for block in (0, 7):
            first = cta % 2 * width // 2 + 64 * block
            wanted = []
            for group in (0, 1):
                for owner in (cta - cta % 2, cta - cta % 2 + 1):
                    for column in range(group * padded // 2, (group + 1) * padded // 2):
                        row = weights[owner * columns + column] if column < columns else np.zeros(width)
                        wanted.append(row[first:first + 64])
            assert np.array_equal(unswizzled(tiles[cta, block]), np.array(wanted))


def test_a_tile_of_the_residual_stream_is_summed_by_eight_ctas_one_of_each_pair() -> None:
    width = SMALL.width
    weights = numbered(width, 4 * width).numpy()
    tiles = tile_tiles(torch.from_numpy(weights)).numpy()
    for cta in (0, 1, 2, 15, 16, 93, 127):
        tile, part = cta // 16 * 2 + cta % 2, cta // 2 % 8
        for block in (0, 5):
            first = part * 4 * width // 8 + 64 * block
            wanted = weights[tile * width // 16:(tile + 1) * width // 16, first:first + 64]
            assert np.array_equal(unswizzled(tiles[cta, block]), wanted)


@ALL
def test_the_ctas_of_a_head_share_its_channels_the_same_of_queries_keys_and_values(shape: Shape) -> None:
    width = shape.width
    rows = head_rows(shape, 3).view(128, 3, -1).numpy()
    assert sorted(rows.ravel()) == list(range(3 * width))
    for cta in range(128):
        channels = rows[cta, 0]
        assert set(channels // (width // 8)) == {cta // 16}
        assert np.array_equal(rows[cta, 1], channels + width)
        assert np.array_equal(rows[cta, 2], channels + 2 * width)


def test_what_is_packed_can_be_read_again_by_the_written_rules() -> None:
    weights = numbered(3 * SMALL.width, SMALL.width)
    assert np.array_equal(unpaired(pair_tiles(weights).numpy(), 24), weights.numpy())
    weights = numbered(SMALL.width, 4 * SMALL.width)
    assert np.array_equal(untiled(tile_tiles(weights).numpy()), weights.numpy())


class Told:
    """In place of a kernel: what it was told."""

    def __init__(self, shape, phases, positions_KW, time_W, gain_W) -> None:
        self.phases, self.added_KW, self.gain_W = phases, positions_KW + time_W, gain_W

    def result(self, z0_KW: torch.Tensor, context_KW: torch.Tensor | None) -> torch.Tensor:
        """What plain arithmetic makes of it."""
        begin = z0_KW.double().numpy(), self.added_KW.double().numpy()
        context = None if context_KW is None else context_KW.double().numpy()
        return torch.from_numpy(PhaseMachine(self.phases, begin, self.gain_W.double().numpy(), context).found)


def small_generator(is_fp8: bool) -> Generator:
    """Of the seed's kind at width 1,024, with weights that bf16 or e4m3 can hold."""
    sizes = {"latent_width": 1024, "width": 1024, "token_decoder_width": 1024, "decoder_layers": 2,
             "denoiser_layers": 1, "token_decoder_layers": 1}
    values = profile_config(Model(name="seed-35b-a3b", length=64)).model_dump(exclude_defaults=True)
    sampling = {"steps": 3, "batch_size": 1, "temperature": 0.9}
    values |= {"model": values["model"] | sizes, "sampling": sampling}
    config = TrainConfig.model_validate(values)
    torch.manual_seed(0)
    model = LatentDiffusionLM(config, 1024, None, 50).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        is_stream = "positions" in name or "queries" in name
        if "context_norm.weight" in name:  # is multiplied into a matrix before that is rounded
            parameter.copy_(2.0 ** torch.randint(-1, 2, parameter.shape))
        elif parameter.ndim == 2 and is_fp8 and not is_stream:  # powers of two, the largest in each row
            power = torch.randint(0, 5, parameter.shape)
            power[:, 0] = 0
            sign = 2.0 * torch.randint(0, 2, parameter.shape) - 1
            parameter.copy_(sign * 2.0 ** (1 - power) * parameter.shape[1] ** -0.5)
        elif parameter.ndim == 2:
            parameter.normal_(std=0.5 if is_stream else parameter.shape[1] ** -0.5)
            parameter.copy_(parameter.bfloat16())
        else:
            parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1)
    return Generator(config, model, None, 50, 0)


@pytest.fixture(scope="module", params=[SMALL, SMALL_FP8], ids=["bf16", "fp8"])
def told(request: pytest.FixtureRequest) -> tuple[Generator, Told, Told]:
    """A model, and what the kernels of its denoiser and decoders are told."""
    shape = request.param
    generator = small_generator(shape.is_fp8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "PersistentKernel", Told)
        patch.setitem(program.SHAPES, (1024, shape.is_fp8), shape)
        model = FastModel(generator, "fp8" if shape.is_fp8 else "bf16", None)
        made = program.PersistentProgram(generator.config, model)
    return generator, made._denoiser, made._decoder


def test_programs_of_one_model_share_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "PersistentKernel", Told)
    monkeypatch.setitem(program.SHAPES, (1024, False), SMALL)
    generator = small_generator(is_fp8=False)
    model = FastModel(generator, "bf16", None)
    fewer = generator.config.model_copy(
        update={"sampling": generator.config.sampling.model_copy(update={"steps": 1})})
    programs = [program.PersistentProgram(config, model) for config in (generator.config, fewer)]
    kernels = [(made._denoiser, made._decoder) for made in programs]
    matrices = [{phase.map.matrix.data_ptr() for kernel in pair for phase in kernel.phases}
                for pair in kernels]
    assert matrices[0] == matrices[1]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def test_the_phases_of_the_denoiser_make_the_latents_of_the_reference(told) -> None:
    generator, denoiser, _ = told
    noise = SampleNoise(sample_keys(7, [0], "cpu"), (64, 1024)).start() * 0.9
    wanted = sample_latents(generator.model, range(1), 7, generator.config.sampling)
    assert relative(denoiser.result(noise[0], None), wanted[0]) < 1e-5


def test_the_phases_of_the_decoders_make_what_the_head_reads_but_for_its_norm(told) -> None:
    generator, _, decoder = told
    latents = torch.randn(1, 64, 1024)
    model = generator.model
    context = torch.nn.functional.layer_norm(latents[0], (1024,)) + model.decoder.perceiver.positions
    context = torch.nn.functional.layer_norm(context, (1024,))
    found = model.token_decoder.norm(decoder.result(torch.zeros(64, 1024), context).float())
    assert relative(found, model.token_decoder.features(model.decoder(latents))[0]) < 1e-5


def test_each_phase_waits_for_the_last_that_wrote_what_it_reads(told) -> None:
    reads = {Kind.QKV: "stream", Kind.QUERY: "stream", Kind.UP: "stream", Kind.GATE: "stream",
             Kind.GATED_UP: "stream", Kind.ATTEND: "queries", Kind.DOWN: "hidden", Kind.END_STEP: "hidden",
             Kind.END: "hidden"}
    writes = {Kind.QKV: "queries", Kind.QUERY: "queries", Kind.UP: "hidden", Kind.GATED_UP: "hidden"}
    for kernel in told[1:]:
        last_writer = {"stream": len(kernel.phases)}  # the start has the counters after those of all phases
        for index, phase in enumerate(kernel.phases):
            if phase.kind in reads:
                assert phase.dep == last_writer[reads[phase.kind]]
            if phase.kind == Kind.ATTEND:
                assert phase.keys_dep == last_writer[f"keys {phase.map.context}"]
            if phase.kind in (Kind.QKV, Kind.KEYS_VALUES):
                last_writer[f"keys {phase.map.context}"] = index
            written = writes.get(phase.kind, "stream" if phase.kind in reads else None)
            if written and phase.kind != Kind.GATE:
                last_writer[written] = index


def test_a_step_ends_with_its_last_block_and_all_ends_with_the_last_step(told) -> None:
    block = [Kind.QKV, Kind.ATTEND, Kind.UP]
    assert [phase.kind for phase in told[1].phases] == [
        *block, Kind.END_STEP, *block, Kind.END_STEP, *block, Kind.END]


@ALL
def test_the_rings_and_all_else_fit_into_the_shared_memory_of_an_sm(shape: Shape) -> None:
    assert shape.shared_bytes <= 227 * 1024  # CUDA programming guide: capability 9.0


@pytest.mark.parametrize(("width", "slot_bytes"), [(2048, 16_384), (5120, 40_960)])
def test_a_slot_takes_the_largest_chunk_of_any_phase(width: int, slot_bytes: int) -> None:
    found = {SHAPES[width, is_fp8].weight_slot_bytes for is_fp8 in (False, True)}
    assert found == {slot_bytes}  # as measured, recipes/LOG.md


@ALL
def test_the_kernel_compiles(shape: Shape) -> None:
    pytest.importorskip("cuda.bindings", reason="torch for CUDA brings NVRTC")
    assert cubin_of(shape).startswith(b"\x7fELF")


def test_what_the_kernels_do_not_compute_is_named() -> None:
    config = profile_config(Model(name="seed-35b-a3b", length=64))
    assert program.why_not(config, 2048, 1, has_prompt=False) is None
    assert program.why_not(config, 2048, 2, has_prompt=False) == "one text at a time"
    assert program.why_not(config, 2048, 1, has_prompt=True) == "one text at a time"
    assert program.why_not(config, 1024, 1, has_prompt=False) == "one width of 2048 or 5120"
    longer = profile_config(Model(name="seed-35b-a3b", length=128))
    assert program.why_not(longer, 2048, 1, has_prompt=False) == "64 tokens and latents"
    assert program.why_not_here(torch.device("cpu")) == "no CUDA device"
