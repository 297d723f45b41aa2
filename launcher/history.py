"""What earlier runs in a store know: their recipe, and how fast they trained."""

import json

from launcher.errors import LdlmError, RunRecordError, StoreError
from launcher.estimate import Done
from launcher.patience import soon
from launcher.plan import Plan
from launcher.recipe import Limits, Recipe, read_recorded
from launcher.run_record import RunRecord, RunView, list_run_ids
from launcher.speed import MeasuredSpeed, config_fingerprint
from trainer.at_most import standing_of
from trainer.contract import Document, Name, Outcome
from trainer.run_folder import RunFolder
from trainer.store import Store

_MAX_HISTORY = 20  # runs; reading more would make `ldlm plan` slow


def measured_speeds(store: Store) -> list[MeasuredSpeed]:
    """What earlier runs in a store have measured, oldest first; what cannot be read is passed over.

    A store that cannot be reached only costs the plan its history; a launch will say so itself.
    """
    speeds = []
    try:
        run_ids = soon(lambda: list_run_ids(store))[-_MAX_HISTORY:]
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
    # Several places may have trained it: the newest counts, and what ran on the same hardware.
    hardware = {offer.label: offer.hardware for offer in plan.candidates(Document.TRAIN)}
    # On a course, this machine has played spot and on demand, as its label then says.
    named = [(files.attempt.offer if files.attempt.offer in hardware else
              files.attempt.offer.rpartition(" (")[0], files) for files in folder.attempts()]
    trained = [(hardware[label], files.heartbeat) for label, files in named
               if files.heartbeat and files.attempt.document is Document.TRAIN and label in hardware]
    beats = [beat for where, beat in trained if where == trained[-1][0]]
    steps = sum(beat.step - beat.resumed_from_step for beat in beats)
    seconds = sum(beat.phases.train_s for beat in beats)
    if steps < 10 or seconds <= 0:  # too short to say anything
        return None
    recipe = recorded_recipe(folder)
    return MeasuredSpeed(run_id=folder.run_id, hardware=trained[-1][0],
                         fingerprint=config_fingerprint(recipe.train),
                         tokens_per_s=steps * recipe.train.tokens_per_step / seconds)


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
