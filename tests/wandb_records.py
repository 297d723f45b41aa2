"""Run folders as nodes leave them, for what shows them on W&B."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from trainer.contract import Document
from trainer.run_folder import AttemptEnd, Heartbeat, Phases, RunFolder
from trainer.store import local_store_url, open_store

BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)


def new_folder(path: Path) -> RunFolder:
    """A run that was submitted and has no attempt yet."""
    folder = RunFolder(open_store(local_store_url(path)), "run")
    folder.write_bytes("recipe.json", json.dumps({"name": "smoke", "train": {"steps": 12}}).encode())
    folder.add_event("submitted", BEGAN, git_sha="a" * 40)
    return folder


def add_attempt(folder: RunFolder, steps: range, *, durable: int, exit_code: int | None = None,
                document: Document = Document.TRAIN, beat_at: datetime | None = None) -> int:
    """One more attempt, a row for each step. Returns its number."""
    number = len(folder.attempts()) + 1
    began = BEGAN + timedelta(hours=number)
    folder.claim_attempt(document, billed_from=began, price_usd_per_hour=Decimal(2), offer="2 CPU cores here",
                         host="h")
    lines = "".join(json.dumps({"step": step, "time": 1e9 + step, "loss/hidden": step + number / 10}) + "\n"
                    for step in steps)
    if lines:
        folder.write_bytes(f"attempts/{number}/metrics/000000.jsonl", lines.encode())
    folder.write(f"attempts/{number}/heartbeat.json", Heartbeat(
        at=beat_at or began, step=0, total_steps=12, resumed_from_step=0, durable_step=durable,
        durable_train_s=0, durable_evaluate_s=0, phases=Phases(), tokens_per_s=0, spent_usd=Decimal(number)))
    if exit_code is not None:
        folder.write(f"attempts/{number}/end.json", AttemptEnd(
            at=began + timedelta(minutes=9), exit_code=exit_code, preempted=False, reason=""))
    return number
