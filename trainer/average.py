"""The running average of all trained weights, shared out over the ranks like the optimizer's state.

Parts are averaged together, since they are only ever used with each other. Each rank averages the
float32 master weights that it owns, so the average costs 4 bytes a parameter over all ranks, and there
is no second model: `applied` lends the engine's own module the averaged weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average on one rank. Starts at the weights that the engine holds.

    Args:
        engine: DeepSpeed engine in ZeRO stage 1 or 2 whose optimizer was made from `parameter_groups`
            of `engine.module.parts()`.
        decay: Share of the old average that each step keeps, after a ramp.

    Attributes:
        values: This rank's share, one flat tensor for each parameter group.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self._engine = engine
        self._decay = decay
        self.values = [master.detach().clone() for master in self._masters()]

    def _masters(self) -> list[Tensor]:
        """Flat float32 weights that this rank's optimizer moves, one tensor for each group."""
        return [group["params"][0] for group in self._engine.optimizer.param_groups]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, from 0."""
        # Early averages would be dominated by the random start: the usual (1 + s) / (10 + s) ramp.
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self._masters(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The engine's module with the averaged weights in it, in evaluation mode. A collective.

        Its own weights come back to the bit afterwards.
        """
        module = self._engine.module
        self._exchange()
        module.eval()
        try:
            yield module
        finally:
            module.train()
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for i, master in enumerate(self._masters()):
            self.values[i], master.data = master.data, self.values[i]
        self._engine.optimizer.update_lp_params()
