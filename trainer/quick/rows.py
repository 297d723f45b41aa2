"""What maps read: rows in bfloat16, or in e4m3 with a scale for each; and the maps themselves.

Shapes: N rows, I and O inputs and outputs of a map, E experts, M rows in the order of experts.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.packed_blocks import SCALE_OF


class Rows(NamedTuple):
    """Rows that maps read.

    Attributes:
        plain: (N, I), bfloat16 or float32; None where nothing reads it.
        codes: (N, I), e4m3; None where maps are not multiplied in it.
        scale_N1: Float32, of each row of codes.
    """

    plain: Tensor | None
    codes: Tensor | None = None
    scale_N1: Tensor | None = None

    def of(self, index_M: Tensor) -> "Rows":
        """Some of them, each as often as it is named; plain ones only where there are no codes."""
        if self.codes is None or self.scale_N1 is None:
            assert self.plain is not None
            return Rows(self.plain[index_M])
        codes_MI = self.codes.view(torch.uint8)[index_M]  # as bytes: torch does not move e4m3 about
        return Rows(None, codes_MI.view(self.codes.dtype), self.scale_N1[index_M])


def product(rows: Rows, part: Any, name: str = "weight") -> Tensor:
    """A map of rows without bias, (N, O), in what its weight is held in.

    Args:
        rows: With codes where the weight is e4m3.
        part: A module.
        name: Of the weight, (O, I).
    """
    weight_OI = getattr(part, name)
    if weight_OI.dtype != torch.float8_e4m3fn:
        assert rows.plain is not None
        return F.linear(rows.plain, weight_OI)
    scale_1O = getattr(part, SCALE_OF + name)[None]
    return torch._scaled_mm(rows.codes, weight_OI.T, rows.scale_N1, scale_1O, out_dtype=torch.bfloat16,
                            use_fast_accum=True)


def grouped_product(rows: Rows, part: Any, name: str, ends_E: Tensor) -> Tensor:
    """Each expert's map of its rows, (M, O); the weight is (E, O, I)."""
    weight_EIO = getattr(part, name).transpose(1, 2)
    if weight_EIO.dtype != torch.float8_e4m3fn:
        return F.grouped_mm(rows.plain, weight_EIO, offs=ends_E)
    assert rows.scale_N1 is not None
    scale_EO = getattr(part, SCALE_OF + name).view(len(weight_EIO), -1)
    return torch._scaled_grouped_mm(rows.codes, weight_EIO, rows.scale_N1.flatten(), scale_EO, offs=ends_E,
                                    out_dtype=torch.bfloat16, use_fast_accum=True)


def is_fp8(part: Any, name: str = "weight") -> bool:
    """Whether a weight is multiplied in e4m3."""
    return bool(getattr(part, name).dtype == torch.float8_e4m3fn)
