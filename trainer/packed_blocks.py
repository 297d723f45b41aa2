"""The weights of one transformer block as one run of bytes, and the block that computes with them.

The layout is a pure function of names, shapes and format, so bytes alone need no description.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.config import WeightFormat
from trainer.encoder_shape import NF4_BLOCK
from trainer.quantise import decode_fp8, decode_nf4, encode_fp8, encode_nf4

# What kernels ask of the addresses of matrices, with room to spare (guess).
_ALIGNMENT = 256
# Small, and what they say steers the rest: convolutions, routers, the decay and gates of the recurrence.
_NEVER_QUANTISED = {"conv1d", "gate", "shared_expert_gate", "in_proj_a", "in_proj_b"}
SCALES = ".scales"
SCALE_OF = "scales_of_"  # before the name of a parameter that stays quantised: its scales, in the same module


@dataclass(frozen=True)
class PackedTensor:
    """Where one tensor lies in the bytes of its block.

    Attributes:
        dtype: Of the stored values or codes.
        offset: First byte of the values.
        num_values: Stored ones: of nf4 codes, two weights each.
        scale_offset: First byte of the scales.
        num_scales: 0 where values are stored as they are.
    """

    name: str
    shape: tuple[int, ...]
    format: WeightFormat
    dtype: torch.dtype
    offset: int
    num_values: int
    scale_offset: int = 0
    num_scales: int = 0

    @property
    def scale_dtype(self) -> torch.dtype:
        """bfloat16 for nf4, float32 for fp8."""
        return torch.bfloat16 if self.format == "nf4" else torch.float32

    def values(self, packed: Tensor) -> Tensor:
        """The stored values or codes, flat: a view of the block's bytes."""
        return _view(packed, self.offset, self.num_values, self.dtype)

    def scales(self, packed: Tensor) -> Tensor:
        """The scales: a view of the block's bytes."""
        return _view(packed, self.scale_offset, self.num_scales, self.scale_dtype)


@dataclass(frozen=True)
class Layout:
    """Where the tensors of one block lie."""

    tensors: tuple[PackedTensor, ...]
    num_bytes: int


def is_quantised(name: str, shape: tuple[int, ...]) -> bool:
    """True for the matrices, experts included; norms, convolutions, routers and gates keep their bits."""
    num_weights = torch.Size(shape).numel()
    return len(shape) >= 2 and num_weights % NF4_BLOCK == 0 and not _NEVER_QUANTISED & set(name.split("."))


def packed_layout(shapes: Mapping[str, tuple[int, ...]], weights: WeightFormat,
                  dtype: torch.dtype = torch.bfloat16) -> Layout:
    """The layout of a block.

    Args:
        shapes: Of its parameters, by name, in the block's order.
        weights: Format of the matrices.
        dtype: Of what is not quantised.
    """
    tensors, end = [], 0
    for name, shape in shapes.items():
        tensor = _placed(name, tuple(shape), weights if is_quantised(name, shape) else "bf16", dtype, end)
        tensors.append(tensor)
        end = _aligned(max(tensor.offset + tensor.num_values * tensor.dtype.itemsize,
                           tensor.scale_offset + tensor.num_scales * tensor.scale_dtype.itemsize))
    return Layout(tuple(tensors), end)


def pack(tensors: Mapping[str, Tensor], layout: Layout, device: torch.device | str) -> Tensor:
    """The bytes of a block, uint8 on `device`.

    Args:
        tensors: Its parameters by name, on any device. One that comes with `<name>.scales` is in the
            layout's format already, and copied as it is.
        layout: Names, shapes and format.
        device: Where quantising is done and the bytes lie.
    """
    packed = torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device)
    for entry in layout.tensors:
        values = tensors[entry.name].to(device, non_blocking=True)
        if entry.name + SCALES in tensors:
            entry.values(packed).copy_(values.reshape(-1))
            entry.scales(packed).copy_(tensors[entry.name + SCALES].reshape(-1))
        elif entry.format == "nf4":
            encode_nf4(values, entry.values(packed), entry.scales(packed))
        elif entry.format == "fp8":
            encode_fp8(values, entry.values(packed), entry.scales(packed))
        else:
            entry.values(packed).copy_(values.reshape(-1))
    return packed


def unpacked(packed: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Stored values and scales by name, views of the bytes: what `pack` takes as it is."""
    named = {}
    for entry in layout.tensors:
        values = entry.values(packed)
        named[entry.name] = values if entry.num_scales else values.view(entry.shape)
        if entry.num_scales:
            named[entry.name + SCALES] = entry.scales(packed)
    return named


def decode(packed: Tensor, layout: Layout, slot: Tensor, slot_layout: Layout) -> None:
    """Write the weights of a packed block into a slot, with less than 64 MiB of temporaries.

    Args:
        packed: uint8 bytes of the block.
        layout: Of `packed`.
        slot: uint8 bytes that a block computes with.
        slot_layout: Of `slot`: the same tensors, none of them quantised.
    """
    for source, target in zip(layout.tensors, slot_layout.tensors, strict=True):
        weights = target.values(slot)
        if source.format == "nf4":
            decode_nf4(source.values(packed), source.scales(packed), weights)
        elif source.format == "fp8":
            decode_fp8(source.values(packed), source.scales(packed), weights)
        else:
            weights.copy_(source.values(packed))


def parameter_shapes(block: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's parameters by name, in its order."""
    return {name: tuple(parameter.shape) for name, parameter in block.named_parameters()}


def bind(block: nn.Module, slot: Tensor, layout: Layout) -> None:
    """Let a block's parameters be views of a slot, whatever they were (on the meta device, say).

    What is quantised there in fp8 stays so, with its scales, one a row, beside it in its module.
    """
    for entry in layout.tensors:
        path, _, leaf = entry.name.rpartition(".")
        owner, view = block.get_submodule(path), entry.values(slot).view(entry.shape)
        setattr(owner, leaf, nn.Parameter(view, requires_grad=False))
        if entry.num_scales:
            setattr(owner, SCALE_OF + leaf, entry.scales(slot))


def _placed(name: str, shape: tuple[int, ...], weights: WeightFormat, dtype: torch.dtype,
            offset: int) -> PackedTensor:
    num_weights = torch.Size(shape).numel()
    if weights == "bf16":
        return PackedTensor(name, shape, weights, dtype, offset, num_weights)
    if weights == "nf4":
        stored, num_values, num_scales = torch.uint8, num_weights // 2, num_weights // NF4_BLOCK
    else:
        stored, num_values, num_scales = torch.float8_e4m3fn, num_weights, num_weights // shape[-1]
    return PackedTensor(name, shape, weights, stored, offset, num_values,
                        _aligned(offset + num_values), num_scales)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _view(packed: Tensor, offset: int, count: int, dtype: torch.dtype) -> Tensor:
    return packed[offset:offset + count * dtype.itemsize].view(dtype)
