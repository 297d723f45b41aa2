"""`ldlm controller`: parse, call."""

from typing import Annotated

import typer

from launcher.cli_options import Json, Yes, not_empty

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None,
                  help="Have runs recovered by a small machine that is always on.")
ForceUp = Annotated[bool, typer.Option(
    "--force", help="Also a machine of Vast, a small one, or while the server here still has runs.")]
ForceDown = Annotated[bool, typer.Option(
    "--force", help="Also while it has runs: they go on, and nobody recovers or ends them.")]


@app.command()
def up(ssh: Annotated[str, typer.Option("--ssh", callback=not_empty, help="[USER@]HOST[:PORT], for ssh.")],
       usd_per_hour: Annotated[str | None, typer.Option(
           "--usd-per-hour", callback=not_empty, help="What that machine costs.")] = None,
       cloud: Annotated[list[str] | None, typer.Option(
           "--cloud", help="Whose keys go there; none: all that are here. Repeatable.")] = None,
       yes: Yes = False, force: ForceUp = False) -> None:
    """Set one up on a machine of yours, or update it."""
    from launcher.controller_commands import run_up

    run_up(ssh, usd_per_hour, cloud or (), yes=yes, force=force)


@app.command()
def status(as_json: Json = False) -> None:
    """Show where it is, whether it lives, what it costs."""
    from launcher.controller_status import run_status

    run_status(as_json=as_json)


@app.command()
def down(yes: Yes = False, force: ForceDown = False) -> None:
    """End it and take its keys away."""
    from launcher.controller_commands import run_down

    run_down(yes=yes, force=force)
