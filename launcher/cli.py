"""The `ldlm` command: parse, call, print. Everything slow is imported inside the commands."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from trainer.contract import LdlmError

if TYPE_CHECKING:
    from launcher.commands import PlanOptions, Proposal
    from launcher.preempt_at import PreemptAt
    from launcher.run_record import RunRecord
    from trainer.store import Store

_ADVANCED = "Advanced"


class _TwoPanels(TyperGroup):
    """Commands that a run needs first, the rarer ones below. Plain text: rich would cost 0.1 s."""

    def format_commands(self, ctx: typer.Context, formatter: object) -> None:
        for panel in ("Commands", _ADVANCED):
            rows = [(name, command.get_short_help_str(60)) for name, command in self.commands.items()
                    if (getattr(command, "rich_help_panel", None) == _ADVANCED) == (panel == _ADVANCED)]
            with formatter.section(panel):  # type: ignore[attr-defined]
                formatter.write_dl(rows)  # type: ignore[attr-defined]


app = typer.Typer(
    cls=_TwoPanels, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Train latent diffusion language models on rented spot GPUs, and know where the money went.")

RecipeName = Annotated[str, typer.Argument(help="A name from `ldlm recipes`, or a .yaml file.", metavar="RECIPE")]
RunId = Annotated[str, typer.Argument(help="Id of a run, see `ldlm status`.", metavar="RUN")]
StoreUrl = Annotated[str | None, typer.Option("--store", help="Object store: file:///dir, s3://bucket/prefix, …")]
Infra = Annotated[str | None, typer.Option("--infra", help="local, vast, azure, gcp, gcp/us-central1, …")]
MaxCost = Annotated[str | None, typer.Option("--max-cost", help="Dollars at which the run stops itself.")]
Deadline = Annotated[str | None, typer.Option("--deadline", help="Hours from now after which it stops itself.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change the recipe: train.steps=100. Repeatable.")]
NewRunId = Annotated[str | None, typer.Option("--run-id", help="Name the run yourself.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
PreemptAtText = Annotated[str | None, typer.Option(
    "--preempt-at", help="local: kill the machine at step:N or time:SECONDS, to see the recovery.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return at once; the run goes on.")]


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes."""
    from launcher import console, screens
    from launcher.recipe import list_recipes

    found = list_recipes()
    if as_json:
        console.answer_json([{"name": recipe.name, "summary": recipe.summary, "problem": recipe.problem}
                             for recipe in found])
    else:
        screens.show_recipes(found)


@app.command()
def plan(recipe: RecipeName, infra: Infra = None, store: StoreUrl = None, max_cost: MaxCost = None,
         deadline: Deadline = None, sets: Sets = None, as_json: Json = False) -> None:
    """Show what a run would take and cost. Never spends."""
    from launcher import console, screens
    from launcher.commands import propose

    proposal = propose(recipe, _options(infra, store, None, max_cost, deadline, sets))
    if as_json:
        console.answer_json(screens.plan_json(proposal))
        return
    screens.show_plan(proposal)
    console.answer("nothing was started; `ldlm launch` with the same words does")


@app.command()
def launch(recipe: RecipeName, infra: Infra = None, store: StoreUrl = None, max_cost: MaxCost = None,
           deadline: Deadline = None, sets: Sets = None, run_id: NewRunId = None, yes: Yes = False,
           dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SkyPilot task, start nothing.")] = False,
           preempt_at: PreemptAtText = None, detach: Detach = False) -> None:
    """Plan, ask, train, benchmark, bill."""
    from launcher import screens
    from launcher.commands import check_usable, propose, submit
    from launcher.engine import check_infra

    preemption = _preemption(preempt_at)
    if infra and infra != "local" and not dry_run:
        check_infra(infra)
    proposal = propose(recipe, _options(infra, store, run_id, max_cost, deadline, sets))
    if dry_run:
        screens.show_problems(proposal)
        print(proposal.task.text, end="")
        return
    check_usable(proposal)
    _approve(proposal, yes)
    submit(proposal, preemption)
    _attend(proposal, detach)


@app.command()
def status(run: Annotated[str | None, typer.Argument(help="Id of a run; none: all runs.", metavar="[RUN]")] = None,
           store: StoreUrl = None, as_json: Json = False) -> None:
    """Show where one run is, or list all."""
    from launcher import console, screens
    from launcher.commands import open_run
    from launcher.local_engine import LocalEngine

    if run is None:
        _list_runs(store, as_json)
        return
    _, record = open_run(run, store)
    state = LocalEngine().state(run)
    if as_json:
        console.answer_json(screens.status_json(record, state))
    else:
        screens.show_status(record, state)
        screens.show_bench(record)


@app.command()
def logs(run: RunId, follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False) -> None:
    """Print what the nodes of a run have printed."""
    from launcher.local_engine import LocalEngine

    for line in LocalEngine().logs(run, follow=follow):
        print(line, flush=follow)


@app.command()
def stop(run: RunId, store: StoreUrl = None) -> None:
    """Save a checkpoint and stop a run; `resume` continues it. Twice: stop at once."""
    from launcher import console
    from launcher.commands import open_run
    from launcher.local_engine import LocalEngine

    open_run(run, store)
    LocalEngine().cancel(run)
    console.answer(f"asked {run} to save and stop; see it happen: ldlm logs -f {run}")


@app.command()
def resume(run: RunId, infra: Infra = None, store: StoreUrl = None, max_cost: MaxCost = None,
           deadline: Deadline = None, yes: Yes = False, preempt_at: PreemptAtText = None,
           detach: Detach = False) -> None:
    """Continue a run from its newest durable checkpoint."""
    from launcher import commands

    preemption = _preemption(preempt_at)
    opened, _ = commands.open_run(run, store)
    proposal = commands.propose_resume(opened, run, _options(infra, None, None, max_cost, deadline, None))
    commands.check_usable(proposal)
    _approve(proposal, yes)
    commands.resume(proposal, preemption)
    _attend(proposal, detach)


@app.command()
def cost(run: RunId, store: StoreUrl = None, as_json: Json = False) -> None:
    """Show where the money of a run went."""
    from datetime import UTC, datetime

    from launcher import console, screens
    from launcher.commands import open_run
    from launcher.report import cost_report

    _, record = open_run(run, store)
    report = cost_report(record, datetime.now(UTC))
    if as_json:
        console.answer_json(report.to_json())
    else:
        screens.show_cost(report)


@app.command(rich_help_panel=_ADVANCED)
def rm(run: RunId, store: StoreUrl = None, yes: Yes = False) -> None:
    """Delete a run's folder: checkpoints, metrics, bill."""
    from launcher import commands, console

    opened, record = commands.open_run(run, store)
    size = sum(item.num_bytes for item in opened.objects(run))
    _ask(f"Delete {record.url} ({console.data_size(size)})?", yes)
    freed = commands.remove_run(opened, record)
    console.answer(f"deleted {run}: {console.data_size(freed)} freed")


def main() -> None:
    """Entry point. The only catcher: turns what was raised on purpose into a message and an exit code."""
    try:
        code = app(standalone_mode=False)
    except LdlmError as error:
        from launcher import console

        console.show_error(error)
        code = error.cli_exit_code
    except typer.TyperException as error:
        error.show()
        code = error.exit_code
    if code == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(code or 0)


def _options(infra: str | None, store: str | None, run_id: str | None, max_cost: str | None,
             deadline: str | None, sets: list[str] | None) -> "PlanOptions":
    from launcher.commands import PlanOptions

    return PlanOptions(infra=infra, store=store, run_id=run_id, max_cost=max_cost, deadline=deadline,
                       overrides=sets or ())


def _preemption(text: str | None) -> "PreemptAt | None":
    from launcher.preempt_at import parse_preempt_at

    return parse_preempt_at(text) if text is not None else None


def _approve(proposal: "Proposal", yes: bool) -> None:
    from launcher import screens

    screens.show_plan(proposal)
    _ask("Start it?", yes)


def _ask(question: str, yes: bool) -> None:
    from launcher import console
    from launcher.errors import Refused

    if yes:
        return
    if not console.can_ask():
        raise Refused("nobody is here to answer, so nothing was done", fix="add --yes")
    if not console.confirm(question):
        raise Refused("you said no, so nothing was done")


def _attend(proposal: "Proposal", detach: bool) -> None:
    """Watch a run until it ends, then show what came of it. Ctrl-C only ends the watching."""
    from launcher import console
    from launcher.commands import open_run
    from launcher.follow import follow
    from launcher.local_engine import LocalEngine

    run_id = proposal.plan.run_id
    again = f"ldlm status {run_id}, ldlm logs -f {run_id}, ldlm stop {run_id}"
    store, _ = open_run(run_id, proposal.recipe.store)
    if detach:
        console.answer(f"run {run_id} is under way: {again}")
        return
    try:
        record = follow(store, LocalEngine(), run_id)
    except KeyboardInterrupt:
        console.talk(f"\nno longer watching; the run goes on: {again}")
        raise
    _show_end(store, record)


def _show_end(store: "Store", record: "RunRecord") -> None:
    from datetime import UTC, datetime

    from launcher import console, screens
    from launcher.errors import EngineError
    from launcher.report import cost_report
    from launcher.run_record import outcome_words
    from trainer.contract import Outcome

    screens.show_bench(record)
    console.answer()
    screens.show_cost(cost_report(record, datetime.now(UTC)))
    ended = outcome_words(record.outcome)
    if record.outcome is None or record.outcome.outcome not in (Outcome.FINISHED, Outcome.LIMIT, Outcome.STOPPED):
        raise EngineError(f"run {record.run_id} {ended}", place=record.url, fix=f"read ldlm logs {record.run_id}")
    console.answer(f"run {record.run_id}: {ended}", "title")


def _list_runs(store_url: str | None, as_json: bool) -> None:
    from launcher import console, screens
    from launcher.commands import open_default_store
    from launcher.local_engine import LocalEngine
    from launcher.run_record import list_run_ids, load_record, status_of

    opened, engine = open_default_store(store_url), LocalEngine()
    records = [load_record(opened, run_id) for run_id in list_run_ids(opened)]
    if as_json:
        console.answer_json([screens.status_json(record, engine.state(record.run_id)) for record in records])
    elif records:
        screens.show_runs([(record, status_of(record, engine.state(record.run_id))) for record in records])
    else:
        console.answer(f"no runs in {opened.url} yet; start one: ldlm launch smoke")
