"""Who may write to a run: one attempt at a time.

The attempt with the highest number owns the run. A number is taken by a conditional write, so no two
attempts have the same. Its lease, in `attempt.json` and then in every heartbeat, says until when nobody else
may take a number. An attempt that finds a higher number than its own, since its machine slept or its network
was away, has lost the run: it stops and saves nothing. No torch.

The owner of a lease is who starts attempts: a managed job, or the local engine of a machine. It does not wait
for its own lease: it knows that the attempt before is gone.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from trainer.contract import ExitCode, LdlmError, attempt_file
from trainer.run_folder import AttemptFiles, RunFolder
from trainer.store import NotFoundError

START_S = 300.0  # from the claim of a number to the first heartbeat (guess)
_LEAST_S, _HEARTBEATS = 60.0, 4  # a store may be slow for a minute, or refuse a few writes (guess)
_LOOK_EVERY_S = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LeaseError(LdlmError):
    """Somebody else is training this run."""

    cli_exit_code = 5
    node_exit_code = ExitCode.BAD_CONFIG


class SupersededError(LdlmError):
    """A later attempt owns the run now."""

    node_exit_code = ExitCode.SUPERSEDED


class Lease(NamedTuple):
    """What an attempt that has not ended holds."""

    attempt: int
    owner: str
    until: datetime


def renewed(now: datetime, heartbeat_s: float) -> datetime:
    """Until when a heartbeat renews its attempt's lease."""
    return now + timedelta(seconds=max(_LEAST_S, _HEARTBEATS * heartbeat_s))


def newest_lease(attempts: Sequence[AttemptFiles]) -> Lease | None:
    """The lease of the newest attempt; None where that has ended, or is of before there were leases."""
    newest = attempts[-1] if attempts else None
    if newest is None or newest.end is not None or newest.attempt.lease_until is None:
        return None
    beat = newest.heartbeat
    until = beat.lease_until if beat and beat.lease_until else newest.attempt.lease_until
    return Lease(newest.attempt.number, newest.attempt.owner, until)


def await_free(folder: RunFolder, owner: str, say: Callable[[str], None], *,
               now: Callable[[], datetime] = lambda: datetime.now(UTC),
               sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when `owner` may start an attempt. Waits for a lease that nobody renews.

    Args:
        say: Told once that, and for whom, it waits.

    Raises:
        LeaseError: It is renewed: somebody else's attempt is alive.
        StoreError: The attempts cannot be read.
    """
    seen: Lease | None = None
    while (lease := newest_lease(folder.attempts())) and lease.owner != owner and lease.until > now():
        if seen and lease != seen:
            raise LeaseError(f"attempt {lease.attempt} is training this run: {lease.owner} holds its lease "
                             f"until {lease.until:%H:%M:%S} UTC and renews it", place=folder.url,
                             fix=f"let it go on; or `ldlm stop {folder.run_id}` first, then resume")
        if not seen:
            say(f"attempt {lease.attempt} ({lease.owner}) may be alive until its lease ends at "
                f"{lease.until:%H:%M:%S} UTC: waiting")
        seen = lease
        sleep(min(_LOOK_EVERY_S, max(0.1, (lease.until - now()).total_seconds())))


def check_own(folder: RunFolder, number: int) -> None:
    """Raise SupersededError where a later attempt than `number` exists. One small request."""
    try:
        folder.store.size(folder.key(attempt_file(number + 1, "attempt.json")))
    except NotFoundError:
        return
    raise SupersededError(f"attempt {number + 1} has taken this run over; attempt {number} stops and saves "
                          "nothing", place=folder.url,
                          fix="nothing, unless that was not meant: `ldlm status` shows who trains")


def owner_here() -> str:
    """Who starts attempts on this node: a managed job by its id, or a person or engine on a machine."""
    return os.environ.get("SKYPILOT_TASK_ID") or machine_here()


def machine_here() -> str:
    """This machine from one start of it to the next: clones of an image have the same name, and what ran
    before a start is gone. Its name alone where the system is not Linux."""
    name = socket.gethostname()
    try:
        return f"{name} (boot {_BOOT_ID.read_text()[:8]})"
    except OSError:
        return name
