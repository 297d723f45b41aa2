"""When programs of a run must have ended by themselves; one that is still there then hangs. No torch.

Training looks at deadline and cap before every step, the benchmark after every text. A collective that waits
for a lost peer is ended by torch within half an hour. What nothing else ends is a rank that waits without
end, on a GPU or a disk that does not answer: it would be billed until somebody looks.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from trainer.contract import Document, Env, ExitCode, LdlmError, RankEnd
from trainer.run_folder import Attempt, AttemptFiles
from trainer.spent import charged_until

# A last checkpoint and a last evaluation take minutes. A kill too early would cost what is being saved, one
# an hour late costs that hour (guess).
_GRACE = timedelta(hours=1)
_BENCH_GRACE = timedelta(minutes=10)  # it has one text to end, and nothing to save (guess)
_LONGEST_H = 24 * 3650  # of which a moment can be computed


class OverTimeError(LdlmError):
    """The benchmark has had its hours and come to no result. Another attempt would have none left."""

    node_exit_code = ExitCode.BROKEN


def overdue_at(started_at: datetime, spent_usd: Decimal, bench_until: datetime | None = None,
               environ: Mapping[str, str] = os.environ) -> datetime | None:
    """The moment from which a program that is still there hangs; None: nothing limits this run.

    Args:
        started_at: When this attempt began, UTC. One that begins after the deadline has the hour, too.
        spent_usd: Of the whole run until then: the cap is not there a second time.
        bench_until: Of a benchmark, see `bench_until`.
        environ: Of this node; `Env` names what is read.
    """
    deadline, price = environ.get(Env.DEADLINE), Decimal(environ.get(Env.PRICE) or 0)
    cap = environ.get(Env.MAX_COST)
    limits = [max(datetime.fromisoformat(deadline), started_at)] if deadline else []
    if cap and price and (hours := float(max(Decimal(0), Decimal(cap) - spent_usd) / price)) < _LONGEST_H:
        limits.append(started_at + timedelta(hours=hours))  # this attempt has spent what was left of the cap
    ends = [limit + _GRACE for limit in limits] + ([bench_until + _BENCH_GRACE] if bench_until else [])
    return min(ends, default=None)


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
