"""What a device can do."""

import functools
import importlib.util
import os
import shutil

import torch

_LEAST_FOR_TRITON = (7, 0)


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether kernels in Triton's language run there, and so what torch compiles for GPUs."""
    return (device.type == "cuda" and torch.cuda.get_device_capability(device) >= _LEAST_FOR_TRITON
            and importlib.util.find_spec("triton") is not None and _has_c_compiler())


def _has_c_compiler() -> bool:
    """Triton builds what starts its kernels by one, and images for inference have none."""
    return bool(os.environ.get("CC")) or any(map(shutil.which, ("gcc", "clang")))


def shared_bytes(device: torch.device) -> int:
    """The most shared memory that a program on a GPU may have."""
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)
