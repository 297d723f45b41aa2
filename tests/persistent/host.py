"""Host side of the persistent kernel: packs weights for it, writes its table of phases, launches it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.persistent.compiling import cubin_of
from tests.persistent.layout import PhaseRow, pair_tiles, phase_rows, qkv_rows, tile_tiles
from tests.persistent.problem import Problem
from tests.persistent.shape import NUM_CTAS, NUM_LATENTS, NUM_SUMMED_PARTS, NUM_TILES, Shape
from trainer.attention import TransformerBlock

_NUM_THREADS = 384
_NUM_COUNTERS = 256  # of a phase
# As `Phase` and `Args` in shape.cuh.
_PHASE = np.dtype([("weights", "u8"), ("bytes", "u4"), ("kind", "u4"),
                   ("p0", "u8"), ("p1", "u8"), ("p2", "u8"), ("p3", "u8"),
                   ("c1", "f4"), ("c2", "f4"), ("dep", "u4"), ("unused", "u4")])
_BUFFERS = ("counters", "acopy", "hidden", "q", "k", "v", "partial", "stats", "squares",
            "z0", "positions", "time0", "gain0", "latents", "fault")
_ARGS = np.dtype([("phases", "u8"), ("num_phases", "u4"), ("unused", "u4"),
                  *((name, "u8") for name in _BUFFERS)])


def why_not() -> str | None:
    """A sentence if this machine cannot run the kernel."""
    if not torch.cuda.is_available():
        return "no CUDA device: the persistent kernel needs an H100 or H200"
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if (major, minor) != (9, 0):
        return f"{name} has capability {major}.{minor}: the persistent kernel needs 9.0, an H100 or H200"
    num_sms = torch.cuda.get_device_properties().multi_processor_count
    if num_sms < NUM_CTAS:
        return f"{name} has {num_sms} SMs: the persistent kernel needs {NUM_CTAS} that run at once"
    return None


def folded(linear: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Bias with the norm's shift in it, and W g: what a map behind a norm needs when only g x is written."""
    weight = linear.weight.float()
    return linear.bias.float() + weight @ norm.bias.float(), weight @ norm.weight.float()


@dataclass(frozen=True)
class PackedBlock:
    """A block as the kernel reads it: matrices in bf16, per-column numbers in float32.

    Args:
        matrices: Of kinds 0 to 3 (layout.py), each (128 CTAs, blocks of K, rows, 64).
        columns: Of kinds 0 to 3: p0, p1 and so on, as far as they belong to this block.
        first_gain: Gain of its first norm, which the last map of the block before it applies.
    """

    matrices: tuple[Tensor, Tensor, Tensor, Tensor]
    columns: tuple[tuple[Tensor, ...], ...]
    first_gain: Tensor


def packed(block: TransformerBlock, shape: Shape) -> PackedBlock:
    """Tiles of the four matrices, and norms folded into what follows them."""
    attention, (up, _, down) = block.attention, block.mlp
    rows = qkv_rows(shape).to(up.weight.device)
    qkv = attention.query_key_value
    qkv_bias, qkv_colsum = folded(qkv, block.attention_norm)
    gain = attention.query_norm.weight * attention.key_norm.weight * shape.head_width**-0.5
    return PackedBlock(
        matrices=(pair_tiles(qkv.weight.bfloat16()[rows]), tile_tiles(attention.output.weight.bfloat16()),
                  pair_tiles(up.weight.bfloat16()), tile_tiles(down.weight.bfloat16())),
        columns=((qkv_bias[rows], qkv_colsum[rows], gain), (attention.output.bias, block.mlp_norm.weight),
                 folded(up, block.mlp_norm), (down.bias,)),
        first_gain=block.attention_norm.weight)


class PersistentDenoiser:
    """A problem ready to run: `launch` may be captured in a CUDA graph; `latents` (64, W) is what came of it.

    Raises:
        RuntimeError: The kernel did not compile, or the driver refused it.
    """

    def __init__(self, problem: Problem, shape: Shape) -> None:
        self._shape = shape
        self._problem = problem
        self._blocks = [packed(block, shape) for block in problem.blocks]
        self._kept: list[Tensor] = []  # all that the kernel has an address of
        rows = phase_rows(len(problem.times_SW), len(problem.blocks))
        table = np.array([self._phase(row) for row in rows], dtype=_PHASE)
        self._phases = torch.from_numpy(table.view(np.uint8)).to(problem.noise_KW.device)
        self._buffers = self._new_buffers(len(rows))
        self.latents = self._buffers["latents"]
        addresses = (self._buffers[name].data_ptr() for name in _BUFFERS)
        self._args = np.array([(self._phases.data_ptr(), len(rows), 0, *addresses)], dtype=_ARGS)
        self._parameters = np.array([self._args.ctypes.data], dtype=np.uint64)
        self._function = _loaded(cubin_of(shape), shape.shared_bytes)

    def launch(self) -> None:
        """All steps, on the current stream."""
        from cuda.bindings import driver

        self._buffers["counters"].zero_()
        _checked(driver.cuLaunchKernel(
            self._function, NUM_CTAS, 1, 1, _NUM_THREADS, 1, 1, self._shape.shared_bytes,
            torch.cuda.current_stream().cuda_stream, self._parameters.ctypes.data, 0))

    def _phase(self, row: PhaseRow) -> tuple[float, ...]:
        problem, block = self._problem, self._blocks[row.block]
        number = min(row.kind, 3)
        columns = list(block.columns[number])
        if row.kind >= 3:
            columns.append(self._blocks[(row.block + 1) % len(self._blocks)].first_gain)
        if row.kind >= 4:
            columns.append(problem.gain_W)
        if row.kind == 4:
            columns.append(problem.times_SW[row.step + 1])
        addresses = [self._address(column) for column in columns] + [0] * (4 - len(columns))
        matrix = block.matrices[number]
        keep, add = problem.coefficients[row.step]
        return (matrix.data_ptr(), matrix[0].nbytes, row.kind, *addresses, keep, add, row.dep, 0)

    def _address(self, column: Tensor) -> int:
        self._kept.append(column.contiguous())
        return self._kept[-1].data_ptr()

    def _new_buffers(self, num_phases: int) -> dict[str, Tensor]:
        shape, problem = self._shape, self._problem
        numbers = NUM_LATENTS * shape.width
        squares = 2 * NUM_LATENTS * NUM_CTAS * (shape.qkv_columns // 3 // 8)
        with problem.noise_KW.device:
            sums = {"partial": torch.zeros(NUM_SUMMED_PARTS * numbers), "squares": torch.zeros(squares),
                    "stats": torch.zeros(2 * NUM_TILES * 2 * NUM_LATENTS)}
            activations = {name: torch.empty(size * numbers, dtype=torch.bfloat16)
                           for name, size in (("acopy", 1), ("hidden", 4), ("q", 1), ("k", 1), ("v", 1))}
            # One set of counters more: the residual stream before the first phase.
            counters = torch.zeros((num_phases + 1) * _NUM_COUNTERS, dtype=torch.int32)
            return {**sums, **activations, "counters": counters, "z0": problem.noise_KW,
                    "positions": problem.positions_KW, "time0": problem.times_SW[0].contiguous(),
                    "gain0": self._blocks[0].first_gain, "fault": torch.zeros(1, dtype=torch.int32),
                    "latents": torch.full((NUM_LATENTS, shape.width), float("nan"))}


def _loaded(cubin: bytes, shared_bytes: int) -> Any:
    """The kernel in torch's context, allowed to have that much shared memory."""
    from cuda.bindings import driver

    module = _checked(driver.cuModuleLoadData(cubin))
    function = _checked(driver.cuModuleGetFunction(module, b"generate"))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _checked(driver.cuFuncSetAttribute(function, attribute, shared_bytes))
    return function


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of the driver returned besides its status."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"CUDA driver: {status}")
    return values[0] if values else None
