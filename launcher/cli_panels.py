"""The first screen of `ldlm --help`: two panels."""

from typing import Any

from typer.core import TyperGroup

ADVANCED = "Advanced"


class TwoPanels(TyperGroup):
    """Commands that a run needs first, the rarer ones below. Plain text: rich would cost 0.1 s."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # Any: Typer's own Click is private
        for panel in ("Commands", ADVANCED):
            rows = [(name, command.get_short_help_str(60)) for name, command in self.commands.items()
                    if (getattr(command, "rich_help_panel", None) == ADVANCED) == (panel == ADVANCED)]
            with formatter.section(panel):
                formatter.write_dl(rows)
