"""What the set-up of a run on this machine does that a first-time user would not expect."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.errors import EngineError

_TRAIN_PYTHON = "LDLM_TRAIN_PYTHON"


def check_own_environment(checkout: Path) -> None:
    """What set-up would refuse, before anybody approves a run.

    Raises:
        EngineError: `.venv-train` is a link to what another checkout has made, which set-up would change.
    """
    folder = checkout / ".venv-train"
    if folder.is_symlink() and not folder.resolve().is_relative_to(checkout.resolve()):
        raise EngineError(f"it is a link to {folder.resolve()}, which is not of this checkout",
                          place=folder.name, fix=f"remove the link: rm {folder}")


def setup_warnings(checkout: Path, env: Mapping[str, str] = os.environ) -> Iterator[str]:
    """For the plan of a run here. The set-up itself is the text of sky/train.yaml, the same as in a cloud."""
    if not (checkout / ".venv-train" / "bin" / "python").exists():
        yield "set-up makes .venv-train in this checkout first: minutes, and about 1.5 GB"
    if env.get(_TRAIN_PYTHON):
        yield (f"{_TRAIN_PYTHON} is for the other commands: a run uses .venv-train of this checkout, as a "
               "rented machine does")
