"""Where this user's things of `ldlm` lie, and how a file there is written."""

import os
from pathlib import Path


def ldlm_home() -> Path:
    """`$LDLM_HOME`, by default `~/.ldlm`: settings, the default store, runs of the local engine."""
    return Path(os.environ.get("LDLM_HOME") or "~/.ldlm").expanduser()


def write_atomically(path: Path, text: str, mode: int | None = None) -> None:
    """Write a file so that a reader sees the old text or the new one, whole.

    Args:
        mode: Permissions; None: what the user's mask leaves.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666 if mode is None else mode),
                  "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
