"""What earlier runs in a store know: their recipe, how fast they trained, how long their machines lived."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from launcher.advice import changed_config
from launcher.benchmarks import Benchmarked
from launcher.errors import LdlmError, RunRecordError, StoreError
from launcher.estimate import Done
from launcher.forgiving import ForgivingFolder
from launcher.lives import Sighting, sightings_of
from launcher.patience import soon
from launcher.plan import Plan
from launcher.recipe import Limits, Recipe, read_recorded
from launcher.run_record import RunRecord, RunView, list_run_ids
from launcher.speed import MeasuredSpeed, config_fingerprint
from trainer.at_most import standing_of
from trainer.config import TrainConfig
from trainer.contract import AwayError, Document, Name, Outcome
from trainer.run_folder import AttemptFiles, RunFolder
from trainer.store import NotFoundError, Store

_MAX_HISTORY = 20  # runs; reading more would make `ldlm plan` slow
_NAMED = 3  # of those that cannot be read


@dataclass(frozen=True)
class Past:
    """What earlier runs of a store teach a plan.

    Attributes:
        speeds: Oldest run first.
        sightings: Of machines, in the same order.
        warnings: What could not be read.
    """

    speeds: list[MeasuredSpeed] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def past_of(store: Store, now: datetime) -> Past:
    """What the newest runs of a store have measured and seen; what cannot be read is passed over, and named.

    A store that cannot be reached only costs the plan its history; a launch will say so itself.
    """
    found, torn, run_id = Past(), list[str](), ""
    try:
        for run_id in soon(lambda: list_run_ids(store))[-_MAX_HISTORY:]:
            try:
                _learn(RunFolder(store, run_id), now, found)
            except NotFoundError:  # its launch is still writing
                continue
            except AwayError:
                raise
            except (LdlmError, ValueError):
                torn.append(run_id)
    except StoreError as error:
        since = f"{run_id} and later runs" if run_id else "earlier runs"
        found.warnings.append(f"nothing is learned from {since}: the store gave {error.problem}")
    found.warnings.extend(_words(torn))
    return found


def _words(torn: Sequence[str]) -> list[str]:
    if not torn:
        return []
    more = f" and {len(torn) - _NAMED} more" if torn[_NAMED:] else ""
    names = ", ".join(torn[-_NAMED:])
    return [f"nothing but speeds is learned from {names}{more}: torn, or not readable by this version"]


def _learn(folder: RunFolder, now: datetime, found: Past) -> None:
    """All of a run; where a part of it cannot be read, its speed alone, and it is raised.

    Each heartbeat that is whole tells its speed by itself. How machines live it does not: records tear where
    machines die, so that those which are left would have lived longer than all have, and waited less.
    """
    plan, whole = Plan.model_validate_json(folder.read_bytes(Name.PLAN)), ForgivingFolder(folder)
    offers, attempts = {offer.label: offer for offer in plan.candidates(Document.TRAIN)}, whole.attempts()
    speed = _measured_speed(folder, plan, attempts)
    found.speeds.extend([speed] if speed else [])
    is_lost = any(files.end and files.end.preempted for files in attempts)
    events = whole.events() if is_lost else []  # of waits; a run has many
    if whole.torn:
        raise whole.torn[0]
    found.sightings.extend(sightings_of(folder.run_id, offers, attempts, events, now))


def _measured_speed(folder: RunFolder, plan: Plan, attempts: Sequence[AttemptFiles]) -> MeasuredSpeed | None:
    offers = {offer.label: offer for offer in plan.candidates(Document.TRAIN)}
    # Several places may have trained it: the newest counts, and what ran on the same hardware.
    # On a course, this machine has played spot and on demand, as its label then says.
    named = [(files.attempt.offer if files.attempt.offer in offers else
              files.attempt.offer.rpartition(" (")[0], files) for files in attempts]
    trained = [(offers[label].hardware, files.heartbeat) for label, files in named
               if files.heartbeat and files.attempt.document is Document.TRAIN and label in offers]
    beats = [beat for where, beat in trained if where == trained[-1][0]]
    steps = sum(beat.step - beat.resumed_from_step for beat in beats)
    seconds = sum(beat.phases.train_s for beat in beats)
    if steps < 10 or seconds <= 0:  # too short to say anything
        return None
    config, hardware = recorded_recipe(folder).train, trained[-1][0]
    rate = steps * config.tokens_per_step / seconds
    return MeasuredSpeed(run_id=folder.run_id, hardware=hardware, fingerprint=config_fingerprint(config),
                         tokens_per_s=rate, to_scale=_to_scale(folder.run_id, config, plan, hardware, rate))


def _to_scale(run_id: str, config: TrainConfig, plan: Plan, hardware: str, tokens_per_s: float
              ) -> Benchmarked | None:
    """How a run lay on GPUs that its plan has placed it on; of `auto` nobody wrote down the micro-batch."""
    offer = plan.offers[Document.TRAIN]
    if offer.gpu is None or offer.hardware != hardware or config.probe_micro_batch:
        return None
    placed = changed_config(config, {"train.token_encoder.placement": plan.encoder_placement})
    return Benchmarked(f"run {run_id}", plan.planned_at, offer.gpu, placed, tokens_per_s, plan.world_size,
                       offer.num_nodes)


def recorded_recipe(folder: RunFolder) -> Recipe:
    """The recipe a run was launched with. Raises RunRecordError if this version cannot read it."""
    data, place = folder.read_bytes(Name.RECIPE), f"{folder.url}/{Name.RECIPE}"
    try:
        return read_recorded(data, place)
    except ValueError as error:
        raise RunRecordError(f"is not a recipe of this version: {str(error).splitlines()[0]}", place=place,
                             fix="use the version that launched it") from error


def newest_limits(record: RunRecord, recipe: Recipe) -> Limits:
    """The limits under which a run was last started. Raises RunRecordError if they cannot be read."""
    resumed = [event.detail["limits"] for event in record.events if "limits" in event.detail]
    if not resumed:
        return recipe.limits
    try:
        return Limits.model_validate_json(json.dumps(resumed[-1]))
    except ValueError as error:
        raise RunRecordError(f"its limits are not of this version: {str(error).splitlines()[0]}",
                             place=f"{record.url}/{Name.EVENTS}",
                             fix="use the version that resumed it") from error


def done_so_far(view: RunView) -> Done:
    """What a run has that a resume does not do again, and what it has cost."""
    outcome = view.record.outcome
    durable = [files.heartbeat.durable_step for files in view.record.attempts
               if files.heartbeat and files.attempt.document is Document.TRAIN]
    return Done(step=max(durable, default=0), spent_usd=view.spent_usd,
                has_trained=outcome is not None and outcome.outcome is Outcome.FINISHED,
                paid_h=standing_of(view.record.attempts, (), view.charged_to).paid_s / 3600)
