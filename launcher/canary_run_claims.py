"""Claims on machines and training. Pure; `launcher/canary_claims.py` has the list."""

import math
from collections.abc import Iterator

from launcher.canary_evidence import Evidence, Found, Mark, has_trained, judged
from launcher.offers import Gpu
from launcher.recorded import Throughput
from launcher.run_record import ending_words
from launcher.sky_ready import RENTED
from trainer.contract import Document, Outcome
from trainer.run_folder import AttemptFiles
from trainer.seen_machine import SeenGpu

_SAME_LOSS = 0.01  # of the same steps before and after: three digits agreed on a GPU in float32 (measured)
# Of the time between two checkpoints: one may be on its way when the machine is taken.
_UNDER_WAY = 2


def right_machine(evidence: Evidence) -> Found:
    """What the driver has told each node against the plan."""
    wanted = [files for files in evidence.record.attempts if evidence.offer(files).gpu and _has_worked(files)]
    if not wanted:
        return Found(Mark.NOT_SHOWN, "no card was asked for, or none has worked")
    words = []
    for files in wanted:
        offer, seen = evidence.offer(files), evidence.machines.get(files.attempt.number)
        mine = [gpu for gpu in seen.gpus if _is_card(gpu, offer.gpu)] if seen else []
        if not seen or len(mine) < offer.num_gpus:
            there = ", ".join(gpu.name for gpu in seen.gpus) or "no card" if seen else "nobody knows what"
            return Found(Mark.FAIL, f"attempt {files.attempt.number} has worked on {there}, the plan pays "
                                    f"for {offer.accelerators}")
        words.append(f"{mine[0].name} (driver {mine[0].driver}, CUDA {seen.cuda})")
    wrong = sum(1 for files in evidence.record.attempts if files.end and files.end.wrong_machine)
    others = f"; {wrong} wrong ones were left" if wrong else ""
    return Found(Mark.PASS, "; ".join(dict.fromkeys(words)) + others)


def no_keys(evidence: Evidence) -> Found:
    """What nodes have found in their home folders."""
    looked = {number: seen.key_files for number, seen in evidence.machines.items()
              if seen.key_files is not None}
    if not evidence.clouds & set(RENTED) or not looked:
        return Found(Mark.NOT_SHOWN, "no rented machine has looked for keys")
    found = [f"attempt {number}: {', '.join(names)}" for number, names in looked.items() if names]
    return Found(Mark.FAIL, "; ".join(found)) if found else Found(
        Mark.PASS, f"{len(looked)} machines have looked for files with keys of clouds, and found none")


def went_on(evidence: Evidence) -> Found:
    """At least one machine was taken, and after each a later attempt has trained."""
    taken = evidence.losses_of_machines()
    if not taken:
        return Found(Mark.FAIL, "no machine was taken from its training")
    words = []
    for lost, later in taken:
        number, beat = lost.attempt.number, lost.heartbeat
        if later is None:
            return Found(Mark.FAIL, f"attempt {number} was taken, and no later one has trained")
        wait_s = (later.attempt.billed_from - beat.at).total_seconds() if beat else 0.0
        words.append(f"attempt {number} was taken at step {beat.step if beat else 0}, attempt "
                     f"{later.attempt.number} began {wait_s:.0f} s later")
    return Found(Mark.PASS, "; ".join(words))


def from_newest(evidence: Evidence) -> Found:
    """A machine may vanish between a commit and the word of it, so the next may know a later one."""
    words, is_newest = [], True
    for _, before, resumed, step in _resumed(evidence):
        is_newest = is_newest and 0 < before <= resumed <= step
        words.append(f"from step {resumed}; {before} was durable, {step} done")
    return judged(is_newest, "; ".join(words)) if words else _nothing_resumed()


def lost_little(evidence: Evidence) -> Found:
    """Steps that were done twice, at the pace of the attempt that lost them."""
    every, words, is_little = evidence.recipe.train.checkpoint, [], True
    for files, _, resumed, step in _resumed(evidence):
        beat = files.heartbeat
        if beat is None or beat.step <= beat.resumed_from_step:
            continue
        step_s = beat.phases.train_s / (beat.step - beat.resumed_from_step)
        by_step = _UNDER_WAY * every.every_steps * step_s if every.every_steps else math.inf
        by_time = _UNDER_WAY * every.every_minutes * 60 if every.every_minutes else every.most_lost_s
        promised_s = min(by_step, by_time)
        is_little = is_little and (step - resumed) * step_s <= promised_s
        words.append(f"{step - resumed} steps, {(step - resumed) * step_s:.0f} s of training; at most "
                     f"{promised_s:.0f} s are promised")
    return judged(is_little, "; ".join(words)) if words else _nothing_resumed()


def losses_go_on(evidence: Evidence) -> Found:
    """Of the steps that were done twice, the losses before and after."""
    worst, num_steps = 0.0, 0
    for lost, later in evidence.losses_of_machines():
        before = evidence.losses.get(lost.attempt.number, {})
        after = evidence.losses.get(later.attempt.number, {}) if later else {}
        common = before.keys() & after.keys()
        num_steps += len(common)
        worst = max([worst, *(abs(after[step] - before[step]) / abs(before[step]) for step in common)])
    if not num_steps:
        return Found(Mark.NOT_SHOWN, "no logged step was done both before and after")
    return judged(worst <= _SAME_LOSS, f"{num_steps} logged steps were done twice, their losses differ by "
                                        f"{worst:.2%} at most")


def finished(evidence: Evidence) -> Found:
    """The outcome, and the step that is durable at the end."""
    outcome, steps = evidence.record.outcome, evidence.plan.steps
    words = ending_words(evidence.record) or "has not ended"
    if outcome is None:
        return Found(Mark.FAIL, words)
    is_done = outcome.outcome is Outcome.FINISHED and outcome.step == steps
    return judged(is_done, f"step {outcome.step} of {steps} is durable; {words}")


def benchmarked(evidence: Evidence) -> Found:
    """The device that the benchmark has named; that none could be had is shown by no run."""
    record = evidence.record
    if record.bench is None:
        end = record.bench_end
        mark = Mark.NOT_SHOWN if end and end.outcome is Outcome.NO_CAPACITY else Mark.FAIL
        return Found(mark, f"there is none: {end.reason if end else ending_words(record) or 'no end'}")
    speed = Throughput.model_validate(record.bench["throughput"])
    return Found(Mark.PASS if speed.is_rtx5090 else Mark.NOT_SHOWN,
                 f"{speed.tokens_per_s:,.0f} tokens/s on {speed.device}")


def set_up_timed(evidence: Evidence) -> Found:
    """Seconds from the bill's begin to the first step."""
    trained = [files.heartbeat.phases.until_training_s for files in evidence.record.attempts
               if files.heartbeat and has_trained(files)]
    if not trained:
        return Found(Mark.FAIL, "no attempt has trained")
    planned = next((part.hours for part in evidence.plan.parts if part.name == "set-up"), None)
    words = ", ".join(f"{seconds:.0f} s" for seconds in trained)
    return judged(all(seconds > 0 for seconds in trained),
                   words + (f"; planned ~{float(planned.mid) * 3600:.0f} s each" if planned else ""))


def _nothing_resumed() -> Found:
    return Found(Mark.NOT_SHOWN, "nothing was resumed")


def _resumed(evidence: Evidence) -> Iterator[tuple[AttemptFiles, int, int, int]]:
    """Attempts whose work went on: their newest step known to be durable, the step from which the next one
    resumed, and how far they had come."""
    for lost, later in evidence.losses_of_machines():
        if lost.heartbeat and later and later.heartbeat:
            yield (lost, lost.heartbeat.durable_step, later.heartbeat.resumed_from_step, lost.heartbeat.step)


def _has_worked(files: AttemptFiles) -> bool:
    return has_trained(files) or (files.attempt.document is Document.BENCH and files.end is not None
                                   and files.end.exit_code == 0)


def _is_card(seen: SeenGpu, wanted: str | None) -> bool:
    """By the launcher's own reading of drivers' names: the node has already judged by another."""
    name = Gpu(name=seen.name, memory_gib=seen.memory_gib or 0, driver=seen.driver).sky_name
    return name.lower() == (wanted or "").lower()
