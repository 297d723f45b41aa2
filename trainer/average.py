"""The running average of all trained weights, shared out over the ranks like the optimizer's state.

Parts are averaged together, since they are only ever used with each other. Each rank averages the
float32 master weights that it owns, so the average costs 4 bytes a parameter over all ranks, and there
is no second model: `applied` lends the engine's own module the averaged weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from trainer.gradients import parameter_groups

_AT = "@"  # between a parameter's name and where in it a fragment begins


class Fragment(NamedTuple):
    """A stretch of one parameter that lies in this rank's share.

    Attributes:
        name: Of the parameter in the model.
        offset: Where it begins in the flattened parameter.
        group: Parameter group of the optimizer.
        begin: Where it begins in the rank's share of that group.
        length: Elements.
    """

    name: str
    offset: int
    group: int
    begin: int
    length: int

    @property
    def key(self) -> str:
        """Its name in a file of averages: `denoiser.input.weight@4096`."""
        return f"{self.name}{_AT}{self.offset}"


class WeightAverage:
    """The average on one rank. Starts at the weights that the engine holds.

    Args:
        engine: DeepSpeed engine in ZeRO stage 1 or 2 whose optimizer was made from `parameter_groups`
            of `engine.module.parts()`.
        decay: Share of the old average that each step keeps, after a ramp.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self._engine = engine
        self._decay = decay
        self._averages = [master.detach().clone() for master in self._masters()]
        shares = [len(average) for average in self._averages]
        self._fragments = list(_fragments(engine.module, shares, dist.get_rank()))

    def _masters(self) -> list[Tensor]:
        """Flat float32 weights that this rank's optimizer moves, one tensor for each group."""
        return [group["params"][0] for group in self._engine.optimizer.param_groups]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, from 0."""
        # Early averages would be dominated by the random start: the usual (1 + s) / (10 + s) ramp.
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._masters(), 1 - decay)

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
            self._averages[i], master.data = master.data, self._averages[i]
        self._engine.optimizer.update_lp_params()

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's fragments by key, copied to host memory."""
        return {fragment.key: self._view(fragment).to("cpu", copy=True) for fragment in self._fragments}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave on the same rank of as many."""
        for fragment in self._fragments:
            self._view(fragment).copy_(state[fragment.key])

    def _view(self, fragment: Fragment) -> Tensor:
        return self._averages[fragment.group].narrow(0, fragment.begin, fragment.length)


def assembled(fragments: dict[str, Tensor], shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Whole tensors out of the fragments of all ranks; what is no fragment passes through.

    Args:
        fragments: Of all ranks, by key.
        shapes: Of each parameter that was averaged.
    """
    pieces: dict[str, dict[int, Tensor]] = {}
    for key, tensor in fragments.items():
        name, _, offset = key.partition(_AT)
        pieces.setdefault(name, {})[int(offset or 0)] = tensor
    return {name: torch.cat([found[offset] for offset in sorted(found)]).reshape(shapes[name])
            if name in shapes else found[0] for name, found in pieces.items()}


def _fragments(module: nn.Module, shares: list[int], rank: int) -> Iterator[Fragment]:
    """What lies in one rank's shares: DeepSpeed puts a group end to end and cuts it into equal ones."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group, (values, share) in enumerate(zip(parameter_groups(module.parts(), 0.0), shares, strict=True)):
        first, end = rank * share, (rank + 1) * share
        position = 0
        for parameter in values["params"]:
            begin, stop = max(position, first), min(position + parameter.numel(), end)
            if begin < stop:
                yield Fragment(names[id(parameter)], begin - position, group, begin - first, stop - begin)
            position += parameter.numel()
