"""What the persistent kernel's host does alone: where weights lie, who waits for whom, shared memory.

Where a weight must lie is computed here, from the rules that denoiser.cu and layout.py state in words.
"""

import ctypes

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tests import bench_denoiser  # noqa: E402
from tests.persistent import host  # noqa: E402
from tests.persistent.compiling import cubin_of  # noqa: E402
from tests.persistent.host import folded  # noqa: E402
from tests.persistent.layout import pair_tiles, phase_rows, qkv_rows, swizzled, tile_tiles  # noqa: E402
from tests.persistent.problem import random_problem  # noqa: E402
from tests.persistent.shape import SHAPES, Shape  # noqa: E402

# Small, and with columns that must be filled up: 24 of queries, keys and values a CTA.
SMALL = Shape(1024, weight_slots=2, activation_slots=2, blocks_per_slot=1)
SHAPE_WIDTHS = sorted(SHAPES)


def unswizzled(block: np.ndarray) -> np.ndarray:
    """A block of 64 columns as it was: row r, 16-byte unit u lies at unit u XOR (r mod 8)."""
    plain = np.zeros_like(block)
    for row in range(len(block)):
        for unit in range(8):
            at = unit ^ (row % 8)
            plain[row, 8 * unit:8 * unit + 8] = block[row, 8 * at:8 * at + 8]
    return plain


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


@pytest.mark.parametrize("width", SHAPE_WIDTHS)
def test_the_ctas_of_a_head_share_its_channels_the_same_of_queries_keys_and_values(width: int) -> None:
    rows = qkv_rows(SHAPES[width]).view(128, 3, -1).numpy()
    assert sorted(rows.ravel()) == list(range(3 * width))
    for cta in range(128):
        channels = rows[cta, 0]
        assert set(channels // (width // 8)) == {cta // 16}
        assert np.array_equal(rows[cta, 1], channels + width)
        assert np.array_equal(rows[cta, 2], channels + 2 * width)


@pytest.mark.parametrize(("steps", "blocks"), [(1, 1), (3, 2)])
def test_each_phase_waits_for_the_last_that_wrote_what_it_reads(steps: int, blocks: int) -> None:
    reads = {0: "stream", 1: "qkv", 2: "stream", 3: "hidden", 4: "hidden", 5: "hidden"}
    writes = {0: "qkv", 1: "stream", 2: "hidden", 3: "stream", 4: "stream", 5: "latents"}
    rows = phase_rows(steps, blocks)
    last_writer = {"stream": len(rows)}  # the start has the counters after those of all phases
    for index, row in enumerate(rows):
        assert row.dep == last_writer[reads[row.kind]]
        last_writer[writes[row.kind]] = index


def test_a_step_ends_with_its_last_block_and_all_ends_with_the_last_step() -> None:
    found = [(row.step, row.block, row.kind) for row in phase_rows(2, 2)]
    assert found == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 1, 4),
                     (1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 0, 3), (1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 5)]


def numbers_at(address: int, count: int) -> list[float]:
    return list((ctypes.c_float * count).from_address(address))


def test_the_last_maps_of_blocks_are_given_what_comes_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cubin_of", lambda shape: b"")
    monkeypatch.setattr(host, "_loaded", lambda cubin, shared_bytes: None)
    problem = random_problem(SMALL, num_blocks=2, num_steps=2, seed=0, device="cpu")
    kernel = host.PersistentDenoiser(problem, SMALL)
    table = np.frombuffer(kernel._phases.numpy().tobytes(), dtype=host._PHASE)
    first, second = problem.blocks
    wanted = {3: [first.mlp[2].bias, second.attention_norm.weight],
              7: [second.mlp[2].bias, first.attention_norm.weight, problem.gain_W, problem.times_SW[1]],
              11: [first.mlp[2].bias, second.attention_norm.weight],
              15: [second.mlp[2].bias, first.attention_norm.weight, problem.gain_W]}
    for index, columns in wanted.items():
        row = table[index]
        addresses = [int(row[name]) for name in ("p0", "p1", "p2", "p3")]
        assert [address != 0 for address in addresses] == [True] * len(columns) + [False] * (4 - len(columns))
        for address, column in zip(addresses, columns, strict=False):
            assert numbers_at(address, SMALL.width) == column.tolist()
    assert [(int(row["dep"]), int(row["bytes"])) for row in table[:4]] == [
        (16, 64 * 1024), (0, 64 * 128 * 2), (1, 64 * 1024), (2, 64 * 512 * 2)]
    assert table[7]["c1"] == np.float32(problem.coefficients[0][0])


@pytest.mark.parametrize("width", SHAPE_WIDTHS)
def test_the_rings_and_all_else_fit_into_the_shared_memory_of_an_sm(width: int) -> None:
    assert SHAPES[width].shared_bytes <= 227 * 1024  # CUDA programming guide: capability 9.0


@pytest.mark.parametrize(("width", "slot_bytes"), [(2048, 32_768), (5120, 40_960)])
def test_a_slot_takes_the_largest_chunk_of_any_phase(width: int, slot_bytes: int) -> None:
    assert SHAPES[width].weight_slot_bytes == slot_bytes  # as measured, recipes/LOG.md


def test_a_map_behind_a_norm_is_the_map_of_g_x_with_two_numbers_a_column_and_two_a_row() -> None:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(96), nn.Linear(96, 40)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0)
    x = 3 * torch.randn(5, 96) + 2
    bias, colsum = folded(linear, norm)
    mean, deviation = x.mean(1, keepdim=True), (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    found = ((x * norm.weight) @ linear.weight.T - mean * colsum) / deviation + bias
    torch.testing.assert_close(found, linear(norm(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", SHAPE_WIDTHS)
def test_the_kernel_compiles(width: int) -> None:
    pytest.importorskip("cuda.bindings", reason="torch for CUDA brings NVRTC")
    assert cubin_of(SHAPES[width]).startswith(b"\x7fELF")


def test_the_bench_says_in_a_sentence_that_it_needs_another_gpu(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench_denoiser"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        bench_denoiser.main()
    assert (ended.value.code, capsys.readouterr().out) == (
        1, "no CUDA device: the persistent kernel needs an H100 or H200\n")
