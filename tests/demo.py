"""`make demo`: train the smoke recipe here, lose the machine in the middle, resume, benchmark, bill.

Runs the same command that a person types and then checks what it left in the store. Exit code 1
names the first promise that did not hold.
"""

import json
import secrets
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from launcher.run_record import RunRecord
from launcher.runs import open_run
from trainer.contract import Document

LDLM = str(Path(sys.executable).with_name("ldlm"))
PREEMPT_AT_STEP = 150
LEAST_ACCURACY = 0.30


class BrokenPromiseError(Exception):
    """Something that the demo shows did not happen."""


def main() -> int:
    """Run the demo. Returns 0 when every promise held."""
    began = time.monotonic()
    run_id = f"demo-{secrets.token_hex(3)}"
    launch = [LDLM, "launch", "smoke", "--infra", "local", "--yes", "--run-id", run_id,
              "--preempt-at", f"step:{PREEMPT_AT_STEP}"]
    print("$ ldlm " + " ".join(launch[1:]), flush=True)
    code = subprocess.run(launch, check=False).returncode
    if code != 0:
        print(f"demo: ldlm launch ended with code {code}", file=sys.stderr)
        return code
    try:
        _, record = open_run(run_id, None)
        kept = check(record, ask("cost", run_id))
    except BrokenPromiseError as error:
        print(f"demo: NOT as promised: {error}", file=sys.stderr)
        return 1
    print("\ndemo: as promised:")
    for line in kept:
        print(f"  {line}")
    print(f"demo: {time.monotonic() - began:.0f} s in all; the run stays: ldlm status {run_id}, "
          f"ldlm rm {run_id}")
    return 0


def check(record: RunRecord, cost: dict[str, Any]) -> list[str]:
    """Every promise of the demo, as the line that says it was kept. Raises BrokenPromiseError."""
    training = [files for files in record.attempts if files.attempt.document is Document.TRAIN]
    beats = [files.heartbeat for files in training if files.heartbeat]
    require(len(training) == len(beats) == 2, f"2 training attempts, there were {len(training)}")
    first, second = beats
    require(record.num_preemptions == 1, f"1 preemption, there were {record.num_preemptions}")
    require(0 < second.resumed_from_step == first.durable_step <= first.step,
            f"a resume from the durable step {first.durable_step}, it was {second.resumed_from_step}")
    require(second.durable_step == second.total_steps,
            f"all {second.total_steps} steps, {second.durable_step} are durable")
    before, after = (beat.metrics["eval/reconstruction_accuracy"] for beat in beats)
    require(after > before, f"accuracy that rises across the resume, it was {before:.1%} and {after:.1%}")
    require(record.bench is not None, "a benchmark")
    final = (record.bench or {})["scores"]["reconstruction_accuracy"]
    require(final >= LEAST_ACCURACY, f"at least {LEAST_ACCURACY:.0%} of held-out tokens, it was {final:.1%}")
    speed = (record.bench or {})["throughput"]["tokens_per_s"]
    spent, parts = Decimal(cost["spent_usd"]), [Decimal(usd) for usd in cost["usd_by_category"].values()]
    require(spent > 0 and abs(sum(parts) - spent) <= Decimal("0.000001") * len(parts),
            f"categories that add up to ${spent}, they add up to ${sum(parts)}")
    return [f"preempted at step {first.step} by SIGKILL, resumed from step {second.resumed_from_step}",
            f"held-out reconstruction {before:.1%} before the preemption, {final:.1%} at the end",
            f"benchmarked at {speed:,.0f} tokens/s (this machine, not an RTX 5090)",
            f"billed ${spent}, the sum of {len(parts)} categories (simulated price)"]


def require(held: bool, promise: str) -> None:
    """Raise unless a promise held."""
    if not held:
        raise BrokenPromiseError(f"expected {promise}")


def ask(command: str, run_id: str) -> dict[str, Any]:
    """What a reporting command says in JSON."""
    answer = subprocess.run([LDLM, command, run_id, "--json"], check=True, capture_output=True, text=True)
    value: dict[str, Any] = json.loads(answer.stdout)
    return value


if __name__ == "__main__":
    sys.exit(main())
