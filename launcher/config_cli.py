"""`ldlm config`: parse, call."""

from typing import Annotated

import typer

from launcher.cli_options import Json, not_empty

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None,
                  help="What holds for all runs of yours: monthly_cap, max_cost, store, ...")
Name = Annotated[str, typer.Argument(metavar="NAME", callback=not_empty, help="See `ldlm config list`.")]


@app.command("list")
def list_all(as_json: Json = False) -> None:
    """Show all settings."""
    from launcher.config import show_all

    show_all(as_json=as_json)


@app.command()
def get(name: Name) -> None:
    """Print one setting; none where nothing was said."""
    from launcher.config import show_one

    show_one(name)


@app.command("set", context_settings={"ignore_unknown_options": True})  # -5 is a value, though a wrong one
def set_one(name: Name, value: Annotated[str, typer.Argument(
        metavar="VALUE", callback=not_empty, help="none: nothing is said any more.")]) -> None:
    """Change one setting: ldlm config set monthly_cap 200."""
    from launcher.config import change

    change(name, value)
