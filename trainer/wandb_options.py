"""The command line of `ldlm wandb`. Torch-free and open to the launcher, which looks the run up."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def read_wandb_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse it: command, run, store, and `out` for sync. Ends the program with code 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="ldlm wandb", description="Show a run on Weights & Biases.")
    commands = parser.add_subparsers(dest="command", required=True)
    sending = commands.add_parser("sync", help="send the rows that W&B does not have; may be repeated")
    sending.add_argument("--out", type=Path, metavar="FOLDER",
                         help="write an offline run there instead, for `wandb sync` on another machine")
    panels = commands.add_parser("workspace", help="make a workspace with the panels of ldlm in its project")
    for command in (sending, panels):
        command.add_argument("run", metavar="RUN")
        command.add_argument("--store", help="URL of the store; by default where the run is found")
    return parser.parse_args(arguments)
