"""Has a run come to a point that it cannot pass? A node asks before each attempt. No torch."""

import itertools
from collections.abc import Sequence
from datetime import datetime

from trainer.contract import ExitCode, LdlmError
from trainer.run_folder import Attempt, AttemptFiles, Event

_MAX_FAILURES_WITHOUT_CHECKPOINT = 3
# Failures and requests to stop together; a machine that is always asked to stop too early costs, too (guess).
_MAX_ATTEMPTS_WITHOUT_CHECKPOINT = 10
_CRASHED, _HUNG, _ASKED_TO_STOP = "crashed", "hung", "asked to stop"


class StuckError(LdlmError):
    """Attempt after attempt ends before it has saved anything new."""

    node_exit_code = ExitCode.BROKEN


def resumed_at(events: Sequence[Event]) -> datetime | None:
    """When a person last resumed this run; None: never."""
    return max((event.at for event in events if event.kind == "resumed"), default=None)


def check_progress(attempts: list[AttemptFiles], attempt: Attempt, resumed: datetime | None) -> None:
    """Refuse to go on when the last attempts all ended without a newer checkpoint.

    Three in a row that crashed or hung are enough; of attempts that were asked to stop, it takes ten, the
    others among them included. Preempted attempts and wrong machines do not count: they are not the code's
    fault. Nor does what was before a person resumed the run.

    Raises:
        StuckError: Too many in a row.
    """
    earlier = [files for files in attempts
               if files.attempt.number < attempt.number and files.attempt.document == attempt.document
               and (resumed is None or files.attempt.billed_from > resumed)]
    beats = [files.heartbeat for files in earlier if files.heartbeat]
    durable_step = max((beat.durable_step for beat in beats), default=0)
    ends = [fruitless_end(files) for files in reversed(earlier)]
    for counted, allowed in (({_CRASHED, _HUNG}, _MAX_FAILURES_WITHOUT_CHECKPOINT),
                             ({_CRASHED, _HUNG, _ASKED_TO_STOP}, _MAX_ATTEMPTS_WITHOUT_CHECKPOINT)):
        row = list(itertools.takewhile(counted.__contains__, ends))
        if len(row) >= allowed:
            what = "ended" if _ASKED_TO_STOP in row else " or ".join(sorted({*filter(None, row)}))
            raise StuckError(f"the last {len(row)} attempts {what} without a newer checkpoint "
                             f"than step {durable_step}",
                             fix="read `ldlm logs RUN`, correct the cause, then `ldlm resume RUN`")


def fruitless_end(files: AttemptFiles) -> str | None:
    """How an attempt ended that has made no newer checkpoint; None for any other, and where the market or the
    machine was to blame."""
    end, beat = files.end, files.heartbeat
    if end is None or end.preempted or end.wrong_machine:
        return None
    if beat and beat.durable_step > beat.resumed_from_step:
        return None
    if end.hung:
        return _HUNG
    if end.exit_code == ExitCode.RECOVER:
        return _ASKED_TO_STOP
    return None if end.exit_code in list(ExitCode) else _CRASHED
