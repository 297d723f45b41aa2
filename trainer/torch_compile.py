"""What torch compiles of training."""

import functools
from collections.abc import Callable
from typing import Any

import torch


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function, compiled once for all that has the same sizes.

    Kernels are not chosen by trying them out: another machine would choose others, and add in another order.
    """
    return torch.compile(function, fullgraph=True, dynamic=False, options={"deterministic": True})
