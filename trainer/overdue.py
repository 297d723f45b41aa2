"""When programs of a run must have ended by themselves; one that is still there then hangs. No torch.

Training looks at its limits before every step, the benchmark after every text. A collective that waits
for a lost peer is ended by torch within half an hour. What nothing else ends is a rank that waits without
end, on a GPU or a disk that does not answer: it would be billed until somebody looks.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from trainer.contract import Document, Env, ExitCode, LdlmError, RankEnd
from trainer.guard import PAST_LIMIT_S, Standing, headroom, moment
from trainer.limits import Limits
from trainer.run_folder import Attempt, AttemptFiles
from trainer.spent import charged_until

_BENCH_GRACE = timedelta(minutes=10)  # it has one text to end, and nothing to save (guess)
_LONGEST_H = 24 * 3650  # of which a moment can be computed


class OverTimeError(LdlmError):
    """The benchmark has had its hours and come to no result. Another attempt would have none left."""

    node_exit_code = ExitCode.BROKEN


def overdue_at(standing: Standing, bench_until: datetime | None = None,
               environ: Mapping[str, str] = os.environ) -> datetime | None:
    """The moment from which a program that is still there hangs; None: nothing limits this run.

    Args:
        standing: Of the run when this program begins. One that begins past a limit has its minutes, too.
        bench_until: Of a benchmark, see `bench_until`.
        environ: Of this node; `Env` names what is read.
    """
    # All of the limits: what training keeps back is for its end, and for a benchmark of what it has saved.
    found = headroom(Limits.of(environ), Document.BENCH, standing)
    limit = moment(standing.now, max(0.0, found.left_s) + PAST_LIMIT_S) if found else None
    return min(filter(None, (limit, bench_until and bench_until + _BENCH_GRACE)), default=None)


def bench_until(attempts: Sequence[AttemptFiles], own: Attempt, resumed: datetime | None,
                environ: Mapping[str, str] = os.environ) -> datetime | None:
    """When a benchmark has had its hours, whatever the training before it took; None: it has no such limit.

    Args:
        attempts: Of the run, in order, this one among them.
        own: This one.
        resumed: When a person last started the run again: what was before does not count.
        environ: Of this node; `Env` names what is read.
    """
    if own.document is not Document.BENCH or not (hours := environ.get(Env.BENCH_HOURS)):
        return None
    left = timedelta(hours=min(float(hours), _LONGEST_H))
    for files, until in zip(attempts, charged_until(attempts, own.billed_from), strict=True):
        earlier = files.attempt
        if (earlier.document is Document.BENCH and earlier.number < own.number
                and (resumed is None or earlier.billed_from > resumed)):
            left -= until - earlier.billed_from
    return own.billed_from + left


def check_in_time(end: RankEnd | None, until: datetime | None, now: datetime) -> None:
    """Refuse to begin a benchmark that has had its hours, or to ask for another attempt of it.

    Args:
        end: How it has ended; None: it has not begun.
        until: See `bench_until`.

    Raises:
        OverTimeError: They are over, and it wants more.
    """
    asks_for_another = end is None or end.code == ExitCode.RECOVER or end.code not in list(ExitCode)
    if until is None or now < until or not asks_for_another:
        return
    how = f"; it ended with: {end.reason}" if end else ""
    raise OverTimeError(f"the benchmark has had its time, up to {until:%H:%M} UTC (limits.bench_hours){how}",
                        fix="ldlm bench RUN gives it the same time once more")
