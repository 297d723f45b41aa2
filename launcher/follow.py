"""Watch a run until it ends: what happened as lines, how far it is as a bar.

Only reads: the run goes on whether somebody watches or not.
"""

import time
from collections.abc import Callable

from launcher import console
from launcher.course_screen import newest_move, say_move
from launcher.engine import ALIVE, Engine
from launcher.errors import LdlmError
from launcher.run_record import RunRecord, load_record
from trainer.contract import Document
from trainer.run_folder import AttemptFiles, Heartbeat
from trainer.store import Store

_POLL_S = 0.5


def follow(store: Store, engine: Engine, run_id: str,
           on_look: Callable[[RunRecord], None] = lambda record: None) -> RunRecord:
    """Show a run until its engine says that it is over. Returns its last record.

    A store that cannot be read is asked again: the run itself is more patient still.

    Args:
        on_look: Called with every record that is read, until the last.

    Raises:
        LdlmError: The run is over and its record cannot be read.
    """
    shown: set[tuple[int, str]] = set()
    problem, action = "", "spot"  # as every course begins by its plan
    with console.progress_line() as line:
        while True:
            # Asked before reading: what was written before the answer is then surely read.
            is_over = engine.state(run_id).phase not in ALIVE
            try:
                record = load_record(store, run_id)
                move = None if is_over else newest_move(store, record)
            except LdlmError as error:
                if is_over:
                    raise
                if str(error) != problem:
                    problem = str(error)
                    line.say(f"the run goes on, but cannot be watched: {problem}", "note")
            else:
                _show(record, line, shown)
                if is_over:
                    return record
                if move and move.action != action:
                    action = move.action
                    say_move(move, line.say)
                on_look(record)
            time.sleep(_POLL_S)


def _show(record: RunRecord, line: console.ProgressLine, shown: set[tuple[int, str]]) -> None:
    for files in record.attempts:
        _show_news(files, line, shown)
    _show_progress(record, line)


def _show_news(files: AttemptFiles, line: console.ProgressLine, shown: set[tuple[int, str]]) -> None:
    """Say once what is new about an attempt."""
    number, document = files.attempt.number, files.attempt.document

    def once(what: str, say: Callable[[], None]) -> None:
        if (number, what) not in shown:
            shown.add((number, what))
            say()

    doing = "training" if document is Document.TRAIN else "benchmark"
    start = f"attempt {number}: {doing} on {files.attempt.offer}, setting up"
    once("start", lambda: line.say(start, "title"))
    beat = files.heartbeat
    if beat and document is Document.TRAIN and beat.phases.train_s > 0:
        once("first step", lambda: _say_first_step(number, beat, line))
    if beat and beat.durable_step > beat.resumed_from_step:
        durable = f"attempt {number}: checkpoint of step {beat.durable_step} is durable"
        once(durable, lambda: line.say(durable, "quiet"))
    if files.end:
        end = files.end
        style = "note" if end.preempted else None
        once("end", lambda: line.say(f"attempt {number}: {end.reason}", style))


def _say_first_step(number: int, beat: Heartbeat, line: console.ProgressLine) -> None:
    line.restart()
    setup = console.duration(beat.phases.until_training_s)
    if beat.resumed_from_step:
        line.say(f"attempt {number}: resumed from step {beat.resumed_from_step}, set-up took {setup}", "fix")
    else:
        line.say(f"attempt {number}: training begins, set-up took {setup}")


def _show_progress(record: RunRecord, line: console.ProgressLine) -> None:
    files = record.open_attempt
    if files and files.attempt.document is Document.TRAIN and files.heartbeat:
        line.update(files.heartbeat.step, files.heartbeat.total_steps, describe(files.heartbeat))
    else:
        line.hide()


def describe(beat: Heartbeat) -> str:
    """One heartbeat for one line, what matters most first: a narrow terminal cuts off the end."""
    left = [f"{console.rough_duration(seconds)} left"] if (seconds := seconds_left(beat)) is not None else []
    rate = [f"{beat.tokens_per_s:,.0f} tok/s"] if beat.tokens_per_s else []
    return "  ".join([*left, console.dollars(beat.spent_usd), *rate, *losses(beat)])


def losses(beat: Heartbeat) -> list[str]:
    """The losses of the last step: diffusion, tokens (words), hidden states."""
    names = (("loss/diffusion", "L_diff"), ("loss/token", "L_w"), ("loss/hidden", "L_h"))
    return [f"{short} {beat.metrics[name]:.2f}" for name, short in names if name in beat.metrics]


def seconds_left(beat: Heartbeat) -> float | None:
    """Training time left at the pace of this attempt; None before it has one."""
    done = beat.step - beat.resumed_from_step
    if done <= 0 or beat.phases.train_s <= 0:
        return None
    return (beat.total_steps - beat.step) * beat.phases.train_s / done
