"""Where the frozen weights of a token encoder lie, and how they come to where they compute."""

import os
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

from trainer.block_feeds import FedBlocks, Feed, HeldFeed, HostFeed, ShardedFeed, share_of
from trainer.config import Placement, Products, WeightFormat
from trainer.contract import ConfigError, set_option
from trainer.encoder_weights import Weights
from trainer.fast.weights import multiplies_fp8
from trainer.packed_blocks import Layout, bind, pack, packed_layout, parameter_shapes
from trainer.page_locked import page_locked
from trainer.quick.blocks import quicken, why_not_quick
from trainer.trunk import build_trunk, family_of


def placed_trunk(weights: Weights, held_as: WeightFormat, placement: Placement, device: torch.device,
                 products: Products = "bf16") -> nn.Module:
    """A trunk that computes on `device`, its blocks' weights held as asked.

    One block at a time is read, so host memory holds little more than what stays there. On a CPU bf16
    means float32: weights are held and computed with in float32.

    Args:
        weights: Where they come from: in `held_as`, or in bf16 and quantised here.
        held_as: Format of the blocks' matrices.
        placement: `gpu` and `next_gpu` hold them on `device`, `host` in page-locked host memory,
            `sharded` in equal shares on the ranks of this node, which all call this together.
        device: Where it computes.
        products: What matrices are multiplied in; `fp8` only of weights held so, which stay as they are.

    Raises:
        ConfigError: The weights are missing, damaged or another model's, `sharded` without ranks, or these
            products cannot be made here.
    """
    why_not = why_not_quick(weights.config, device)
    if products == "fp8":
        _check_fp8(why_not, device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    kept_dtype = dtype if held_as == "bf16" else torch.bfloat16
    trunk = build_trunk(weights.config, weights.outer(), dtype, device)
    blocks = family_of(weights.config).block_list(trunk)
    shapes = [parameter_shapes(block) for block in blocks]
    layouts = [packed_layout(named, held_as, kept_dtype) for named in shapes]
    keeper = _keeper(placement, device)
    held = [keeper.keep(pack(_block(weights, index, layout, kept_dtype), layout, device))
            for index, layout in enumerate(layouts)]
    if held_as == "bf16" and isinstance(keeper, _OnDevice):
        for block, packed, layout in zip(blocks, held, layouts, strict=True):
            bind(block, packed, layout)
    else:
        slot_layouts = layouts if products == "fp8" else [
            packed_layout(named, "bf16", dtype) for named in shapes]
        FedBlocks(blocks, keeper.feed(held), layouts, slot_layouts, device)
    if why_not is None:
        quicken(blocks)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what packing has used would lie idle beside the training
    return trunk


def _check_fp8(why_not_quick: str | None, device: torch.device) -> None:
    why_not = why_not_quick or ("" if multiplies_fp8(device) else f"{device} multiplies no matrices in e4m3")
    if why_not:
        raise ConfigError(f"the encoder cannot multiply in fp8 here: {why_not}",
                          place="token_encoder.products",
                          fix=f"add {set_option('train.token_encoder.products', 'bf16')}")


def _block(weights: Weights, index: int, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = weights.block(index, dtype)
    lost = [entry.name for entry in layout.tensors if entry.name not in tensors]
    if lost:
        raise ConfigError(f"block {index} lacks {lost[0]}: another version of transformers wrote it",
                          place=str(weights.folder), fix="write the mirror again: ldlm weights mirror")
    return tensors


class _Keeper(Protocol):
    """Stores packed blocks one by one, and feeds them later."""

    def keep(self, packed: Tensor) -> Tensor:
        """What of a block's bytes stays, wherever that is."""

    def feed(self, held: list[Tensor]) -> Feed:
        """Brings what `keep` has stored."""


class _OnDevice:
    def keep(self, packed: Tensor) -> Tensor:
        return packed

    def feed(self, held: list[Tensor]) -> Feed:
        return HeldFeed(held)


class _OnHost:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def keep(self, packed: Tensor) -> Tensor:
        return _page_locked(packed, self._device) if self._device.type == "cuda" else packed.cpu()

    def feed(self, held: list[Tensor]) -> Feed:
        return HostFeed(held, self._device)


class _OnRanks:
    def __init__(self, device: torch.device) -> None:
        self._device, self._group = device, _node_group()

    def keep(self, packed: Tensor) -> Tensor:
        return share_of(packed, self._group)

    def feed(self, held: list[Tensor]) -> Feed:
        return ShardedFeed(held, self._group, self._device)


def _page_locked(packed: Tensor, device: torch.device) -> Tensor:
    try:
        held = page_locked(packed.numel(), device)
    except MemoryError as error:
        raise ConfigError(f"the host gives no page-locked memory for weights: {error}",
                          place="token_encoder.placement: host",
                          fix="allow it (ulimit -l unlimited; --ulimit memlock=-1 for containers)") from error
    return held.copy_(packed)


def _keeper(placement: Placement, device: torch.device) -> _Keeper:
    if placement == "host":
        return _OnHost(device)
    return _OnRanks(device) if placement == "sharded" else _OnDevice()


def _node_group() -> Any:
    """A process group of its own for the ranks of this node; every rank of every node makes all of them."""
    if not dist.is_initialized():
        raise ConfigError("`sharded` needs several processes under torchrun",
                          place="token_encoder.placement",
                          fix=f"add {set_option('train.token_encoder.placement', 'gpu')} (or host)")
    world_size = dist.get_world_size()
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or world_size)
    groups = [dist.new_group(list(range(first, first + per_node)))
              for first in range(0, world_size, per_node)]
    return groups[dist.get_rank() // per_node]
