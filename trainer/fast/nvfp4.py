"""Linear maps in 4 bits. Speed and products of tensor cores: never run, for want of a Blackwell card.

Shapes: N positions, I and O inputs and outputs of a map.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.quantise import Nvfp4, encode_nvfp4, unscaled_nvfp4

_LEAST_CAPABILITY = (10, 0)
_INPUTS, _OUTPUTS = 32, 16  # torch multiplies matrices in fp4 whose sides divide by these
_WEIGHTS_AT_A_TIME = 4 * 2**20  # some 30 bytes each while they are encoded: 120 MiB (arithmetic)
_TILE_ROWS, _TILE_COLUMNS = 128, 4  # of block scales


class Nvfp4Map(nn.Module):
    """A linear map in NVFP4, both what it reads and its weight.

    Where there are no tensor cores for it the same rounded numbers are multiplied in bfloat16, which has
    all of them exactly: the error is that of 4 bits, the speed says nothing.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows = max(1, _WEIGHTS_AT_A_TIME // linear.in_features)
        coded = [encode_nvfp4(piece) for piece in linear.weight.split(rows)]
        is_native = multiplies_nvfp4(linear.weight.device)
        self.weight = torch.cat([part.codes if is_native else unscaled_nvfp4(part) for part in coded])
        self.block_scales = tiled(torch.cat([part.block_scales for part in coded])) if is_native else None
        self.scale_1O, self.bias_O = torch.cat([part.row_scales for part in coded]).T, linear.bias

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """True for a map that torch can multiply so."""
        return linear.in_features % _INPUTS == 0 and linear.out_features % _OUTPUTS == 0

    def forward(self, x: Tensor) -> Tensor:
        coded = encode_nvfp4(x.flatten(0, -2))
        if self.block_scales is None:
            product_NO = F.linear(unscaled_nvfp4(coded), self.weight)
        else:
            product_NO = unscaled_product(coded, self.weight, self.block_scales)
        found_NO = product_NO.float() * coded.row_scales * self.scale_1O + self.bias_O
        return found_NO.to(torch.bfloat16).unflatten(0, x.shape[:-1])


def unscaled_product(x: Nvfp4, codes: Tensor, block_scales: Tensor) -> Tensor:
    """Rows by rows of a matrix (N, O), bfloat16, on tensor cores, without the scales of either's rows.

    Args:
        x: N rows.
        codes: Of O rows as long.
        block_scales: Of these, `tiled`.
    """
    fp4 = torch.float4_e2m1fn_x2
    return torch._scaled_mm(x.codes.view(fp4), codes.view(fp4).T, tiled(x.block_scales), block_scales,
                            out_dtype=torch.bfloat16)


def tiled(scales: Tensor) -> Tensor:
    """Block scales in the order in which tensor cores read them, one after the other.

    Tiles of 128 rows and 4 columns, filled up with zeros; in each, rows 32 apart lie beside each other
    (cuBLAS, "1D Block Scaling Factors Layout").
    """
    num_rows, num_columns = scales.shape
    beside = (0, -num_columns % _TILE_COLUMNS, 0, -num_rows % _TILE_ROWS)
    padded = F.pad(scales.view(torch.uint8), beside)
    tiles = padded.view(-1, 4, 32, padded.shape[1] // _TILE_COLUMNS, _TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).flatten().view(torch.float8_e4m3fn)


@functools.cache
def multiplies_nvfp4(device: torch.device) -> bool:
    """Whether its tensor cores do, and torch reaches them: a small product is tried against bfloat16's."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return False
    chance = torch.Generator(device).manual_seed(0)
    x, weight = (encode_nvfp4(torch.randn(num, 256, device=device, generator=chance)) for num in (64, 256))
    try:
        found_NO = unscaled_product(x, weight.codes, tiled(weight.block_scales))
    except (RuntimeError, ValueError):  # as torch refuses what a device or a version does not have
        return False
    expected_NO = F.linear(unscaled_nvfp4(x), unscaled_nvfp4(weight))
    return bool((found_NO - expected_NO).norm() < 0.01 * expected_NO.norm())
