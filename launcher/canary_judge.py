"""Judges a canary run: what is known of it, each claim on a line, one file for a bug report."""

import getpass
import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from launcher import console
from launcher.canary_claims import judge, verdicts_json
from launcher.canary_evidence import Evidence, Mark, Verdict
from launcher.canary_file import as_text, contents, secrets_of, without_secrets
from launcher.engine import ALIVE
from launcher.engines import cannot_tell, is_hidden, sky_engine
from launcher.errors import EngineError, LdlmError, RunRecordError
from launcher.history import newest_limits, recorded_recipe
from launcher.node_secrets import node_secrets
from launcher.plan import Plan
from launcher.reconcile import Charges, charges_path, reconcile
from launcher.rental_cost import usd_by_instance
from launcher.report import cost_report
from launcher.run_record import RunView
from launcher.runs import view_run
from launcher.webhook_setting import webhook_envs
from trainer.contract import Document, Name, attempt_file
from trainer.run_folder import RunFolder
from trainer.seen_machine import SeenMachine
from trainer.spent import charged_until
from trainer.store import Store, open_store

_LOOK_S = 10.0
# A provider's record comes late; by how much Vast's does is not known (guess, both).
_STILL_S = 180.0
PATIENCE_S = 900.0
_STYLES = {Mark.PASS: "fix", Mark.FAIL: "problem", Mark.NOT_SHOWN: "note"}


class _Look(NamedTuple):
    """One look at a run and at its provider."""

    evidence: Evidence
    charges: Charges | None

    @property
    def is_settled(self) -> bool:
        """True when waiting can bring no other verdict."""
        found, record = self.evidence.reconciliation, self.evidence.record
        return not record.may_have_rentals and not self.evidence.left and (found is None or found.is_equal)


def judge_run(run_id: str, store: str | None, *, as_json: bool = False, patience_s: float = 0.0) -> None:
    """Print a verdict for each claim, leave the file.

    Args:
        patience_s: Wait so long at most until all is given back and the provider's record has the bill, or
            has not changed for three minutes.

    Raises:
        RunRecordError: There is no such run, it has not ended or may not have, or it is no canary.
        LdlmError: A claim does not hold.
    """
    look = _wait(run_id, store, patience_s)
    verdicts = judge(look.evidence)
    path = _write(look, verdicts)
    if as_json:
        console.answer_json({"run_id": run_id, "verdicts": verdicts_json(verdicts)})
    else:
        show(verdicts)
        console.answer()
        console.answer(f"for a bug report, without keys and names: {path.name}")
    if failed := [verdict.claim for verdict in verdicts if verdict.mark is Mark.FAIL]:
        raise LdlmError(f"{len(failed)} of {len(verdicts)} promises were not kept: {'; '.join(failed)}",
                        place=f"run {run_id}", fix=f"report it as a bug, with {path.name}")


def show(verdicts: Sequence[Verdict]) -> None:
    """Each verdict, the claim, and beneath it the numbers."""
    console.answer("What was promised", "title")
    for verdict in verdicts:
        console.answer_finding(verdict.mark.value, _STYLES[verdict.mark], "",
                               f"{verdict.claim}\n{verdict.because}", "")


def _wait(run_id: str, store: str | None, patience_s: float) -> _Look:
    look = _look(run_id, store)
    if patience_s and not look.is_settled:
        console.talk("waiting until all is given back and Vast's record of charges has it ...")
    began = changed_at = time.monotonic()
    while not look.is_settled and time.monotonic() - began < patience_s:
        if time.monotonic() - changed_at > _STILL_S:
            break
        time.sleep(_LOOK_S)
        before, look = look, _look(run_id, store)
        if (look.charges, look.evidence.left) != (before.charges, before.evidence.left):
            changed_at = time.monotonic()
    return look


def _look(run_id: str, store_option: str | None) -> _Look:
    view = view_run(run_id, store_option)
    record, store = view.record, open_store(view.record.store_address)
    folder = RunFolder(store, run_id)
    recipe = recorded_recipe(folder)
    if not recipe.canary:
        raise RunRecordError(f"run {run_id} is no canary", place=record.url,
                             fix=f"ldlm cost {run_id} shows its bill; ldlm launch canary makes a canary")
    if view.engine.phase in ALIVE:
        raise RunRecordError(f"run {run_id} is under way", place=record.url,
                             fix=f"judge it when it has ended: ldlm status {run_id}")
    if is_hidden(record, view.engine):
        raise cannot_tell(record, view.engine)
    charges, left = _ask_vast(view, store)
    ours = usd_by_instance(record.attempts, charged_until(record.attempts, view.charged_to), record.rentals,
                           view.charged_to)
    evidence = Evidence(
        record=record, report=cost_report(view), recipe=recipe,
        plan=Plan.model_validate_json(folder.read_bytes(Name.PLAN)),
        max_cost_usd=newest_limits(record, recipe).max_cost_usd,
        machines={files.attempt.number: seen for files in record.attempts if (seen := folder.find(
            attempt_file(files.attempt.number, Name.MACHINE), SeenMachine))},
        losses={files.attempt.number: _losses(folder, files.attempt.number) for files in record.attempts
                if files.attempt.document is Document.TRAIN},
        reconciliation=reconcile(ours, charges.charges) if charges else None, left=left)
    return _Look(evidence, charges)


def _ask_vast(view: RunView, store: Store) -> tuple[Charges | None, tuple[str, ...] | None]:
    """What Vast has charged for the machines of a run, and those that it still has."""
    record = view.record
    if not record.rentals:
        return None, None
    engine = sky_engine(store)
    try:
        left = tuple(machine.instance_id for machine in engine.machines().machines
                     if machine.rental and machine.rental.run_id == record.run_id)
        return engine.charges(charges_path(record.rentals)), left
    except EngineError as error:
        console.talk(f"Vast could not be asked: {error}", "note")
        return None, None


def _losses(folder: RunFolder, attempt: int) -> Mapping[int, float]:
    """The sum of the losses of every logged step of one attempt."""
    found: dict[int, float] = defaultdict(float)
    for chunk in folder.store.objects(folder.key(attempt_file(attempt, "metrics"))):
        for line in folder.store.get(chunk.key).splitlines():
            row = json.loads(line)
            losses = [float(value) for name, value in row.items() if name.startswith("loss/")]
            if losses:
                found[int(row["step"])] = sum(losses)
    return found


def _write(look: _Look, verdicts: Sequence[Verdict]) -> Path:
    record = look.evidence.record
    task = open_store(record.store_address).get(f"{record.run_id}/{Name.TASK}").decode()
    found = contents(look.evidence, verdicts, look.charges, task, _versions(look.evidence))
    keys = webhook_envs(os.environ)
    with suppress(EngineError):
        keys |= node_secrets(record.store_address, os.environ)
    path = Path(f"canary-{record.run_id}.json")
    path.write_text(as_text(without_secrets(found, secrets_of(os.environ, keys.values()), _names())))
    return path


def _versions(evidence: Evidence) -> dict[str, str | None]:
    starts = [event.detail.get("git_sha") for event in evidence.record.events if "git_sha" in event.detail]
    seen = next(iter(evidence.machines.values()), SeenMachine())
    return {"ldlm": starts[-1] if starts else None, "skypilot": _version("skypilot"),
            "vastai": _version("vastai"), "torch": seen.torch, "cuda": seen.cuda,
            "driver": seen.gpus[0].driver if seen.gpus else None, "judged_at": datetime.now(UTC).isoformat()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _names() -> dict[str, str]:
    """Of this person and this machine; root is nobody's."""
    found = {str(Path.home()): "~", socket.gethostname(): "HOST"}
    with suppress(OSError, KeyError):
        if (user := getpass.getuser()) != "root":
            found[user] = "USER"
    return found
