"""A copy of a rank's state in host memory, taken while training goes on.

On a GPU the copy runs on a stream of its own beside the next forward and backward pass, which change no
weights; `settle` makes the optimizer's step wait for it, on the device. The memory is pinned, kept and used
again. Without a GPU the copy is made at once.
"""

import threading
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from trainer.page_locked import page_locked
from trainer.piece_codec import Copied, Raw
from trainer.pieces import ITEM_BYTES, Stretch
from trainer.train_state import TrainState

_ALIGNED = 64  # bytes: views of every type begin there


class Snapshot:
    """Host memory of one rank for one copy at a time. Begins to take it at once, which for GBs takes seconds.

    Args:
        device: Where the state lies.
        num_bytes: That a copy will need, as a rule.
    """

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None
        self._taking = threading.Thread(target=self._take_memory, args=(num_bytes,), name="pinned memory")
        self._taking.start()

    def take(self, state: TrainState, rest: Mapping[str, Tensor], *,
             rounded: bool) -> tuple[list[Copied], dict[str, Tensor]]:
        """Begin to copy; what is returned is whole after `wait`, and until the next `take`.

        Args:
            rest: Small tensors that belong to it.
        """
        stretches = list(state.stretches(rounded=rounded))
        sizes = [stretch.count * ITEM_BYTES[stretch.dtype] for stretch in stretches]
        slots = iter(self._slots([*sizes, *(tensor.nbytes for tensor in rest.values())]))
        if self._stream is None:
            return self._copy(state, stretches, rest, slots)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            found = self._copy(state, stretches, rest, slots)
            self._copied = torch.cuda.Event()
            self._copied.record(self._stream)
        return found

    def settle(self) -> None:
        """Before anything copied may change: what is queued on the device from now on waits for the copy."""
        if self._stream is not None and self._copied is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._copied)

    def wait(self) -> None:
        """Return when the copy is whole."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, state: TrainState, stretches: list[Stretch], rest: Mapping[str, Tensor],
              slots: Iterable[Tensor]) -> tuple[list[Copied], dict[str, Tensor]]:
        slots = iter(slots)
        copied = []
        for stretch in stretches:
            values, slot = state.read(stretch), next(slots)
            slot.view(values.dtype).copy_(values, non_blocking=True)
            copied.append(Copied(stretch, slot.numpy()))
            del values  # before the next is made: the device has room for one
        kept = {}
        for (name, tensor), slot in zip(rest.items(), slots, strict=True):
            kept[name] = slot.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
        return copied, kept

    def _slots(self, sizes: list[int]) -> list[Tensor]:
        """Memory for each of some numbers of bytes."""
        self._taking.join()
        begins = np.cumsum([0, *(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]).tolist()
        if begins[-1] > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)  # given back before the larger one is there
            self._take_memory(begins[-1])
        return [self._memory[begin:begin + size] for begin, size in zip(begins, sizes, strict=False)]

    def host_memory(self, num_bytes: int) -> Raw:
        """Some MiB from which the device copies at the full rate of the bus."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._stream is not None).numpy()

    def _take_memory(self, num_bytes: int) -> None:
        self._memory = (page_locked(num_bytes, self._stream.device) if self._stream is not None
                        else torch.empty(num_bytes, dtype=torch.uint8))
