"""Where the records that a bill is made of contradict each other, and what the bill makes of it. Pure.

A bill is made of what several machines have written, each by its own clock. What cannot be true is still
billed, never more than was paid for and never twice to hide it, and said.
"""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise

from launcher import console
from launcher.rental_cost import rental_of
from launcher.run_record import RunRecord
from trainer.contract import CLOCK_SKEW, Name, attempt_file
from trainer.run_folder import STARTS, AttemptFiles, Heartbeat
from trainer.spent import told_by

_MOMENT_S = 5.0  # a heartbeat takes to write, or clocks of one network differ by (guess)


def doubts(record: RunRecord, untils: Sequence[datetime]) -> Iterator[str]:
    """A sentence for each contradiction.

    Args:
        record: Of the run.
        untils: Until when each attempt is charged.
    """
    if record.plan is None and record.attempts and Name.PLAN not in record.torn_names:
        yield ("its plan is gone from the store: whether its price was simulated nobody knows, and a monthly "
               "cap counts it as real")
    yield from _of_attempts(record.attempts, untils)
    yield from _of_gaps(record)
    for files, until in zip(record.attempts, untils, strict=True):
        yield from _of_one(files, until)
    yield from (_of_torn(record, name, problem.problem.partition(":")[0])
                for name, problem in zip(record.torn_names, record.torn, strict=True))
    if record.num_torn:
        yield (f"{record.num_torn} of the lines in which SkyPilot's server notes what it rents cannot be "
               f"read: a machine may be missing here; compare: ldlm cost {record.run_id} --reconcile")
    starts = [event.at for event in record.events if event.kind in STARTS]
    if record.attempts and not starts:
        yield "no event tells when it was started: what its supervision has cost is not in the bill"
    if any(event.kind == "ended" and (not starts or event.at < starts[0]) for event in record.events):
        yield ("the run's end is dated before its start: a clock was wrong, and its supervision is charged "
               "until now")


def _of_torn(record: RunRecord, name: str, problem: str) -> str:
    instead = {
        Name.PLAN: "whether its price was simulated nobody knows",
        Name.OUTCOME: "how the run ended is what its events tell",
        Name.RENTALS: "machines are billed by what their nodes tell, those on which none began not at all",
        Name.BENCH: "what the benchmark has found is not known, what it cost is",
    } | {attempt_file(files.attempt.number, "attempt.json"): _stand_in_words(files, record)
         for files in record.attempts}
    return (f"{name} {problem}: {instead.get(name, 'the bill is made without it')}; if there is a backup, "
            "restore it")


def _stand_in_words(files: AttemptFiles, record: RunRecord) -> str:
    """What an attempt is billed by whose own record cannot be read."""
    attempt, price = files.attempt, files.attempt.price_usd_per_hour
    begin = "as its heartbeats tell" if files.heartbeat else "when the one before it was last heard of"
    beside = _beside_hours_words(files, record)
    if not price:
        return f"no price of attempt {attempt.number} is known, and nothing is billed for its hours{beside}"
    return (f"attempt {attempt.number} is in doubt, and billed from {attempt.billed_from:%Y-%m-%d %H:%M:%S} "
            f"UTC on, {begin}, at ${price:.2f} an hour, the dearest that is known{beside}")


def _beside_hours_words(files: AttemptFiles, record: RunRecord) -> str:
    """What is billed beside its hours, where no contract tells that; nothing at home."""
    if files.attempt.terms:
        return ", its disk and network by the list prices of the attempt beside it"
    was_elsewhere = any(event.detail.get("infra", "local") != "local" for event in record.events)
    if not was_elsewhere or rental_of(files, record.rentals):
        return ""
    return ", its disk and network not at all: what they cost is not known"


def _of_attempts(attempts: Sequence[AttemptFiles], untils: Sequence[datetime]) -> Iterator[str]:
    for (one, until), (other, _) in pairwise(zip(attempts, untils, strict=True)):
        first, second = one.attempt.number, other.attempt.number
        begins = other.attempt.billed_from
        if begins < one.attempt.billed_from:
            early = console.duration(one.attempt.billed_from - begins)
            yield (f"attempt {second} begins {early} before attempt {first}: their clocks disagree; "
                   "each is billed by its own")
        elif (both_s := (until - begins).total_seconds()) > _MOMENT_S:
            yield (f"attempts {first} and {second} overlap by {console.duration(both_s)}: both are billed, "
                   "since two machines were paid at once")


def _of_gaps(record: RunRecord) -> Iterator[str]:
    """Numbers that no attempt has: they are taken one after the other."""
    known = {files.attempt.number for files in record.attempts}
    for number in sorted(set(range(1, max(known, default=0))) - known):
        if attempt_file(number, "attempt.json") not in record.torn_names:
            yield f"attempt {number} has left no record: if it had a machine, that is not in the bill"


def _of_one(files: AttemptFiles, until: datetime) -> Iterator[str]:
    beat, number = files.heartbeat, files.attempt.number
    billed_s = (until - files.attempt.billed_from).total_seconds()
    if files.end and (early_s := (files.attempt.billed_from - files.end.at).total_seconds()) > 0:
        yield (f"attempt {number} ends {console.duration(early_s)} before it begins: two clocks disagree; it "
               f"is billed for {console.duration(billed_s)}, as its heartbeats tell")
    elif files.end is None and beat is None and until <= files.attempt.billed_from:
        yield f"attempt {number} left no sign of life and no end: nothing is billed for it"
    if files.end and (ahead := files.end.at - until) > CLOCK_SKEW:
        yield (f"attempt {number} ends {console.duration(ahead)} later than can be: a clock was wrong; it is "
               f"billed to {until:%Y-%m-%d %H:%M:%S} UTC")
    if beat is None:
        return
    yield from _of_numbers(number, beat)
    if (more_s := told_by(beat).total_seconds() - billed_s) > _MOMENT_S:
        yield (f"attempt {number} tells of {console.duration(more_s)} more than it is billed for: its clock "
               "was set; no more than was billed is shown")
    if files.end and files.end.at == until and (late_s := (beat.at - until).total_seconds()) > _MOMENT_S:
        yield (f"attempt {number} gave a sign of life {console.duration(late_s)} after its end: who "
               "ended it has another clock, or it lived on; it is billed to that end")


def _of_numbers(number: int, beat: Heartbeat) -> Iterator[str]:
    """Steps and lengths of time that nothing has."""
    steps = (beat.resumed_from_step, beat.durable_step, beat.step)
    if wrong := [step for step in steps if not 0 <= step <= beat.total_steps]:
        yield (f"attempt {number} tells of step {wrong[0]:,} of {beat.total_steps:,}, which cannot be: what "
               "is billed stands, what is told by its steps does not")
    lengths = {**beat.phases.model_dump(), "durable_train_s": beat.durable_train_s,
               "durable_evaluate_s": beat.durable_evaluate_s}
    for name, seconds in lengths.items():
        if not math.isfinite(seconds) or seconds < 0:
            yield (f"attempt {number} tells of {seconds:g} s as its {name}, which cannot be: what is billed "
                   "stands, what it went into does not")
