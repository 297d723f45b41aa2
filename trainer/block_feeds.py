"""Blocks whose weights are not where they compute: brought, decoded and bound just before each runs.

A feed brings the packed bytes of a block to the device. Two staging buffers take turns, so that the
next block travels while this one computes.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

from trainer.packed_blocks import Layout, bind, decode

_NUM_STAGES = 2


class Feed(Protocol):
    """Brings the bytes of one block after the other.

    Attributes:
        stages: Buffers that the bytes arrive in, block i in `stages[i % len(stages)]`.
    """

    stages: Sequence[Tensor]

    def start(self, index: int) -> None:
        """Begin to bring a block, once everything queued so far has used its stage."""

    def finish(self, index: int) -> None:
        """Let the work that is queued from now on see a started block."""


class HeldFeed:
    """Every block stays packed on the device."""

    def __init__(self, blocks: Sequence[Tensor]) -> None:
        self.stages = blocks

    def start(self, index: int) -> None:
        """Nothing has to move."""

    def finish(self, index: int) -> None:
        """Nothing has to arrive."""


class HostFeed:
    """Blocks lie in host memory, page-locked, and are copied by a stream of their own."""

    def __init__(self, blocks: Sequence[Tensor], device: torch.device) -> None:
        self._blocks = blocks
        self.stages = _stages(max(map(len, blocks)), len(blocks), device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, index: int) -> None:
        block = self._blocks[index]
        stage = self.stages[index % len(self.stages)][:len(block)]
        if self._stream is None:
            stage.copy_(block)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            stage.copy_(block, non_blocking=True)

    def finish(self, index: int) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


class ShardedFeed:
    """Each rank of a group holds an equal share of every block's bytes; a gather makes it whole."""

    def __init__(self, shares: Sequence[Tensor], group: Any, device: torch.device) -> None:
        self._shares, self._group = shares, group
        self._world_size = dist.get_world_size(group)
        self.stages = _stages(max(map(len, shares)) * self._world_size, len(shares), device)
        self._started: dict[int, Any] = {}

    def start(self, index: int) -> None:
        share = self._shares[index]
        whole = self.stages[index % len(self.stages)][:len(share) * self._world_size]
        self._started[index] = dist.all_gather_into_tensor(whole, share, group=self._group, async_op=True)

    def finish(self, index: int) -> None:
        self._started.pop(index).wait()


def share_of(packed: Tensor, group: Any) -> Tensor:
    """This rank's share of a block's bytes; the last one is filled up with zeros."""
    world_size, rank = dist.get_world_size(group), dist.get_rank(group)
    length = -(-len(packed) // world_size)
    share = torch.zeros(length, dtype=packed.dtype, device=packed.device)
    own = packed[rank * length:(rank + 1) * length]
    share[:len(own)] = own
    return share


class FedBlocks:
    """Hooks that bring each block its weights before it runs.

    Blocks in a format that needs decoding share one slot; others compute on the stages themselves.
    """

    def __init__(self, blocks: Sequence[nn.Module], feed: Feed, layouts: Sequence[Layout],
                 slot_layouts: Sequence[Layout], device: torch.device) -> None:
        """Bind the blocks' parameters and hook into their calls.

        Args:
            blocks: In the order in which they run, their parameters of any kind, on the meta device say.
            feed: Brings their bytes.
            layouts: Of what the feed brings, by block.
            slot_layouts: Of what they compute with, by block.
            device: Where they compute.
        """
        self._feed, self._layouts, self._slot_layouts = feed, layouts, slot_layouts
        self._arriving: int | None = None
        self._slot: Tensor | None = None
        if layouts != slot_layouts:
            num_bytes = max(layout.num_bytes for layout in slot_layouts)
            self._slot = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        for index, block in enumerate(blocks):
            bind(block, self._stage(index) if self._slot is None else self._slot, slot_layouts[index])
            block.register_forward_pre_hook(lambda _block, _inputs, index=index: self._prepare(index))

    def _stage(self, index: int) -> Tensor:
        return self._feed.stages[index % len(self._feed.stages)]

    def _prepare(self, index: int) -> None:
        if self._arriving != index:
            self._feed.start(index)
        self._feed.finish(index)
        self._arriving = None
        if index + 1 < len(self._layouts):
            self._feed.start(index + 1)
            self._arriving = index + 1
        if self._slot is not None:
            decode(self._stage(index), self._layouts[index], self._slot, self._slot_layouts[index])


def _stages(num_bytes: int, num_blocks: int, device: torch.device) -> list[Tensor]:
    return [torch.zeros(num_bytes, dtype=torch.uint8, device=device)
            for _ in range(min(_NUM_STAGES, num_blocks))]
