"""Everything the launcher raises on purpose, each with the exit code of the `ldlm` command.

Exit codes: 1 problem or refused prompt, 2 usage, 3 recipe, 4 no offer within limits, 5 engine,
6 run record or store. `main()` is the only catcher.
"""

from collections.abc import Mapping

from trainer.contract import ConfigError, LdlmError, StoreError

__all__ = ["ConfigError", "DoesNotFitError", "EngineError", "LdlmError", "NoOfferError", "OverCapError",
           "RecipeError", "Refused", "RunRecordError", "StoreError", "UsageError"]


class Refused(LdlmError):
    """The user said no, or nobody was there to say yes."""

    cli_exit_code = 1


class UsageError(LdlmError):
    """The command line asks for something that does not go together."""

    cli_exit_code = 2


class _Changeable(LdlmError):
    """What values of the recipe would put right.

    Attributes:
        changes: New values by dotted name (`train.micro_batch_size`, `limits.max_cost_usd`); planning
            makes of them what to type, together with what else would stand in the way.
        note: Said behind what to type.
    """

    def __init__(self, problem: str, *, place: str | None = None, fix: str | None = None,
                 changes: Mapping[str, object] | None = None, note: str = "") -> None:
        super().__init__(problem, place=place, fix=fix)
        self.changes = dict(changes or {})
        self.note = note


class RecipeError(_Changeable):
    """The recipe cannot be carried out as it is written; the place names the line to change."""

    cli_exit_code = 3


class NoOfferError(_Changeable):
    """No hardware fits what was asked for, or none within the limits of money and time."""

    cli_exit_code = 4


class DoesNotFitError(NoOfferError):
    """The run cannot work on this hardware; planning looks for the cheapest change with which it does."""


class OverCapError(NoOfferError):
    """The estimate is over the cap; planning looks for a change that costs much less than raising it."""


class EngineError(LdlmError):
    """The engine refused the task, or cannot be reached."""

    cli_exit_code = 5


class RunRecordError(LdlmError):
    """The record of a run is missing, damaged or written by another version."""

    cli_exit_code = 6
