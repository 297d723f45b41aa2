"""A device without room for something: said, not raised."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

_T = TypeVar("_T")
_NO_ROOM = ("out of memory", "allocate memory")  # of CUDA, its graphs among it, and of a CPU


def if_room(work: Callable[[], _T]) -> _T | None:
    """What some work gives; None where the device has no memory for it. Another error is raised again."""
    try:
        return work()
    except RuntimeError as error:
        if not any(words in str(error) for words in _NO_ROOM):
            raise
    free_memory()
    return None


def free_memory() -> None:
    """Give the device back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
