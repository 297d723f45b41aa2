"""Numbers rounded in place to what a checkpoint holds of them, to the nearest, ties to even or up.

Each function reads and writes every number once or twice: it is memory that a device waits for. On a GPU
kernels of our own (`rounding_kernels.py`) move a third fewer bytes than torch's operations here, for the
same bits, and a save's stall is mostly this (an H200's profile, recipes/LOG.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rounding:
    """How one device does it. All take flat float32.

    Attributes:
        to_bfloat16: Rounds what it is given; returns it as bfloat16.
        to_24_bits: Rounds to the upper 24 bits, ties away from zero; returns what it was given.
        to_distance: Of an average and its weights: rounds the distance to bfloat16, returns it, and puts
            the average there.
    """

    to_bfloat16: Callable[[Tensor], Tensor]
    to_24_bits: Callable[[Tensor], Tensor]
    to_distance: Callable[[Tensor, Tensor], Tensor]


def _to_bfloat16(live: Tensor) -> Tensor:
    rounded = live.bfloat16()
    live.copy_(rounded)
    return rounded


def _to_24_bits(live: Tensor) -> Tensor:
    live.view(torch.int32).add_(0x80).bitwise_and_(-0x100)
    return live


def _to_distance(average: Tensor, weights: Tensor) -> Tensor:
    # Straight into bfloat16 and out of it: no float32 of its own that the device would have to move.
    distance = torch.sub(average, weights, out=torch.empty_like(average, dtype=torch.bfloat16))
    torch.add(weights, distance, out=average)
    return distance


BY_TORCH = Rounding(_to_bfloat16, _to_24_bits, _to_distance)


def rounding_on(device: torch.device) -> Rounding:
    """What is quickest there. Makes the kernels, which takes a second or none."""
    if device.type != "cuda" or find_spec("triton") is None:
        return BY_TORCH
    from trainer import rounding_kernels

    kernels = Rounding(rounding_kernels.to_bfloat16, rounding_kernels.to_24_bits,
                       rounding_kernels.to_distance)
    try:
        with torch.cuda.device(device):
            kernels.to_bfloat16(torch.ones(1, device=device))
            kernels.to_24_bits(torch.ones(1, device=device))
            kernels.to_distance(torch.ones(1, device=device), torch.ones(1, device=device))
    except Exception as error:  # no C compiler, a GPU that this Triton does not know: Triton has many words
        print(f"warning: a save will take some ms more: Triton makes no kernels here: {error}", flush=True)
        return BY_TORCH
    return kernels
