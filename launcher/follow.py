"""Watch a run until it ends: what happened as lines, how far it is as a bar.

Only reads: the run goes on whether somebody watches or not.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from launcher import console
from launcher.engine import Engine, EnginePhase
from launcher.run_record import RunRecord, load_record
from trainer.contract import Document
from trainer.run_folder import AttemptFiles, Heartbeat
from trainer.store import Store

_POLL_S = 0.5


def follow(store: Store, engine: Engine, run_id: str) -> RunRecord:
    """Show a run until its engine says that it is over. Returns its last record."""
    shown: dict[tuple[int, str], bool] = {}
    with console.progress_line() as line:
        while True:
            state = engine.state(run_id)
            record = load_record(store, run_id)
            for files in record.attempts:
                _show_news(files, line, shown)
            _show_progress(record, line)
            if state.phase not in (EnginePhase.RUNNING, EnginePhase.STOPPING):
                return load_record(store, run_id)
            time.sleep(_POLL_S)


def _show_news(files: AttemptFiles, line: console.ProgressLine, shown: dict[tuple[int, str], bool]) -> None:
    """Say once what is new about an attempt."""
    number, document = files.attempt.number, files.attempt.document

    def once(what: str, say: Callable[[], None]) -> None:
        if (number, what) not in shown:
            shown[number, what] = True
            say()

    once("start", lambda: line.say(f"attempt {number}: {document} on {files.attempt.offer}; setting up", "title"))
    beat = files.heartbeat
    if beat and document is Document.TRAIN and beat.phases.train_s > 0:
        once("first step", lambda: _say_first_step(number, beat, line))
    if beat and beat.durable_step > beat.resumed_from_step:
        once(f"durable {beat.durable_step}",
             lambda: line.say(f"attempt {number}: checkpoint of step {beat.durable_step} is durable", "quiet"))
    if files.end:
        end = files.end
        style = "note" if end.preempted else None
        once("end", lambda: line.say(f"attempt {number}: {end.reason}", style))


def _say_first_step(number: int, beat: Heartbeat, line: console.ProgressLine) -> None:
    line.restart()
    setup = console.duration(beat.phases.setup_s)
    if beat.resumed_from_step:
        line.say(f"attempt {number}: resumed from step {beat.resumed_from_step} after {setup} of set-up", "fix")
    else:
        line.say(f"attempt {number}: training begins after {setup} of set-up")


def _show_progress(record: RunRecord, line: console.ProgressLine) -> None:
    if not record.attempts:
        return
    files = record.attempts[-1]
    if files.attempt.document is Document.TRAIN and files.heartbeat and not files.end:
        line.update(files.heartbeat.step, files.heartbeat.total_steps, describe(files.heartbeat))


def describe(beat: Heartbeat) -> str:
    """Losses, speed, dollars and time left of one heartbeat, for one line of 80 columns."""
    losses = [f"{short} {beat.metrics[name]:.2f}" for name, short in
              (("loss/hidden", "L_h"), ("loss/token", "L_w"), ("loss/diffusion", "L_diff")) if name in beat.metrics]
    rate = [f"{beat.tokens_per_s:,.0f} tok/s"] if beat.tokens_per_s else []
    left = [f"{console.duration(seconds)} left"] if (seconds := seconds_left(beat)) is not None else []
    return "  ".join([*losses, *rate, console.dollars(beat.spent_usd), *left])


def seconds_left(beat: Heartbeat) -> float | None:
    """Training time left at the pace of this attempt; None before it has one."""
    done = beat.step - beat.resumed_from_step
    if done <= 0 or beat.phases.train_s <= 0:
        return None
    return (beat.total_steps - beat.step) * beat.phases.train_s / done


def age(then: datetime) -> str:
    """How long ago, for people."""
    return console.duration(datetime.now(UTC) - then)
