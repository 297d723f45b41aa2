"""Between the command line and a run: ask, start, watch, show the end. What is slow is imported when used."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from launcher.proposal import Proposal

INTERRUPTED = 130  # exit code, as shells count


def ask(question: str, yes: bool) -> None:
    """Ask on the terminal unless `yes`. Raises Refused, or SystemExit after Ctrl-C."""
    from launcher import console
    from launcher.errors import Refused

    if yes:
        return
    if not console.can_ask():
        raise Refused("nobody is here to answer, so nothing was done", fix="add --yes")
    try:
        agreed = console.confirm(question)
    except KeyboardInterrupt:
        end_interrupted("interrupted, so nothing was done")
    if not agreed:
        raise Refused("you said no, so nothing was done")


def carry_out(proposal: "Proposal", start: Callable[[], None], detach: bool) -> None:
    """Start what was approved and watch it to its end. Ctrl-C only ends the watching.

    Raises:
        UsageError: It is a canary that nobody would watch.
        EngineError: It has not ended as it should.
        LdlmError: It is a canary that has not kept a promise.
    """
    from launcher import canary, commands, console, runs
    from launcher.engines import engine_at
    from launcher.follow import follow

    canary.check_watched(proposal.recipe, detach=detach)
    run_id = proposal.plan.run_id
    try:
        start()
        if detach:
            console.answer(f"run {run_id} is under way: {commands.ways_to(run_id)}")
            return
        store, _ = runs.open_run(run_id, proposal.recipe.store)
        follow(store, engine_at(proposal.infra, store), run_id, canary.taker(proposal))
    except KeyboardInterrupt:
        end_interrupted(commands.after_interrupt(proposal))
    try:
        _show_end(run_id, proposal.recipe.store)
    finally:
        if proposal.recipe.canary:
            _judge_canary(run_id, proposal.recipe.store)


def end_interrupted(line: str) -> NoReturn:
    """Say what an interruption has left, and end the program."""
    from launcher import console

    console.talk(f"\n{line}")
    raise SystemExit(INTERRUPTED)


def _judge_canary(run_id: str, store: str | None) -> None:
    from launcher import console
    from launcher.canary_judge import PATIENCE_S, judge_run

    console.answer()
    judge_run(run_id, store, patience_s=PATIENCE_S)


def _show_end(run_id: str, store: str | None) -> None:
    from launcher import commands, console, cost_screen, kept, learning_screen, runs, screens
    from launcher.learning import learned
    from launcher.report import cost_report

    view = runs.view_run(run_id, store)
    learning_screen.show_learning(learned(view.record), with_samples=view.record.bench is None)
    screens.show_bench(view.record)
    console.answer()
    cost_screen.show_cost(cost_report(view))
    kept.show_bill_goes_on(view)
    console.answer()
    console.answer(commands.end_words(view), "title")
