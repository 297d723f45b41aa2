"""Which commit the checkout stands at, for the record of a run."""

import subprocess
from pathlib import Path

from launcher.recipe import checkout_folder


def git_sha(folder: Path | None = None) -> str | None:
    """40 hex digits of the checkout's commit, `-dirty` behind them if files differ from it or are not in it.

    SkyPilot sends all files that git does not ignore. None without git, or where the folder is no checkout.
    """
    where = folder or checkout_folder()
    try:
        # 10 s: a slow disk must not hold up a launch.
        found = [subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=10,
                                check=True).stdout.strip()
                 for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))]
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{found[0]}-dirty" if found[1] else found[0]
