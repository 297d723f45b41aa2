"""Mean, spread and extremes of a token encoder's hidden states, measured once before training.

Ranks share the rows, and what they find does not depend on how many share: sums are kept for stretches
of rows, in float64, and added up in the order of the rows whoever has read them. Shapes: N sequences,
L tokens, D channels of a hidden state, P positions, G stretches.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from trainer.contract import ConfigError
from trainer.divergence import FIX_HIDDEN_STATES
from trainer.token_encoder import TokenEncoder

# Stretches of rows with a sum of their own: enough for as many ranks, 5 MiB of sums at 5,120 channels.
_NUM_STRETCHES = 64
# Positions at a time in float64; 5,120 channels: 160 MiB.
_POSITIONS_IN_FLOAT64 = 4096
# Positions kept until mean and deviation are known, to count what is cut: millions of values, and
# 80 MiB over all ranks at 5,120 channels.
_KEPT_POSITIONS = 4096


class HiddenStatistics(NamedTuple):
    """What normalises hidden states, and how far they go once normalised.

    Attributes:
        mean_D: float32, on the CPU.
        std_D: The same; at least 1e-6.
        largest: Largest magnitude after normalisation, before clipping, of all that was read.
        clipped: Share of values that clipping changes, of some thousand positions.
    """

    mean_D: Tensor
    std_D: Tensor
    largest: float
    clipped: float


def measure_statistics(encoder: TokenEncoder, rows_NL: np.ndarray,
                       kind: Literal["channel", "scalar"] = "channel", clip: float = float("inf"),
                       batch_size: int = 32) -> HiddenStatistics:
    """Statistics of hidden states over all of `rows_NL`. A collective: ranks bring the same rows.

    Args:
        encoder: Whose hidden states.
        rows_NL: Token ids; positions before `encoder.first_measured` do not count.
        kind: Of each channel, or one of all channels together, repeated for each.
        clip: Where normalised values are cut.
        batch_size: Sequences read at a time.

    Raises:
        ConfigError: Hidden states are not finite, on every rank alike.
    """
    seen = _Seen(encoder, rows_NL, batch_size)
    sums_GSD = _over_ranks(seen.sums_GSD)
    # An addition of zeros is exact, so each stretch is as its reader has left it.
    total_D, squares_D = sums_GSD.sum(0)
    if not squares_D.isfinite().all():
        raise ConfigError("hidden states of this encoder are not all finite numbers",
                          place=f"token_encoder.name: {encoder.name}", fix=FIX_HIDDEN_STATES)
    mean_D, square_D = total_D / seen.num_positions, squares_D / seen.num_positions
    if kind == "scalar":
        mean_D, square_D = (part.mean().expand_as(part) for part in (mean_D, square_D))
    std_D = (square_D - mean_D.square()).clamp(min=1e-12).sqrt().float()
    mean_D = mean_D.float().contiguous()
    lowest_D, highest_D = (_over_ranks(values_D, dist.ReduceOp.MAX) for values_D in seen.bounds_SD)
    largest = (torch.maximum(lowest_D + mean_D, highest_D - mean_D) / std_D).max().item()
    return HiddenStatistics(mean_D, std_D, largest, _share_beyond(clip, seen.kept_PD, mean_D, std_D))


class _Seen:
    """What this rank has read.

    Attributes:
        sums_GSD: Of values and squares in each stretch, float64; zeros where another rank has read.
        bounds_SD: Largest negated and largest plain value of each channel.
        kept_PD: Some of the hidden states.
        num_positions: Of all ranks together.
    """

    def __init__(self, encoder: TokenEncoder, rows_NL: np.ndarray, batch_size: int) -> None:
        num_rows, length = len(rows_NL), rows_NL.shape[1] - encoder.first_measured
        self.num_positions = num_rows * length
        every = -(-self.num_positions // _KEPT_POSITIONS)
        self.sums_GSD = torch.zeros(_NUM_STRETCHES, 2, encoder.hidden_size, dtype=torch.float64)
        self.bounds_SD = torch.full((2, encoder.hidden_size), -torch.inf)
        kept = [torch.zeros(0, encoder.hidden_size)]
        for first, stretch in _own_batches(num_rows, batch_size, encoder.is_collective):
            tokens = torch.from_numpy(rows_NL[first:first + batch_size].astype(np.int64))
            hidden_PD = encoder.hidden_states(tokens)[:, encoder.first_measured:].flatten(0, 1)
            if stretch is None:
                continue
            self.sums_GSD, self.bounds_SD = (
                found.to(hidden_PD.device) for found in (self.sums_GSD, self.bounds_SD))
            for piece_PD in hidden_PD.split(_POSITIONS_IN_FLOAT64):
                self.sums_GSD[stretch, 0] += piece_PD.double().sum(0)
                self.sums_GSD[stretch, 1] += piece_PD.double().square().sum(0)
            found_SD = torch.stack([-hidden_PD.amin(0), hidden_PD.amax(0)])
            self.bounds_SD = torch.maximum(self.bounds_SD, found_SD)
            kept.append(hidden_PD[-first * length % every::every].cpu())
        self.kept_PD = torch.cat(kept)


def _own_batches(num_rows: int, batch_size: int, is_collective: bool) -> Iterator[tuple[int, int | None]]:
    """First row and stretch of each batch that this rank reads.

    For an encoder that needs all ranks at once there are as many on each; those that are read for the
    others' sake belong to no stretch.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    num_batches = -(-num_rows // batch_size)
    stretches = [index * min(_NUM_STRETCHES, num_batches) // num_batches for index in range(num_batches)]
    counts = [sum(stretch % world_size == other for stretch in stretches) for other in range(world_size)]
    for index, stretch in enumerate(stretches):
        if stretch % world_size == rank:
            yield index * batch_size, stretch
    if is_collective:
        yield from [(0, None)] * (max(counts) - counts[rank])


def _over_ranks(values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
    """Values of all ranks put together, on the CPU."""
    values = values.cpu()
    if dist.is_initialized():
        dist.all_reduce(values, op=op)
    return values


def _share_beyond(clip: float, kept_PD: Tensor, mean_D: Tensor, std_D: Tensor) -> float:
    beyond = ((kept_PD - mean_D) / std_D).abs() > clip
    num_beyond, num = _over_ranks(torch.tensor([int(beyond.sum()), beyond.numel()])).tolist()
    return num_beyond / num
