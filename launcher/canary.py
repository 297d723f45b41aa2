"""A run that takes its own machine away once: one whose recipe says `canary: true`.

Here the local engine plays the cloud, as with --preempt-at. Elsewhere the launch that watches asks the
provider for the machine back, of which nothing that runs on it is told. `launcher/canary_judge.py` looks
afterwards whether all went as promised.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from launcher import console
from launcher.engines import sky_engine
from launcher.errors import EngineError, UsageError
from launcher.preempt_at import PreemptAt
from launcher.proposal import Proposal
from launcher.recipe import Recipe
from launcher.run_record import RunRecord
from trainer.run_folder import TAKEN, RunFolder
from trainer.store import open_store


def own_preemption(recipe: Recipe) -> PreemptAt | None:
    """When a canary loses its machine: half-way, between two checkpoints; None for any other run."""
    if not recipe.canary:
        return None
    between = (recipe.train.checkpoint.every_steps or 0) // 2
    return PreemptAt("step", max(1, min(recipe.train.steps // 2 + between, recipe.train.steps - 1)))


def check_watched(recipe: Recipe, *, detach: bool) -> None:
    """Refuse a canary that nobody would take the machine from. Raises UsageError."""
    if recipe.canary and detach:
        raise UsageError("a canary is watched to its end: its launch takes the machine away and judges",
                         place="--detach", fix="leave --detach out")


def taker(proposal: Proposal, say: Callable[[str], None] = console.talk) -> Callable[[RunRecord], None]:
    """Takes the machine of a rented canary away, once; to be called with each record of it that is read.

    Of any other run, and of one whose engine takes it, it does nothing.

    Args:
        say: Told what was done, or why it could not be: then it is tried again at the next look.
    """
    moment, run_id = own_preemption(proposal.recipe), proposal.plan.run_id
    if moment is None or proposal.is_local:
        return lambda record: None
    store = open_store(proposal.recipe.store or "")
    engine, folder = sky_engine(store), RunFolder(store, run_id)
    last_problem = ""

    def take(record: RunRecord) -> None:
        nonlocal last_problem
        now, was_taken = record.open_attempt, any(event.kind == TAKEN for event in record.events)
        if now is None or now is not record.training or was_taken or record.num_preemptions:
            return
        if not moment.is_due(0.0, now.heartbeat):
            return
        try:
            engine.take_machines(run_id)
        except EngineError as error:
            if error.problem != last_problem:
                last_problem = error.problem
                say(f"the machine could not be taken away, trying again: {error.problem}")
            return
        folder.add_event(TAKEN, datetime.now(UTC), attempt=now.attempt.number)
        say("took the machine away, as a cloud does: nothing on it was told")

    return take
