"""Which number first stopped being finite, and at which step: noted on the device, asked for now and then.

To look at every step from the host would make it wait for the device at every step.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch import distributed as dist

from trainer.contract import ExitCode, LdlmError, set_option

# Names of what is watched beside the parts' gradients, in the order in which one spoils the next.
HIDDEN_STATES = "hidden states of the token encoder"
FIX_HIDDEN_STATES = ("its weights are damaged or overflow: delete their local copy or mirror them anew "
                     "(`ldlm weights mirror`), or add "
                     f"{set_option('train.token_encoder.weights', 'bf16')}")
_LOSSES = ("L_h, the loss of the latent decoder", "L_w, the loss of the token decoder",
           "L_diff, the loss of the denoiser")
_NEVER = torch.iinfo(torch.int64).max


class DivergedError(LdlmError):
    """Training has produced numbers that are not finite."""

    node_exit_code = ExitCode.BROKEN


class DivergenceWatch:
    """Remembers the first step at which each watched number was not finite.

    Args:
        parts: Names of the trained parts.
        device: Where the watched numbers are.
    """

    def __init__(self, parts: Sequence[str], device: torch.device) -> None:
        self._places = [HIDDEN_STATES, *_LOSSES, *(f"the gradient of the {part}" for part in parts)]
        self._first = torch.full((len(self._places),), _NEVER, device=device)

    def note(self, step: int, values: Sequence[Tensor]) -> None:
        """Look at one step's numbers, without waiting for the device.

        Args:
            step: That ends with these, from 1.
            values: Scalars: anything that the hidden states would spoil, L_h, L_w, L_diff, then one
                gradient norm for each part.
        """
        finite = torch.isfinite(torch.stack([value.detach().float() for value in values]))
        now = torch.where(finite, _NEVER, step)
        self._first = torch.minimum(self._first, now)

    def found(self) -> tuple[int, list[str]] | None:
        """The first step at which any rank noted a number that is not finite, and where; or None.

        A collective. The places are in the order in which one spoils the next.
        """
        first = self._first.cpu()
        dist.all_reduce(first, op=dist.ReduceOp.MIN)
        step = int(first.min())
        if step == _NEVER:
            return None
        return step, [place for place, at in zip(self._places, first.tolist(), strict=True) if at == step]


def diverged_error(step: int, places: Sequence[str], durable_step: int,
                   precision: Literal["fp32", "bf16"]) -> DivergedError:
    """What to say of what `DivergenceWatch.found`.

    Args:
        step: The first bad one.
        places: What was not finite there.
        durable_step: Newest step with a checkpoint, 0 for none.
        precision: Of the run.
    """
    also = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    kept = f"the checkpoint of step {durable_step} is kept" if durable_step else "no checkpoint was due yet"
    return DivergedError(f"not finite any more at step {step}: {places[0]}{also}; {kept}",
                         fix=_fix(places[0], precision))


def _fix(place: str, precision: Literal["fp32", "bf16"]) -> str:
    if place == HIDDEN_STATES:
        return FIX_HIDDEN_STATES
    fix = "lower train.optimizer.learning_rate or raise train.optimizer.warmup_steps and launch again"
    if precision == "fp32":
        return f"{fix}; rounding is not the cause, precision is fp32 already"
    return (f"{fix}; if that does not help, {set_option('train.precision', 'fp32')} tells whether rounding "
            "is the cause")
