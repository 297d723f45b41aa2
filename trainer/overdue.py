"""When programs of a run must have ended by themselves; one that is still there then hangs. No torch.

Training looks at deadline and cap before every step, the benchmark after every text. A collective that waits
for a lost peer is ended by torch within half an hour. What nothing else ends is a rank that waits without
end, on a GPU or a disk that does not answer: it would be billed until somebody looks.
"""

import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal

from trainer.contract import Env

# A last checkpoint and a last evaluation take minutes. A kill too early would cost what is being saved, one
# an hour late costs that hour (guess).
_GRACE = timedelta(hours=1)
_LONGEST_H = 24 * 3650  # of which a moment can be computed


def overdue_at(started_at: datetime, spent_usd: Decimal,
               environ: Mapping[str, str] = os.environ) -> datetime | None:
    """The moment from which a program that is still there hangs; None: nothing limits this run.

    Args:
        started_at: When this attempt began, UTC. One that begins after the deadline has the hour, too.
        spent_usd: Of the whole run until then: the cap is not there a second time.
        environ: Of this node; `Env` names what is read.
    """
    deadline, price = environ.get(Env.DEADLINE), Decimal(environ.get(Env.PRICE) or 0)
    cap = environ.get(Env.MAX_COST)
    limits = [max(datetime.fromisoformat(deadline), started_at)] if deadline else []
    if cap and price and (hours := float(max(Decimal(0), Decimal(cap) - spent_usd) / price)) < _LONGEST_H:
        limits.append(started_at + timedelta(hours=hours))  # this attempt has spent what was left of the cap
    return min(limits) + _GRACE if limits else None
