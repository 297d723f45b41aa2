"""A persistent kernel ready to run: its table of phases, its buffers, its launch.

Shapes: K 64 latents or tokens, W width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.fast.persistent.compiling import cubin_of
from trainer.fast.persistent.layout import blocks_of
from trainer.fast.persistent.phases import Kind, Phase
from trainer.fast.persistent.shape import NUM_CTAS, NUM_LATENTS, NUM_SUMMED_PARTS, NUM_TILES, Shape

_NUM_THREADS = 384
_NUM_COUNTERS = 256  # of a phase
# As `Phase` and `Args` in shape.cuh.
_COLUMNS = ("p0", "p1", "p2", "p3")
_PHASE = np.dtype([("weights", "u8"), ("bytes", "u4"), ("kind", "u4"), ("scale", "u8"),
                   *((name, "u8") for name in _COLUMNS),
                   ("input", "u8"), ("k", "u8"), ("v", "u8"), ("key_squares", "u8"), ("positions", "u8"),
                   ("c1", "f4"), ("c2", "f4"), ("dep", "u4"), ("dep2", "u4")])
_BUFFERS = ("counters", "acopy", "hidden", "gates", "q", "partial", "stats", "query_squares",
            "z0", "positions", "time0", "gain0", "latents", "fault")
_ARGS = np.dtype([("phases", "u8"), ("num_phases", "u4"), ("unused", "u4"),
                  *((name, "u8") for name in _BUFFERS)])


class PersistentKernel:
    """All phases in one launch, which a CUDA graph may capture.

    Attributes:
        z0: (K, W), float32, to be written before a launch: the stream begins as z0 + positions + time.
        context: Blocks of K rows, swizzled (layout.py), bf16 or bytes of e4m3, to be written where keys and
            values come of it.
        latents: (K, W), float32: what comes of it.

    Args:
        shape: What it is compiled for.
        phases: From `chained`.
        positions_KW: Added to the stream at its start.
        time_W: Added, too.
        gain_W: Of the norm that the first sublayer begins with.

    Raises:
        RuntimeError: It did not compile, or the driver refused it.
    """

    def __init__(self, shape: Shape, phases: Sequence[Phase], positions_KW: Tensor, time_W: Tensor,
                 gain_W: Tensor) -> None:
        self._shape, self._device = shape, positions_KW.device
        self._kept: list[Tensor] = []  # all that the kernel has an address of
        num_contexts = max((phase.map.context for phase in phases), default=0)
        with self._device:
            self._buffers = self._new_buffers(len(phases))
            self._heads = [self._new_heads() for _ in range(1 + num_contexts)]
            dtype = torch.uint8 if shape.is_fp8 else torch.bfloat16
            rows_KW = torch.zeros(NUM_LATENTS, shape.width, dtype=dtype)
            self.context = blocks_of(rows_KW).transpose(0, 1).contiguous()
        self._buffers |= {"positions": self._keep(positions_KW), "time0": self._keep(time_W),
                          "gain0": self._keep(gain_W)}
        self.z0, self.latents = self._buffers["z0"], self._buffers["latents"]
        table = np.array([self._row(phase) for phase in phases], dtype=_PHASE)
        self._phases = torch.from_numpy(table.view(np.uint8)).to(self._device)
        addresses = (self._buffers[name].data_ptr() for name in _BUFFERS)
        self._args = np.array([(self._phases.data_ptr(), len(phases), 0, *addresses)], dtype=_ARGS)
        self._parameters = np.array([self._args.ctypes.data], dtype=np.uint64)
        with torch.cuda.device(self._device):  # the driver loads into the context of now
            self._function = _loaded(cubin_of(shape), shape.shared_bytes)

    def launch(self) -> None:
        """Everything, on its device's current stream. One after the other: all share its buffers."""
        from cuda.bindings import driver

        self._buffers["counters"].zero_()
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = NUM_CTAS, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = _NUM_THREADS, 1, 1
        config.sharedMemBytes, config.attrs, config.numAttrs = self._shape.shared_bytes, [_all_at_once()], 1
        with torch.cuda.device(self._device):
            config.hStream = torch.cuda.current_stream().cuda_stream
            _checked(driver.cuLaunchKernelEx(config, self._function, self._parameters.ctypes.data, 0))

    def _row(self, phase: Phase) -> tuple[float, ...]:
        columns = [self._address(column) for column in phase.columns]
        columns += [0] * (len(_COLUMNS) - len(columns))
        matrix, end = self._keep(phase.map.matrix), phase.end
        source = self.context if phase.kind == Kind.KEYS_VALUES else self._buffers["acopy"]
        heads = self._heads[phase.map.context]
        positions = 0 if end is None or end.positions_KW is None else self._address(end.positions_KW)
        keep, take = (0.0, 0.0) if end is None else (end.keep, end.take)
        scale = 0 if phase.map.scale is None else self._address(phase.map.scale)
        return (matrix.data_ptr(), matrix[0].nbytes, phase.kind, scale, *columns, source.data_ptr(),
                *(part.data_ptr() for part in heads), positions, keep, take, phase.dep, phase.keys_dep)

    def _address(self, column: Tensor) -> int:
        return self._keep(column).data_ptr()

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1]

    def _new_buffers(self, num_phases: int) -> dict[str, Tensor]:
        shape, numbers = self._shape, NUM_LATENTS * self._shape.width
        activations = {name: torch.empty(size * numbers, dtype=torch.bfloat16)
                       for name, size in (("acopy", 1), ("hidden", 4), ("gates", 4), ("q", 1))}
        # One set of counters more: the residual stream before the first phase.
        counters = torch.zeros((num_phases + 1) * _NUM_COUNTERS, dtype=torch.int32)
        return {**activations, "counters": counters, "partial": torch.zeros(NUM_SUMMED_PARTS * numbers),
                "stats": torch.zeros(2 * NUM_TILES * 2 * NUM_LATENTS), "query_squares": self._new_squares(),
                "z0": torch.zeros(NUM_LATENTS, shape.width), "fault": torch.zeros(1, dtype=torch.int32),
                "latents": torch.full((NUM_LATENTS, shape.width), float("nan"))}

    def _new_heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and sums of squares of keys."""
        numbers = NUM_LATENTS * self._shape.width
        keys, values = (torch.empty(numbers, dtype=torch.bfloat16) for _ in range(2))
        return keys, values, self._new_squares()

    def _new_squares(self) -> Tensor:
        return torch.zeros(NUM_LATENTS * NUM_CTAS * (self._shape.head_columns // 8))


def _all_at_once() -> Any:
    """CTAs wait for each other: the driver is to refuse where not all of them have room."""
    from cuda.bindings import driver

    value, attribute = driver.CUlaunchAttributeValue(), driver.CUlaunchAttribute()
    value.cooperative = 1
    attribute.id, attribute.value = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE, value
    return attribute


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
