"""Stands in for `python -m trainer.node`: does what its arguments say, one after the other.

`beat:STEP,DURABLE` writes a heartbeat and the checkpoint that it calls durable, `sleep:SECONDS` and
`exit:CODE` do that, `on-term:CODE` exits with that code on SIGTERM from there on, `end:CODE` writes the
attempt's own end.json, with two lines, `save:STEP` commits a checkpoint of no files.
"""

import os
import signal
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from trainer.contract import Env, Name, attempt_file, checkpoint_folder  # noqa: E402
from trainer.run_folder import AttemptEnd, Heartbeat, Phases, RunFolder  # noqa: E402
from trainer.store import open_store  # noqa: E402

ATTEMPT = int(os.environ[Env.ATTEMPT])
RUN = RunFolder(open_store(os.environ[Env.STORE]), os.environ[Env.RUN_ID])


def beat(step: int, durable_step: int) -> None:
    """Write a heartbeat; what it does not matter for stays at zero."""
    if durable_step:
        RUN.write_bytes(f"{checkpoint_folder(durable_step)}/{Name.MANIFEST}", b"{}")
    RUN.write(attempt_file(ATTEMPT, "heartbeat.json"), Heartbeat(
        at=datetime.now(UTC), step=step, total_steps=100, resumed_from_step=0, durable_step=durable_step,
        durable_train_s=0, durable_evaluate_s=0, phases=Phases(), tokens_per_s=0, spent_usd=Decimal(0)))


def save(step: int) -> None:
    """Commit a checkpoint and tell nobody; one of a newer step is on its way."""
    RUN.write_bytes(f"{checkpoint_folder(step)}/{Name.MANIFEST}", b"{}")
    RUN.write_bytes(f"{checkpoint_folder(step + 50)}/rank-0.pt", b"")


def do(order: str) -> None:
    """Carry out one argument."""
    kind, _, value = order.partition(":")
    if kind == "beat":
        beat(*map(int, value.split(",")))
    elif kind == "save":
        save(int(value))
    elif kind == "sleep":
        time.sleep(float(value))
    elif kind == "on-term":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(value)))
    elif kind == "end":
        RUN.write(attempt_file(ATTEMPT, "end.json"), AttemptEnd(
            at=datetime.now(UTC), exit_code=int(value), preempted=True,
            reason="x.json: the node's own word\n  fix: none"))
    elif kind == "exit":
        sys.exit(int(value))


for argument in sys.argv[1:]:
    do(argument)
    print(f"did {argument}")
