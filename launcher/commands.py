"""What each command does, without saying how it looks: plan, launch, resume, find a run."""

import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from launcher.engine import EnginePhase, check_infra
from launcher.engine_folder import engine_home
from launcher.errors import LdlmError, NoOfferError, RunRecordError, StoreError, UsageError
from launcher.lint import LintProblem, lint
from launcher.local_engine import LocalEngine
from launcher.offers import make_offer, probe_machine
from launcher.plan import MeasuredSpeed, Plan, choose, config_fingerprint, make_plan
from launcher.preempt_at import PreemptAt
from launcher.recipe import Recipe, checkout_folder, load_recipe
from launcher.render import Task, Templates, render
from launcher.run_record import RunRecord, create_record, list_run_ids, load_record
from trainer.contract import Document, Env, Name, Outcome
from trainer.run_folder import RunFolder
from trainer.store import Store, local_store_url, open_store

_RUN_ID = re.compile(r"[a-z][a-z0-9-]{0,59}")
_MAX_HISTORY = 20  # runs; reading more would make `ldlm plan` slow


@dataclass(frozen=True)
class Proposal:
    """What the user is asked to approve; `launch` carries out exactly this."""

    recipe: Recipe
    plan: Plan
    task: Task
    problems: Sequence[LintProblem]

    @property
    def infra(self) -> str:
        """Where training would run."""
        return self.plan.offers[Document.TRAIN].infra

    @property
    def is_local(self) -> bool:
        """True if nothing is rented."""
        return self.plan.offers[Document.TRAIN].is_local


@dataclass(frozen=True)
class PlanOptions:
    """What the command line may change of a recipe."""

    infra: str | None = None
    store: str | None = None
    run_id: str | None = None
    max_cost: str | None = None
    deadline: str | None = None
    overrides: Sequence[str] = ()

    def all_overrides(self) -> list[str]:
        """`--set` items, those behind --max-cost and --deadline last."""
        named = {"limits.max_cost_usd": self.max_cost, "limits.deadline_hours": self.deadline}
        return [*self.overrides, *(f"{key}={value}" for key, value in named.items() if value is not None)]


def propose(recipe_name: str, options: PlanOptions) -> Proposal:
    """Plan a recipe and render its task. Spends nothing and writes nothing.

    Raises:
        RecipeError, NoOfferError, StoreError: See the message.
    """
    recipe = load_recipe(recipe_name, options.all_overrides())
    now = datetime.now(UTC)
    return _propose(recipe, options, options.run_id or _new_run_id(recipe.name, now), now)


def _propose(recipe: Recipe, options: PlanOptions, run_id: str, now: datetime) -> Proposal:
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(f"{run_id!r} is not a run id", place="--run-id",
                         fix="use up to 60 lower-case letters, digits and dashes, a letter first")
    machine = probe_machine()
    candidates = choose(recipe, options.infra, machine)
    offers = {document: make_offer(candidate, machine, now) for document, candidate in candidates.items()}
    is_local = offers[Document.TRAIN].is_local
    url = options.store or os.environ.get("LDLM_STORE") or recipe.store or (default_store_url() if is_local else None)
    if url is not None:
        recipe = recipe.model_copy(update={"store": _absolute(url)})
    history = measured_speeds(open_store(recipe.store)) if recipe.store else []
    plan = make_plan(recipe, offers, history, now, run_id)
    task = render(plan, recipe, Templates.load(), checkout_folder())
    return Proposal(recipe, plan, task, lint(task))


def submit(proposal: Proposal, preempt_at: PreemptAt | None) -> None:
    """Write the record of an approved proposal and hand its task to the engine.

    Raises:
        RunRecordError: There is a run of this id.
        EngineError: The engine cannot take it.
    """
    check_usable(proposal)
    folder = RunFolder(open_store(proposal.recipe.store or ""), proposal.plan.run_id)
    create_record(folder, proposal.recipe, proposal.plan, proposal.task, datetime.now(UTC))
    LocalEngine().submit(proposal.task.text, preempt_at=preempt_at)


def check_usable(proposal: Proposal) -> None:
    """Refuse what could not be carried out, before anything is written.

    Raises:
        EngineError: Something is missing before this cloud could be used.
        NoOfferError: The task holds a known trap.
    """
    if not proposal.is_local:
        check_infra(proposal.infra)
    for found in proposal.problems:
        raise NoOfferError(found.problem, place=found.place, fix=found.fix)


def propose_resume(store: Store, run_id: str, options: PlanOptions) -> Proposal:
    """Plan to continue a run from its own recipe.

    Raises:
        RunRecordError: No such run, it has finished, or it is running.
    """
    record = load_record(store, run_id)
    if record.outcome and record.outcome.outcome is Outcome.FINISHED and record.bench:
        raise RunRecordError(f"run {run_id} has finished: there is nothing to resume", place=record.url,
                             fix=f"see what it cost: ldlm cost {run_id}")
    if LocalEngine().state(run_id).phase in (EnginePhase.RUNNING, EnginePhase.STOPPING):
        raise RunRecordError(f"run {run_id} is running", place=record.url, fix=f"watch it: ldlm logs -f {run_id}")
    recipe = _recorded_recipe(RunFolder(store, run_id))
    limits = recipe.limits
    update = {name: kind(value) for name, kind, value in (
        ("max_cost_usd", type(limits.max_cost_usd), options.max_cost), ("deadline_hours", float, options.deadline),
    ) if value is not None}
    recipe = recipe.model_copy(update={"limits": limits.model_copy(update=update)})
    return _propose(recipe, PlanOptions(infra=options.infra, store=store.url), run_id, datetime.now(UTC))


def resume(proposal: Proposal, preempt_at: PreemptAt | None = None) -> None:
    """Continue a run under the limits of the proposal."""
    check_usable(proposal)
    folder = RunFolder(open_store(proposal.recipe.store or ""), proposal.plan.run_id)
    folder.write_bytes(Name.TASK, proposal.task.text.encode())
    folder.add_event("resumed", datetime.now(UTC), task_digest=proposal.task.digest)
    LocalEngine().submit(proposal.task.text, preempt_at=preempt_at)


def open_run(run_id: str, store_option: str | None) -> tuple[Store, RunRecord]:
    """Find a run: in the store that is named, where this machine's engine ran it, or in the default one.

    Raises:
        RunRecordError: No such run there.
    """
    store = open_store(_absolute(store_option or os.environ.get("LDLM_STORE") or _store_of(run_id)
                                 or default_store_url()))
    return store, load_record(store, run_id)


def open_default_store(store_option: str | None) -> Store:
    """The store to list runs of."""
    return open_store(_absolute(store_option or os.environ.get("LDLM_STORE") or default_store_url()))


def default_store_url() -> str:
    """`$LDLM_HOME/store`, by default in the home folder: for runs on this machine."""
    return local_store_url(engine_home().parent / "store")


def remove_run(store: Store, record: RunRecord) -> int:
    """Delete a run's folder, what makes it exist first. Returns the number of bytes freed.

    Raises:
        RunRecordError: It is running.
    """
    if LocalEngine().state(record.run_id).phase in (EnginePhase.RUNNING, EnginePhase.STOPPING):
        raise RunRecordError(f"run {record.run_id} is running", place=record.url,
                             fix=f"stop it first: ldlm stop {record.run_id}")
    found = store.objects(record.run_id)
    keys = [item.key for item in found]
    store.delete(sorted(keys, key=lambda key: (not key.endswith(f"/{Name.RECIPE}"),
                                               not key.endswith(f"/{Name.MANIFEST}"))))
    return sum(item.num_bytes for item in found)


def measured_speeds(store: Store) -> list[MeasuredSpeed]:
    """What earlier runs in a store have measured, oldest first; what cannot be read is passed over.

    A store that cannot be reached only costs the plan its history; a launch will say so itself.
    """
    speeds = []
    try:
        run_ids = list_run_ids(store)[-_MAX_HISTORY:]
    except StoreError:
        return []
    for run_id in run_ids:
        try:
            speed = _measured_speed(RunFolder(store, run_id))
        except (LdlmError, ValueError):
            continue
        if speed:
            speeds.append(speed)
    return speeds


def _measured_speed(folder: RunFolder) -> MeasuredSpeed | None:
    plan = Plan.model_validate_json(folder.read_bytes(Name.PLAN))
    beats = [files.heartbeat for files in folder.attempts()
             if files.heartbeat and files.attempt.document is Document.TRAIN]
    steps = sum(beat.step - beat.resumed_from_step for beat in beats)
    seconds = sum(beat.phases.train_s for beat in beats)
    if steps < 10 or seconds <= 0:  # too short to say anything
        return None
    recipe = _recorded_recipe(folder)
    return MeasuredSpeed(run_id=folder.run_id, hardware=plan.offers[Document.TRAIN].hardware,
                         fingerprint=config_fingerprint(recipe.train),
                         tokens_per_s=steps * recipe.train.tokens_per_step / seconds)


def _recorded_recipe(folder: RunFolder) -> Recipe:
    data = folder.read_bytes(Name.RECIPE)
    try:
        return Recipe.model_validate_json(data)
    except ValueError as error:
        raise RunRecordError(f"is not a recipe of this version: {str(error).splitlines()[0]}",
                             place=f"{folder.url}/{Name.RECIPE}", fix="use the version that launched it") from error


def _store_of(run_id: str) -> str | None:
    """The store of a run that this machine's engine has run, from the task it was given."""
    task = engine_home() / run_id / "task.yaml"
    if not _RUN_ID.fullmatch(run_id) or not task.is_file():
        return None
    for document in yaml.safe_load_all(task.read_text(encoding="utf-8")):
        url = (document.get("envs") or {}).get(Env.STORE)
        if url:
            return str(url)
    return None


def _absolute(url: str) -> str:
    """Take a plain path for a folder of this machine."""
    return url if "://" in url else local_store_url(Path(url))


def _new_run_id(recipe_name: str, now: datetime) -> str:
    return f"{recipe_name}-{now:%m%d-%H%M}-{secrets.token_hex(2)}"

