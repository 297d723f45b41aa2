"""What the next steps depend on beside the step's number: master weights, Adam's moments, the average.

DeepSpeed lays the parameters of a group end to end and gives every rank an equal stretch of that vector
(stages 1 and 2, 0.19.8). So a rank's state is four stretches for each group, whatever the number of ranks,
and another number of ranks only cuts the same vectors elsewhere.

**Eleven bytes a parameter, exactly.** Every `optimizer.round_steps` steps moments and average are rounded, in
place, to what a checkpoint holds of them: the momentum and the average's distance from the weights in
bfloat16, the variance in 24 bits. A run that is interrupted and one that is not therefore go on from the same
numbers, to the bit, whenever they were saved. A save between two such steps holds all in float32, 16 bytes.

Rounding must not hold a moment back. In ten steps the variance moves by 1 % of its distance from the newest
squares (its decay is 0.999), less than bfloat16 can tell apart (0.4 %), so it would stick; 24 bits tell
0.001 %. The momentum forgets two thirds of itself in that time, and the weights move under the average.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from trainer.average import WeightAverage
from trainer.pieces import STORED_BYTES, DType, Kind, Stretch
from trainer.rounding import rounding_on

# 1 GiB of float32, rounded in 512 MiB of their own at the beginning of a forward pass, when there is room.
# With a quarter of it the step after a save takes 12 ms more (measured).
_STRETCH_ELEMENTS = 2**28
_MOMENTS: dict[Kind, str] = {"momentum": "exp_avg", "variance": "exp_avg_sq"}  # torch's names
_FULL: dict[Kind, DType] = {"master": "float32", "momentum": "float32", "variance": "float32",
                            "average": "float32"}
_ROUNDED: dict[Kind, DType] = {"master": "float32", "momentum": "bfloat16", "variance": "float24",
                               "average_delta": "bfloat16"}
TORCH: dict[DType, torch.dtype] = {"float32": torch.float32, "float24": torch.float32,
                                  "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class _Share:
    """What a rank owns of one group, without the padding at the vector's end."""

    begin: int
    count: int


class TrainState:
    """The state on one rank.

    Args:
        engine: DeepSpeed engine in ZeRO stage 1 or 2.
        average: Of its weights.
        group_sizes: Elements of each parameter group, over all ranks.
        round_steps: Steps from one rounding to the next.
    """

    def __init__(self, engine: Any, average: WeightAverage, group_sizes: list[int], round_steps: int) -> None:
        self._optimizer = engine.optimizer
        self._average = average
        self._round_steps = round_steps
        self._num_elements = sum(group_sizes)
        self._rounded_at = 0
        self._rounding = rounding_on(self._masters()[0].device)
        self._shares = []
        for master, size in zip(self._masters(), group_sizes, strict=True):
            begin = min(dist.get_rank() * master.numel(), size)
            self._shares.append(_Share(begin, min(master.numel(), size - begin)))

    def begin_reading(self, step: int) -> bool:
        """To be called before a save reads the state after a step. Returns whether it holds it rounded.

        Only once for a step: to round twice is not always to round once. After a save that failed, the next
        one of the same step holds all in float32, rounded as it is.
        """
        is_due = step % self._round_steps == 0 and self._rounded_at != step
        self._rounded_at = step if is_due else self._rounded_at
        return is_due

    def saved_bytes(self, step: int | None) -> int:
        """What a save of a step holds, of all ranks, before it is compressed; None: the most of any step."""
        is_due = self._round_steps == 1 if step is None else step % self._round_steps == 0
        kept = _ROUNDED if is_due else _FULL
        return self._num_elements * sum(STORED_BYTES[dtype] for dtype in kept.values())

    def stretches(self, *, rounded: bool) -> Iterator[Stretch]:
        """This rank's state, cut so that working on one takes little memory."""
        for group, share in enumerate(self._shares):
            for first in range(0, share.count, _STRETCH_ELEMENTS):
                count = min(_STRETCH_ELEMENTS, share.count - first)
                for kind, dtype in (_ROUNDED if rounded else _FULL).items():
                    yield Stretch(kind, dtype, group, share.begin + first, count)

    @torch.no_grad()
    def read(self, stretch: Stretch) -> Tensor:
        """Its numbers, on the device. What is stored in fewer bits than it has is rounded in place."""
        live = self._live(stretch.kind, stretch)
        if stretch.kind == "average_delta":
            return self._rounding.to_distance(live, self._live("master", stretch))
        if stretch.dtype == "float24":
            return self._rounding.to_24_bits(live)
        return live if stretch.dtype == "float32" else self._rounding.to_bfloat16(live)

    @torch.no_grad()
    def write(self, stretch: Stretch, values: Tensor) -> None:
        """Put numbers where `read` took them from; `average_delta` after `master`."""
        live = self._live(stretch.kind, stretch)
        if stretch.kind == "average_delta":
            torch.add(self._live("master", stretch), values.to(live.device), out=live)
        else:
            live.copy_(values)

    def begin_writing(self, step: int) -> None:
        """Make room for the state after `step` steps; `write` every stretch, then `end_writing`."""
        self._rounded_at = step
        for master in self._masters():
            # As torch.optim.AdamW does at its first step: it counts on the host.
            self._optimizer.optimizer.state[master] = {
                "step": torch.tensor(float(step)),
                **{name: torch.zeros_like(master.detach()) for name in _MOMENTS.values()}}

    def end_writing(self) -> None:
        """Give the model the weights that were written. A collective."""
        self._optimizer.update_lp_params()

    def round(self, step: int) -> None:
        """Before the next step: round moments and average in place, if it is time and no save has."""
        if step % self._round_steps == 0 and self._rounded_at != step:
            self._rounded_at = step
            for stretch in self.stretches(rounded=True):
                if stretch.dtype != "float32":
                    self.read(stretch)

    def _live(self, kind: Kind, stretch: Stretch) -> Tensor:
        """The numbers that training uses."""
        master = self._masters()[stretch.group]
        if kind in _MOMENTS:
            vector = self._optimizer.optimizer.state[master][_MOMENTS[kind]]
        else:
            vector = master if kind == "master" else self._average.values[stretch.group]
        own: Tensor = vector.detach()
        return own.narrow(0, stretch.begin - self._shares[stretch.group].begin, stretch.count)

    def _masters(self) -> list[Tensor]:
        return [group["params"][0] for group in self._optimizer.param_groups]
