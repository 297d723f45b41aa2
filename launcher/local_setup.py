"""What the set-up of a run on this machine does that a first-time user would not expect."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_TRAIN_PYTHON = "LDLM_TRAIN_PYTHON"


def setup_warnings(checkout: Path, env: Mapping[str, str] = os.environ) -> Iterator[str]:
    """For the plan of a run here. The set-up itself is the text of sky/train.yaml, the same as in a cloud."""
    if not (checkout / ".venv-train" / "bin" / "python").exists():
        yield "set-up makes .venv-train in this checkout first: minutes, and about 1.5 GB"
    if env.get(_TRAIN_PYTHON):
        yield (f"{_TRAIN_PYTHON} is for the other commands: a run uses .venv-train of this checkout, as a "
               "rented machine does")
