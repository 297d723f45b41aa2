"""How `ldlm simulate` is typed."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli_options import Json
from launcher.errors import UsageError


def simulate(
        traces: Annotated[Path, typer.Option(exists=True, dir_okay=False,
                                             help="Windows of availability, a JSON object a line.")],
        work_h: Annotated[float, typer.Option(help="Hours of work.")] = 20.0,
        deadline_h: Annotated[float, typer.Option(help="Hours until it must have ended.")] = 26.0,
        overhead_h: Annotated[float, typer.Option(help="Hours that each start of a machine costs.")] = 0.2,
        spot_usd: Annotated[float, typer.Option(help="Dollars an hour, without --prices.")] = 0.97,
        on_demand_usd: Annotated[float, typer.Option(help="Dollars an hour, without --prices.")] = 3.06,
        policy: Annotated[str, typer.Option(help="all, or names with commas.")] = "all",
        zones: Annotated[str, typer.Option(metavar="alone|together", help="together: windows of one start "
                                           "are open at once.")] = "alone",
        prices: Annotated[Path | None, typer.Option(exists=True, dir_okay=False,
                                                    help="History of prices, as CSV.")] = None,
        machine_type: Annotated[str | None, typer.Option(help="Of the history.")] = None,
        region: Annotated[str | None, typer.Option(help="Of the history.")] = None,
        checkpoint_min: Annotated[str | None, typer.Option(help="Minutes between saves: 5,15,60. None: no "
                                                           "work is lost.")] = None,
        save_s: Annotated[float | None, typer.Option(help="Seconds that a save stops training; 1 unless "
                                                     "said.")] = None,
        plot: Annotated[Path | None, typer.Option(dir_okay=False, help="A picture, as PNG.")] = None,
        as_json: Json = False) -> None:
    """Replay policies on recorded spot availability."""
    from launcher.simulate_command import Simulation, read_saves, read_setting, run_simulate

    if zones not in ("alone", "together"):
        raise UsageError(f"zones are {zones!r}", place="--zones", fix="alone or together")
    setting = read_setting(work_h, deadline_h, overhead_h, spot_usd, on_demand_usd)
    run_simulate(Simulation(traces, setting, policy, prices, machine_type, region, zones == "together",
                            read_saves(checkpoint_min, save_s), plot), as_json=as_json)
