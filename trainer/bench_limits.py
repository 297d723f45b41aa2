"""What this device can do, measured in the same run as what is compared with it."""

import time
from collections.abc import Callable, Iterable

import torch

from trainer.bench_floor import HEAD, Rates, mode_of
from trainer.fast.devices import has_triton
from trainer.fast.nvfp4 import tiled, unscaled_product
from trainer.fast.weights import Mode, dtype_of, is_emulated
from trainer.quantise import encode_nvfp4

_TIMES = 10
_CPU_WORDS, _CPU_SIDE = 1 << 24, 512  # 64 MiB, more than most caches; small, since it is only a yardstick
_GPU_SIDE = 8192


def measure_rates(device: torch.device, modes: Iterable[Mode]) -> Rates:
    """Read rate of the device, and its rate of products for each mode that some part is multiplied in.

    fp8 counts as bf16 does where the device does not multiply in it; a mode that is emulated has no rate.
    """
    read, how = _read_rate(device)
    timed = [mode for mode in modes if not is_emulated(mode, device)]
    needed = {"fp32"}.union(*({mode, mode_of(HEAD, mode)} for mode in timed))
    rates = Rates(read_bytes_per_s=read, read_how=how,
                  flops_per_s={mode: _matrix_rate(device, mode) for mode in sorted(needed)})
    if device.type == "cuda":
        torch.cuda.empty_cache()  # graphs, which have memory of their own, must not do without these 4 GiB
    return rates


def _read_rate(device: torch.device) -> tuple[float, str]:
    if has_triton(device):
        from trainer.read_rate import read_bytes_per_second

        return read_bytes_per_second(), "a kernel that only reads 4 GiB"
    words = torch.ones(_CPU_WORDS, device=device)
    return words.nbytes / _least_s(words.sum, device), "torch.sum over 64 MiB"


def _matrix_rate(device: torch.device, mode: Mode) -> float:
    side = _GPU_SIDE if device.type == "cuda" else _CPU_SIDE
    left, right = (torch.randn(side, side, device=device) for _ in range(2))
    if mode == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        return 2 * side**3 / _least_s(_fp8_product(left, right), device)
    if mode == "fp4":
        return 2 * side**3 / _least_s(_fp4_product(left, right), device)
    left, right = left.to(dtype_of(mode)), right.to(dtype_of(mode))
    return 2 * side**3 / _least_s(lambda: left @ right, device)


def _fp8_product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    one = torch.ones((), device=left.device)
    first, second = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).t()
    return lambda: torch._scaled_mm(first, second, one, one, out_dtype=torch.bfloat16)


def _fp4_product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    first, second = encode_nvfp4(left), encode_nvfp4(right)
    scales = tiled(second.block_scales)
    return lambda: unscaled_product(first, second.codes, scales)


def _least_s(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of some, after two that do not count: this is about what can be."""
    return min([timed_s(work, device) for _ in range(_TIMES + 2)][2:])


def timed_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a clock from the call until the device has done it."""
    wait_for(device)
    began = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Until all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
