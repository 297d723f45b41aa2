"""The `ldlm` command: parse, call, print. Everything slow is imported inside the commands."""

import io
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from launcher.carry_out import INTERRUPTED
from launcher.cli_offers import offers as list_offers
from launcher.cli_options import (
    AllowDirty,
    ApiServer,
    ControllerPrice,
    Csv,
    Deadline,
    Detach,
    DryRun,
    Everything,
    Follow,
    HtmlFile,
    Infra,
    Json,
    KeepWebhook,
    MaxCost,
    MaxHours,
    NewRunId,
    OffersFile,
    OneRun,
    PlanDigest,
    PngFile,
    PreemptAtText,
    PullCheckpoints,
    PullTo,
    RecipeName,
    RecipeToLaunch,
    Reconcile,
    RunId,
    Sets,
    Since,
    StopNow,
    StoreUrl,
    TryWebhook,
    WandbEntity,
    WandbProject,
    Yes,
    infra_of,
)
from launcher.cli_panels import ADVANCED, TwoPanels
from launcher.cli_simulate import simulate
from launcher.config_cli import app as config
from launcher.controller_cli import app as controller
from trainer.contract import LdlmError

if TYPE_CHECKING:
    from launcher.commands import PlanOptions
    from launcher.launching import Manner

app = typer.Typer(
    cls=TwoPanels, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Train latent diffusion language models, survive losing the machine, know what it cost.",
    epilog="Exit codes: 0 done; 1 refused or not planned for; 2 usage; 3 recipe; 4 no offer within the "
           "limits; 5 engine, or a run that failed; 6 run record or store; 130 interrupted.")

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare text for training.")
weights = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Mirror weights of token encoders.")
app.add_typer(data, name="data", rich_help_panel=ADVANCED)
app.add_typer(weights, name="weights", rich_help_panel=ADVANCED)
app.add_typer(controller, name="controller", rich_help_panel=ADVANCED)
app.add_typer(config, name="config", rich_help_panel=ADVANCED)
app.command(rich_help_panel=ADVANCED)(simulate)
app.command("offers", rich_help_panel=ADVANCED)(list_offers)
# The trainer's own parser knows the options, and has the help.
_PASSED_ON: dict[str, Any] = {"add_help_option": False, "context_settings": {
    "ignore_unknown_options": True, "allow_extra_args": True}}


@app.command()
def doctor(recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="What would run.")] = None,
           infra: Infra = None, store: StoreUrl = None, webhook: TryWebhook = False,
           as_json: Json = False) -> None:
    """Check that everything is there before money is spent."""
    from launcher import console
    from launcher import doctor as examination

    findings = examination.examine(recipe, infra_of(infra), store, try_webhook=webhook)
    if as_json:
        console.answer_json(examination.as_json(findings))
    else:
        examination.show(findings)
    examination.judge(findings)


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
         deadline: Deadline = None, max_hours: MaxHours = None, sets: Sets = None, offers: OffersFile = None,
         as_json: Json = False) -> None:
    """Show what a run would take and cost. Never spends."""
    from launcher import console, launching, plan_screen
    from launcher.next_steps import after_plan
    from launcher.quotes import Order
    from launcher.refusals import refusals

    order = Order(command="launch", what=recipe,
                  options=_options(infra, store, None, max_cost, deadline, sets, offers, max_hours))
    proposal = launching.propose(order)
    quote, reasons = launching.quoted(order, proposal), list(refusals(proposal))
    if as_json:
        console.answer_json(plan_screen.plan_json(proposal, quote, reasons))
        return
    plan_screen.show_plan(proposal, quote)
    plan_screen.show_next(reasons, *after_plan(proposal.plan, sys.argv[2:], is_refused=bool(reasons)))


@app.command()
def launch(recipe: RecipeToLaunch = None, plan: PlanDigest = None, infra: Infra = None,
           store: StoreUrl = None, max_cost: MaxCost = None, deadline: Deadline = None,
           max_hours: MaxHours = None, sets: Sets = None, run_id: NewRunId = None, yes: Yes = False,
           dry_run: DryRun = False, preempt_at: PreemptAtText = None, detach: Detach = False,
           allow_dirty: AllowDirty = False, offers: OffersFile = None) -> None:
    """Plan, ask, train, benchmark, bill."""
    from launcher.launching import start

    start("launch", recipe, _options(infra, store, run_id, max_cost, deadline, sets, offers, max_hours), plan,
          _manner(yes, detach, allow_dirty, preempt_at, dry_run=dry_run))


@app.command()
def status(run: OneRun = None, store: StoreUrl = None, as_json: Json = False) -> None:
    """Show where one run is and whether it learns, or list all."""
    from launcher import console, course_screen, kept, learning_screen, screens
    from launcher.learning import learned
    from launcher.runs import view_run

    if run is None:
        _list_runs(store, as_json)
        return
    view = view_run(run, store)
    found = learned(view.record)
    if as_json:
        console.answer_json(screens.status_json(view) | learning_screen.learning_json(found)
                            | kept.kept_json(view.record) | course_screen.course_json(view))
    else:
        screens.show_status(view, found, [*course_screen.course_facts(view), *kept.kept_facts(view.record)])
        screens.show_bench(view.record)


@app.command()
def logs(run: RunId, follow: Follow = False, store: StoreUrl = None) -> None:
    """Print what the nodes of a run have printed."""
    from launcher.course_screen import say_course
    from launcher.runs import find_engine

    engine = find_engine(run, store)
    say_course(run, store)
    for line in engine.logs(run, follow=follow):
        print(line, flush=follow)


@app.command()
def stop(run: RunId, store: StoreUrl = None, now: StopNow = False) -> None:
    """Save a checkpoint and stop a run; `resume` continues it."""
    from launcher import console
    from launcher.runs import find_engine
    from launcher.stopping import stop_now

    engine = find_engine(run, store)
    if now:
        stop_now(engine, run)
        return
    engine.cancel(run)
    console.answer(f"asked {run} to save and stop; see it happen: ldlm logs -f {run}")


@app.command()
def resume(run: RunId, plan: PlanDigest = None, infra: Infra = None, store: StoreUrl = None,
           max_cost: MaxCost = None, deadline: Deadline = None, max_hours: MaxHours = None, yes: Yes = False,
           preempt_at: PreemptAtText = None, detach: Detach = False, allow_dirty: AllowDirty = False,
           offers: OffersFile = None) -> None:
    """Continue a run from its newest durable checkpoint."""
    from launcher.launching import start

    start("resume", run, _options(infra, store, None, max_cost, deadline, None, offers, max_hours), plan,
          _manner(yes, detach, allow_dirty, preempt_at))


@app.command()
def cost(run: OneRun = None, since: Since = None, store: StoreUrl = None, as_json: Json = False,
         as_csv: Csv = False, html: HtmlFile = None, png: PngFile = None,
         reconcile: Reconcile = False) -> None:
    """Show where the money of a run went, or of all runs."""
    from launcher.cost_command import Asked, run_cost

    run_cost(run, store, Asked(since, as_json=as_json, as_csv=as_csv, reconciles=reconcile, html=html,
                               png=png))


@app.command(**_PASSED_ON)
def sample(ctx: typer.Context) -> None:
    """Generate text from a run or an export."""
    _in_trainer("trainer.sample", ctx.args)


@app.command(rich_help_panel=ADVANCED)
def init(store: StoreUrl = None, max_cost: MaxCost = None,
         wandb_project: WandbProject = None, wandb_entity: WandbEntity = None, api_server: ApiServer = None,
         usd_per_hour: ControllerPrice = None, webhook: KeepWebhook = False, yes: Yes = False) -> None:
    """Settle store, cap, W&B and SkyPilot for every run, once."""
    from launcher.set_up import run_init
    from launcher.settings import Settings
    from launcher.webhook_setting import keep_webhook

    given = Settings(store=store, max_cost_usd=max_cost, wandb_project=wandb_project,
                     wandb_entity=wandb_entity, api_server=api_server, controller_usd_per_hour=usd_per_hour)
    keep_webhook() if webhook else run_init(given, yes)


@app.command(rich_help_panel=ADVANCED)
def canary(run: RunId, store: StoreUrl = None, as_json: Json = False) -> None:
    """Judge a canary run again, with the provider's bill."""
    from launcher.canary_judge import judge_run

    judge_run(run, store, as_json=as_json)


@app.command(rich_help_panel=ADVANCED)
def bench(run: RunId, plan: PlanDigest = None, infra: Infra = None, store: StoreUrl = None,
          max_cost: MaxCost = None, deadline: Deadline = None, yes: Yes = False, detach: Detach = False,
          allow_dirty: AllowDirty = False, offers: OffersFile = None) -> None:
    """Benchmark a trained run that found no machine for it."""
    from launcher.launching import start

    start("bench", run, _options(infra, store, None, max_cost, deadline, None, offers), plan,
          _manner(yes, detach, allow_dirty, None))


@app.command("bench-here", rich_help_panel=ADVANCED, **_PASSED_ON)
def bench_here(ctx: typer.Context) -> None:
    """Time generation here, beside what the device allows at best."""
    _in_trainer("trainer.bench", ["generate", *ctx.args])


@app.command(rich_help_panel=ADVANCED, **_PASSED_ON)
def evaluate(ctx: typer.Context) -> None:
    """Measure a run on held-out text, and its own text by a judge."""
    _in_trainer("trainer.measure", ctx.args)


@app.command(rich_help_panel=ADVANCED, **_PASSED_ON)
def humaneval(ctx: typer.Context) -> None:
    """Run programs that a run has completed: pass@k, in a sandbox."""
    _in_trainer("trainer.humaneval", ctx.args)


@app.command(rich_help_panel=ADVANCED, **_PASSED_ON)
def export(ctx: typer.Context) -> None:
    """Write what generation needs into a folder or onto the Hub."""
    _in_trainer("trainer.export", ctx.args)


@app.command(rich_help_panel=ADVANCED)
def pull(run: RunId, to: PullTo = ".", checkpoints: PullCheckpoints = "newest", store: StoreUrl = None,
         yes: Yes = False, as_json: Json = False) -> None:
    """Bring a run home: records, metrics, benchmark, checkpoint."""
    from launcher.pulling import run_pull

    raise SystemExit(run_pull(run, to, checkpoints, store, yes=yes, as_json=as_json))


@app.command(rich_help_panel=ADVANCED)
def rm(run: RunId, everything: Everything = False, store: StoreUrl = None, yes: Yes = False,
       as_json: Json = False) -> None:
    """Delete a run's checkpoints, which a bucket bills for ever."""
    from launcher.removing import run_rm

    run_rm(run, store, everything=everything, yes=yes, as_json=as_json)


@app.command(rich_help_panel=ADVANCED)
def sweep(yes: Yes = False, as_json: Json = False) -> None:
    """Find rented machines that no run needs, and give them back."""
    from launcher.sweeping import run_sweep

    run_sweep(yes=yes, as_json=as_json)


@app.command("wandb", rich_help_panel=ADVANCED, **_PASSED_ON)
def show_on_wandb(ctx: typer.Context) -> None:
    """Send a run to W&B, or make the panels that show it."""
    _in_trainer("trainer.wandb_command", ctx.args)


@data.command("prepare", **_PASSED_ON)
def data_prepare(ctx: typer.Context) -> None:
    """Turn text, JSONL, Parquet or a Hugging Face dataset into token shards."""
    from trainer.prepare_options import asks_for_nodes

    if asks_for_nodes(ctx.args):
        from launcher.prepare_nodes import prepare_on_nodes

        prepare_on_nodes(ctx.args)
        return
    _in_trainer("trainer.prepare", ctx.args)


@weights.command("mirror", **_PASSED_ON)
def weights_mirror(ctx: typer.Context) -> None:
    """Put the used part of a token encoder into the store, once."""
    _in_trainer("trainer.mirror", ctx.args)


def main() -> None:
    """Entry point. The only catcher: turns what was raised on purpose into a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what this terminal cannot show is no reason to end
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the answer has had enough; the flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run() -> int:
    try:
        code = int(app(prog_name="ldlm", standalone_mode=False) or 0)
    except LdlmError as error:
        return _show(error)
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined]  # Typer's own Click is private
        return int(getattr(error, "exit_code", 2))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        return _show(LdlmError(error.strerror or str(error), place=str(error.filename or "") or None,
                               fix="check that it exists, its permissions and the space on its disk"))
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code


def _show(error: LdlmError) -> int:
    from launcher import console

    console.show_error(error)
    return error.cli_exit_code


def _in_trainer(module: str, arguments: list[str]) -> NoReturn:
    from launcher.trainer_commands import run_command

    raise SystemExit(run_command(module, arguments))


def _options(infra: list[str] | None, store: str | None, run_id: str | None, max_cost: str | None,
             deadline: str | None, sets: list[str] | None, offers: str | None = None,
             max_hours: str | None = None) -> "PlanOptions":
    from launcher.commands import PlanOptions

    return PlanOptions(infra=infra_of(infra), store=store, run_id=run_id, max_cost=max_cost,
                       deadline=deadline, max_hours=max_hours, overrides=sets or (), offers=offers)


def _manner(yes: bool, detach: bool, allow_dirty: bool, preempt_at: str | None, *,
            dry_run: bool = False) -> "Manner":
    from launcher.launching import Manner
    from launcher.preempt_at import parse_preempt_at

    preemption = parse_preempt_at(preempt_at) if preempt_at is not None else None
    return Manner(yes=yes, detach=detach, allow_dirty=allow_dirty, preempt_at=preemption, dry_run=dry_run)


def _list_runs(store_url: str | None, as_json: bool) -> None:
    from launcher import runs, screens

    opened = runs.open_default_store(store_url)
    views, problems = runs.view_all_runs(opened)
    screens.show_damaged(views, problems)
    screens.show_runs(views, opened.url, as_json)
    if problems:
        raise SystemExit(problems[0].cli_exit_code)
