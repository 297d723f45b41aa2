"""Options that several commands share: how they are typed, and what their help says."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.errors import UsageError
from launcher.infra import read_infra
from launcher.regions import known_region


def not_empty(param: typer.CallbackParam, value: str | None) -> str | None:
    """An empty text is a shell variable that is not set; taken for no option it would start another run."""
    if value == "":
        raise empty(param.opts[0])
    return value


def empty(option: str) -> UsageError:
    """The refusal of an option with an empty value."""
    return UsageError("is empty", place=option,
                      fix="give it a value, or leave it out (is a shell variable not set?)")


def infra_of(typed: list[str] | None) -> str | None:
    """The one infra that was asked for, as SkyPilot would read it, in a region that there is."""
    if not typed:
        return None
    if len(typed) > 1:
        raise UsageError("is there twice, and one place is asked for", place="--infra",
                         fix="leave one out; without any, all places that the recipe names are compared")
    if not typed[0]:
        raise empty("--infra")
    return known_region(read_infra(typed[0]))


RecipeName = Annotated[str, typer.Argument(
    help="A name from `ldlm recipes`, or a .yaml file.", metavar="RECIPE")]
RecipeToLaunch = Annotated[str | None, typer.Argument(
    help="A name from `ldlm recipes`, or a .yaml file; none beside --plan.", metavar="[RECIPE]")]
PlanDigest = Annotated[str | None, typer.Option(
    "--plan", callback=not_empty, metavar="DIGEST", help="Carry out exactly this plan, which was shown: "
    "to name it is to approve it, and nothing more is asked.")]
RunId = Annotated[str, typer.Argument(help="Id of a run, see `ldlm status`.", metavar="RUN")]
OneRun = Annotated[str | None, typer.Argument(help="Id of a run; none: all runs.", metavar="[RUN]")]
Since = Annotated[str | None, typer.Option(
    "--since", metavar="DATE", help="Only attempts that began then or later: 2026-11-01 (UTC).")]
Csv = Annotated[bool, typer.Option("--csv", help="One row an attempt.")]
HtmlFile = Annotated[Path | None, typer.Option(
    "--html", metavar="FILE", help="One page with charts, of one run.", dir_okay=False)]
PngFile = Annotated[Path | None, typer.Option(
    "--png", metavar="FILE", help="The charts as a picture; after `make evaluation-tools`.", dir_okay=False)]
Reconcile = Annotated[bool, typer.Option(
    "--reconcile", help="Beside Vast's record of charges, and SkyPilot's cost report.")]
StoreUrl = Annotated[str | None, typer.Option(
    "--store", callback=not_empty, help="Object store: file:///dir, s3://bucket/prefix, …")]
Infra = Annotated[list[str] | None, typer.Option(
    "--infra", help="local, vast, azure, gcp, gcp/us-central1, …")]
OffersFile = Annotated[str | None, typer.Option(
    "--offers", callback=not_empty, metavar="FILE", help="Prices of a file, as `ldlm offers --json` prints.")]
MaxCost = Annotated[str | None, typer.Option("--max-cost", help="Dollars at which the run stops itself.")]
Deadline = Annotated[str | None, typer.Option(
    "--deadline", help="Hours from now, or a date and time (UTC), at which it stops itself.")]
MaxHours = Annotated[str | None, typer.Option(
    "--max-hours", help="Paid hours, over all attempts, after which it stops itself.")]
Sets = Annotated[list[str] | None, typer.Option(
    "--set", help="Change the recipe: train.steps=100. Repeatable.")]
NewRunId = Annotated[str | None, typer.Option("--run-id", callback=not_empty, help="Name the run yourself.")]
AllowDirty = Annotated[bool, typer.Option(
    "--allow-dirty", help="Rented: take along changes that are in no commit.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the SkyPilot task, rent and write nothing.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")]
PreemptAtText = Annotated[str | None, typer.Option(
    "--preempt-at", help="local: kill the machine at step:N or time:SECONDS, to see the recovery.")]
StopNow = Annotated[bool, typer.Option("--now", help="Save nothing; wait until all of it has ended.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return at once; the run goes on.")]
WandbProject = Annotated[str | None, typer.Option(
    "--wandb-project", callback=not_empty, help="Project of runs on W&B.")]
WandbEntity = Annotated[str | None, typer.Option(
    "--wandb-entity", callback=not_empty, help="Its team or user.")]
ApiServer = Annotated[str | None, typer.Option(
    "--api-server", callback=not_empty, help="URL of your SkyPilot API server.")]
KeepWebhook = Annotated[bool, typer.Option(
    "--webhook", help="Only ask for an address that is told what happens to runs; it is kept secret.")]
TryWebhook = Annotated[bool, typer.Option("--webhook", help="Send a message to the webhook, for a try.")]
ControllerPrice = Annotated[str | None, typer.Option(
    "--controller-usd-per-hour", callback=not_empty, help="What its machine costs.")]
PullTo = Annotated[str, typer.Option(
    "--to", callback=not_empty, metavar="DIR", help="Folder that becomes a store with this run in it.")]
PullCheckpoints = Annotated[str, typer.Option(
    "--checkpoints", metavar="newest|all|none", help="Which of its checkpoints come too.")]
Everything = Annotated[bool, typer.Option(
    "--all", help="The record too: recipe, metrics, benchmark, bill.")]
