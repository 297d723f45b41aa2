"""How `ldlm simulate` is typed."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli_options import Json
from launcher.errors import UsageError


def simulate(
        traces: Annotated[Path, typer.Option(exists=True, dir_okay=False,
                                             help="Windows of availability, a JSON object a line.")],
        work_h: Annotated[str, typer.Option(metavar="HOURS", help="Hours of work.")] = "20",
        deadline_h: Annotated[str, typer.Option(metavar="HOURS", help="Until it must have ended.")] = "26",
        overhead_h: Annotated[str, typer.Option(metavar="HOURS", help="That each start of a machine "
                                                "costs.")] = "0.2",
        spot_usd: Annotated[str | None, typer.Option(metavar="USD", help="An hour; 0.97 unless said, or as "
                                                     "--prices has it.")] = None,
        on_demand_usd: Annotated[str | None, typer.Option(metavar="USD", help="An hour; 3.06 unless said, or "
                                                          "as --prices has it.")] = None,
        policy: Annotated[str, typer.Option(help="all, or names with commas.")] = "all",
        zones: Annotated[str, typer.Option(metavar="alone|together", help="together: windows of one start "
                                           "are open at once.")] = "alone",
        prices: Annotated[Path | None, typer.Option(exists=True, dir_okay=False,
                                                    help="History of prices, as CSV.")] = None,
        machine_type: Annotated[str | None, typer.Option(help="Of the history.")] = None,
        region: Annotated[str | None, typer.Option(help="Of the history.")] = None,
        checkpoint_min: Annotated[str | None, typer.Option(help="Minutes between saves: 5,15,60. None: no "
                                                           "work is lost.")] = None,
        save_s: Annotated[str | None, typer.Option(metavar="SECONDS", help="That a save stops training; 1 "
                                                   "unless said.")] = None,
        plot: Annotated[Path | None, typer.Option(dir_okay=False, help="A picture, as PNG.")] = None,
        as_json: Json = False) -> None:
    """Replay policies on recorded spot availability."""
    from launcher.simulate_command import Simulation, read_saves, read_setting, run_simulate

    if zones not in ("alone", "together"):
        raise UsageError(f"zones are {zones!r}", place="--zones", fix="alone or together")
    for option, usd in (("--spot-usd", spot_usd), ("--on-demand-usd", on_demand_usd)):
        if prices and usd is not None:
            raise UsageError("the history of --prices says what an hour costs", place=option,
                             fix=f"leave out {option}, or --prices")
    setting = read_setting(work_h, deadline_h, overhead_h, spot_usd, on_demand_usd)
    run_simulate(Simulation(traces, setting, policy, prices, machine_type, region, zones == "together",
                            read_saves(checkpoint_min, save_s), plot), as_json=as_json)
