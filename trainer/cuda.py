"""Which CUDA the locked torch brings, and which driver that takes. Shared with the launcher; no torch."""

import re

# The wheel of the locked torch brings CUDA 13.0.3 itself (its requirement `cuda-toolkit==13.0.3`), for cards
# from Turing on. A host whose driver is older cannot run it, whatever the image has.
TORCH, CUDA_OF_TORCH = "2.13.0", (13, 0)
# By the first number of a CUDA: within one, a driver runs them all (NVIDIA's CUDA compatibility guide).
_OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
# How images and indexes say it: `cuda-13.1.0`, `cuda:12.8.1`, `cuda12.6`; in short `cu128`, `cu1281`.
_CUDA = re.compile(r"cuda[-:_]?(\d+)\.(\d+)|(?<![a-z0-9])cu(1\d)(\d)\d?(?!\d)")


def cuda_of(text: str) -> tuple[int, int] | None:
    """The CUDA that a name says, (12, 8) of `nvidia/cuda:12.8.1-devel` and of `whl/cu128`; None: not said."""
    found = _CUDA.search(text)
    if found is None:
        return None
    major, minor = (number for number in found.groups() if number is not None)
    return int(major), int(minor)


def cuda_of_torch(index: str | None) -> tuple[int, int]:
    """Of the torch that a node installs.

    Args:
        index: Where its wheels come from beside the usual place; one that names no CUDA changes nothing.
    """
    return cuda_of(index or "") or CUDA_OF_TORCH


def oldest_driver(cuda: tuple[int, int]) -> int:
    """The first driver, by the first of its numbers, that runs programs of a CUDA."""
    return _OLDEST_DRIVERS.get(cuda[0], 0)
