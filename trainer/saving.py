"""When a run saves, and what becomes of a save: durable, late, or failed while the store is away."""

import os
import time
from pathlib import Path

import torch
from torch import distributed as dist

from trainer.contract import Env
from trainer.divergence import diverged_error
from trainer.guard import PAST_LIMIT_S
from trainer.interval import Interval, Save, minutes
from trainer.job import Job
from trainer.notices import SPARE_S, Notice
from trainer.preemption import Verdict, agree

# Work that a store does not take is paid for all the same, and may be lost: enough is enough (guess).
_STORE_PATIENCE_S = 2 * 3600
_MOMENT_S = 5.0  # that a step of `every_steps` waits for the save before it, so as to have its own (guess)
_RETRY_S = 60.0  # after a save that failed; the store has tried for as long itself (guess)
_LAST_RETRY_S = 10.0  # after the last one has: the machine does nothing else (guess)


def save_due(job: Job) -> bool:
    """True at the same step on every rank: by count, or by rank 0's clock at a chance (`trainer.interval`).

    No save begins while one is under way, or training would stand still for its upload. Where the store is
    slower than the interval, the interval grows; for a save of `every_steps` another one stays, of the first
    step that is rounded and finds none under way (`trainer.retention.Keep`).
    """
    step = job.progress.step
    stays = job.config.checkpoint.stays(step)
    if stays:
        job.owed_step = step
        with job.together("checkpoint_s"):
            job.checkpoints.wait(_MOMENT_S)
    elif step % job.chance_steps:
        return False
    job.gaps.note(step, job.clock.phases())
    is_asked = job.owed_step is not None or (dist.get_rank() == 0 and _is_time(job))
    chance_steps = job.gaps.chance_steps if dist.get_rank() == 0 else 0
    told = torch.tensor([int(is_asked), int(job.checkpoints.is_saving), chance_steps])
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    is_asked, is_saving, chance_steps = told.tolist()
    if step % job.config.optimizer.round_steps == 0:  # a first few steps alone may mislead
        job.chance_steps = chance_steps
    if is_asked and is_saving:
        _say_that_it_waits(job)
    return bool(is_asked and not is_saving)


def _is_time(job: Job) -> bool:
    """After a save that failed, the next begins as soon as that makes sense."""
    interval, passed_s = _interval(job), job.saves.since_last_s
    if job.saves.is_failing:
        return passed_s >= min(_RETRY_S, interval.seconds)
    return interval.is_due(passed_s, job.gaps.after(job.progress.step))


def _interval(job: Job) -> Interval:
    return job.pace.interval(job.gaps.longest_s, is_told=job.last_save.forecast().fits)


def save(job: Job) -> None:
    """Start a checkpoint of the current step. Training goes on while it is uploaded.

    Raises:
        DivergedError: What diverged must not replace good checkpoints.
    """
    stop_if_diverged(job)
    with job.together("checkpoint_s"):
        job.checkpoints.wait()
        note_finished_save(job)
        if job.owed_step not in (None, job.progress.step):
            job.say(f"the checkpoint of step {job.progress.step} stays in place of one of {job.owed_step}")
        job.owed_step = None
        phases = job.clock.phases()
        job.saves.began(job.progress.step, phases.train_s, phases.evaluate_s)
        job.checkpoints.save(job.progress.step, job.timesteps.state_dict())
    job.stall_s = job.saves.since_last_s


def stop_if_diverged(job: Job) -> None:
    """Raise DivergedError, on every rank alike, when a number of an earlier step was not finite."""
    found = job.watch.found()
    if found is None:
        return
    job.clock.enter("checkpoint_s")
    job.checkpoints.wait()  # what it uploads is from before that step
    note_finished_save(job)
    raise diverged_error(*found, job.progress.durable_step, job.config.precision)


def save_last(job: Job, verdict: Verdict) -> Verdict:
    """Save the newest step, as often as it takes while there is time: nobody gives it up. A collective.

    Args:
        verdict: Why training is over.

    Returns:
        CONTINUE: it is durable. FAIL: it is not, and time is over. SUPERSEDED: another attempt owns the run.
    """
    began_s = time.monotonic()
    while True:
        _await_save(job)
        if verdict is not Verdict.SUPERSEDED and has_unsaved_step(job):
            save(job)
            _await_save(job)
        found = agree(Verdict.SUPERSEDED if job.superseded
                      else Verdict.AWAY if job.saves.is_failing else Verdict.CONTINUE)
        if found is Verdict.AWAY:
            is_over = verdict is Verdict.FAIL or _is_time_over(job, time.monotonic() - began_s)
            found = agree(Verdict.FAIL if is_over else Verdict.AWAY)
        if found is not Verdict.AWAY:
            return found
        time.sleep(_LAST_RETRY_S)


def _await_save(job: Job) -> None:
    job.checkpoints.wait()
    note_finished_save(job, then="it is tried again while there is time")


def _is_time_over(job: Job, waited_s: float) -> bool:
    notice = Notice.find(Path(os.environ[Env.END_FOLDER]))  # it may be a new one
    measured = job.checkpoints.measured
    # The whole cap: what is kept for the benchmark is of no use without something to measure.
    is_past_limit = job.limits is not None and job.limits.is_past()
    return last_try_over(waited_s, measured.seconds if measured else 0.0, notice.left_s if notice else None,
                         is_past_limit=is_past_limit)


def last_try_over(waited_s: float, save_s: float, left_s: float | None, *, is_past_limit: bool) -> bool:
    """True when one more try of the last save would come too late, or cost too much (pure).

    Args:
        waited_s: Since the first one.
        save_s: That a save takes; 0: not known.
        left_s: Until the machine is gone; None: not known.
        is_past_limit: The run's cap or deadline is reached.
    """
    if left_s is not None and left_s - SPARE_S < _LAST_RETRY_S + save_s:
        return True
    return waited_s + _LAST_RETRY_S > (PAST_LIMIT_S if is_past_limit else _STORE_PATIENCE_S)


def note_finished_save(job: Job, then: str = "training goes on, and the next save is tried soon") -> None:
    """Take over what the background save has come to: a newer durable step, or a failure to count.

    Args:
        then: What follows a failure, in words.
    """
    if taken := job.saves.became_durable(job.checkpoints.durable_step):
        job.progress.durable_step = taken.step
        job.progress.durable_train_s, job.progress.durable_evaluate_s = taken.train_s, taken.evaluate_s
        job.is_late_told = False
        job.say(f"checkpoint of step {taken.step} is durable")
        say_news_of_notices(job)
        if job.recorder is not None:
            _follow(job)
            job.recorder.write_soon()
    error = job.checkpoints.pop_error()
    if error:
        if dist.get_rank() == 0:  # it hears of every rank's failure, and only it hears of success
            job.saves.failed()
        print(f"warning: rank {dist.get_rank()}: checkpoint not saved: {error}", flush=True)
        job.say(f"warning: {at_risk(job)}; {then}")


def _follow(job: Job) -> None:
    """Let the interval follow what the newest save has shown, and say so. For rank 0."""
    assert job.checkpoints.measured is not None, "a save is durable"
    job.pace.measured(Save(*job.checkpoints.measured, job.stall_s))
    interval = _interval(job)
    job.progress.pace = job.pace.record(interval)
    if news := job.pace.news(interval):
        job.say(news)


def is_store_lost(job: Job) -> bool:
    """True when saves have failed for so long that going on would only cost more."""
    return job.saves.failing_s > _STORE_PATIENCE_S


def has_unsaved_step(job: Job) -> bool:
    """True when no save of the newest step is durable or under way: rank 0 knows, all ranks save or none."""
    step, taken = job.progress.step, job.saves.under_way
    unsaved = torch.tensor(int(step > job.progress.durable_step and not (taken and taken.step == step)))
    dist.broadcast(unsaved, src=0)
    return bool(unsaved)


def at_risk(job: Job) -> str:
    """What losing the machine now would cost."""
    newest = f"step {job.progress.durable_step} is the newest durable one" if job.progress.durable_step else (
        "nothing is durable")
    return f"{newest}, and {minutes(job.saves.at_risk_s)} of work would be lost with this machine"


def _say_that_it_waits(job: Job) -> None:
    interval_s = _interval(job).seconds
    if job.owed_step == job.progress.step:
        job.say(f"warning: no checkpoint of step {job.owed_step}: the one before it is not durable yet; the "
                "next one stays in its place")
    elif job.owed_step is None and not job.is_late_told and job.saves.since_last_s >= interval_s:
        job.is_late_told = True
        job.say(f"warning: the store takes longer for a checkpoint than the {minutes(interval_s)} between "
                "two: the next one begins when this one is durable")


def say_news_of_notices(job: Job) -> None:
    """Say whether a last checkpoint fits what this cloud gives, when that is known and when it changes."""
    if job.recorder is not None and (news := job.last_save.news()):
        job.say(news)
