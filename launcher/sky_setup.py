"""What `ldlm init` changes in SkyPilot's own files on this machine, shown before it is done.

`config.yaml` gets `remote_identity: NO_UPLOAD` for each cloud, and the supervision of jobs in the API server
itself, for a machine rented for that would have no keys; `plugins.yaml` gets our plugin.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launcher.errors import EngineError
from launcher.home import write_atomically
from launcher.sky_ready import GUARDED, NO_UPLOAD, PLUGIN_CLASS
from launcher.yaml_edit import append, put

# As SkyPilot finds them.
_CONFIG = ("SKYPILOT_GLOBAL_CONFIG", "~/.sky/config.yaml")
_PLUGINS = ("SKYPILOT_SERVER_PLUGINS_CONFIG", "~/.sky/plugins.yaml")


@dataclass(frozen=True)
class Change:
    """A file that is to be written anew.

    Attributes:
        old: None where there is no such file yet.
        lines: What is new in it, for the user.
    """

    path: Path
    old: str | None
    new: str
    lines: tuple[str, ...]


def sky_changes() -> list[Change]:
    """What SkyPilot's files lack; nothing where they lack nothing. Raises EngineError for damaged ones."""
    values: list[tuple[tuple[str, ...], object]] = [((cloud, "remote_identity"), NO_UPLOAD)
                                                    for cloud in GUARDED]
    values.append((("jobs", "controller", "consolidation_mode"), True))
    edits = [(f"{'.'.join(where)}: {str(value).lower() if value is True else value}", _putting(where, value))
             for where, value in values]
    plugin = (f"plugins: {PLUGIN_CLASS}", _with_plugin)
    found = (_change(_path(*_CONFIG), edits), _change(_path(*_PLUGINS), [plugin]))
    return [change for change in found if change]


def lacking_here() -> Iterator[EngineError]:
    """Why nothing should be rented through an API server that would read these files. Raises as above."""
    if changes := sky_changes():
        files = " and ".join(change.path.name for change in changes)
        yield EngineError(f"by its {files} here SkyPilot would copy keys onto rented machines, or rent the "
                          "wrong ones", place=str(changes[0].path.parent), fix="ldlm init")


def carry_out(change: Change) -> Path | None:
    """Write a change.

    Returns:
        Where the old file is kept; None if there was none.

    Raises:
        OSError: The file is as it was.
    """
    path = change.path.resolve()  # it may be a link into somebody's dotfiles
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = None
    if change.old is not None:
        kept = path.with_name(f"{path.name}.{datetime.now():%Y%m%d-%H%M%S}.bak")
        shutil.copy2(path, kept)
    mode = path.stat().st_mode & 0o777 if kept else 0o600
    write_atomically(path, change.new, mode)
    return kept


def _putting(where: tuple[str, ...], value: object) -> Callable[[str], str]:
    return lambda text: put(text, where, value)


def _with_plugin(text: str) -> str:
    return append(text, "plugins", {"class": PLUGIN_CLASS})


def _path(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or usual).expanduser()


def _change(path: Path, edits: list[tuple[str, Callable[[str], str]]]) -> Change | None:
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else None
        text, lines = old or "", []
        for line, edit in edits:
            before, text = text, edit(text)
            lines += [line] if text != before else []
    except ValueError as error:  # also of text that is not UTF-8
        raise EngineError(f"is SkyPilot's and cannot be changed: {error}", place=str(path),
                          fix="mend it, or put this into it by hand: "
                              f"{'; '.join(line for line, _ in edits)}") from error
    return Change(path, old, text, tuple(lines)) if lines else None
