"""How many bytes of tensors are alive at once, on any device, the one without data (meta) included."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that are alive at once, without those of some that were there before."""

    def __init__(self, *before: torch.Tensor) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._before = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._before:
                    self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        alive = [size for reference, size in self._storages.values() if not reference.expired()]
        self.peak = max(self.peak, sum(alive))
        return result
