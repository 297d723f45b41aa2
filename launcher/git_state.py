"""Which commit the checkout stands at, for the record of a run."""

import subprocess
from pathlib import Path

from launcher.recipe import checkout_folder

_TIMEOUT_S = 10  # a slow disk must not hold up a launch


def git_sha(folder: Path | None = None) -> str | None:
    """40 hex digits of the checkout's commit, `-dirty` behind them if files differ from it or are not in it.

    SkyPilot sends all files that git does not ignore. None without git, or where the folder is no checkout.
    """
    sha, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    if sha is None or changes is None:
        return None
    return f"{sha}-dirty" if changes else sha


def uncommitted(folder: Path | None = None) -> list[str]:
    """Files and folders that make it dirty, as git names them."""
    return [line[3:] for line in (_git(folder, "status", "--porcelain") or "").splitlines()]


def _git(folder: Path | None, *words: str) -> str | None:
    command = ["git", "-C", str(folder or checkout_folder()), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")
