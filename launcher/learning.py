"""What a run has learned by now, from its record: the verdict, and what it writes.

Of thousands of rows a verdict needs few, and a store answers slowly: the first losses, the newest
evaluations, the newest heartbeat.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher.errors import RunRecordError
from launcher.history import recorded_recipe
from launcher.run_record import RunRecord
from trainer.contract import Document, attempt_file
from trainer.learning import Learning, judge
from trainer.run_folder import RunFolder
from trainer.store import DamagedError, NotFoundError, open_store

_NUM_EVALUATIONS = 5  # earlier ones only tell from where a variance has fallen (guess)


class _Evaluation(BaseModel):
    """What is needed of one evaluation's file."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    step: int
    scores: dict[str, float]
    samples: list[str] = []


@dataclass(frozen=True)
class Learned:
    """The verdict on a run, and texts that it wrote from noise at its newest evaluation, unselected."""

    learning: Learning
    samples: Sequence[str]
    sampled_at_step: int


def learned(record: RunRecord) -> Learned | None:
    """Judge a run by its record; None before it trains, or if its recipe is of another version.

    Raises:
        StoreError: The record cannot be read.
    """
    beat = record.training.heartbeat if record.training else None
    if beat is None:
        return None
    folder = RunFolder(open_store(record.store_address), record.run_id)
    try:
        config = recorded_recipe(folder).train
    except RunRecordError:
        return None
    found = [_read(folder, name) for name in _evaluation_files(folder, record)[-_NUM_EVALUATIONS:]]
    rows = [{"step": float(item.step)} | {f"eval/{name}": value for name, value in item.scores.items()}
            for item in found]
    losses = {name: value for name, value in beat.metrics.items() if name.startswith("loss/")}
    rows = [*_first_losses(folder, record), *rows, {"step": beat.step} | losses]
    newest = found[-1] if found else _Evaluation(step=0, scores={})
    return Learned(judge(rows, config), newest.samples, newest.step)


def _evaluation_files(folder: RunFolder, record: RunRecord) -> list[str]:
    """Names in the run folder, in order of steps; those that a resume has made void are left out."""
    by_step: dict[int, str] = {}
    for files in record.attempts:
        beat, number = files.heartbeat, files.attempt.number
        if files.attempt.document is not Document.TRAIN:
            continue
        if beat and beat.step:  # before it has loaded its checkpoint, an attempt knows no step
            by_step = {step: name for step, name in by_step.items() if step <= beat.resumed_from_step}
        for item in folder.store.objects(folder.key(attempt_file(number, "evaluations"))):
            name = item.key.removeprefix(folder.key(""))
            by_step[int(name.rsplit("/", 1)[1].removesuffix(".json"))] = name
    return [by_step[step] for step in sorted(by_step)]


def _first_losses(folder: RunFolder, record: RunRecord) -> list[dict[str, float]]:
    for files in record.attempts:
        try:
            chunk = folder.read_bytes(attempt_file(files.attempt.number, "metrics/000000.jsonl"))
        except NotFoundError:
            continue
        rows: list[dict[str, float]] = [json.loads(line) for line in chunk.splitlines()]
        return [row for row in rows if "loss/token" in row][:1]
    return []


def _read(folder: RunFolder, name: str) -> _Evaluation:
    try:
        return _Evaluation.model_validate_json(folder.read_bytes(name))
    except ValidationError as error:
        raise DamagedError(f"is no evaluation: {str(error).splitlines()[0]}", place=f"{folder.url}/{name}",
                           fix="delete it: the run can be judged without it") from error
