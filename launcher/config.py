"""`ldlm config`: what holds for all runs of this user, one setting at a time. `ldlm init` asks for most."""

import difflib
from dataclasses import asdict, replace

from launcher import console
from launcher.errors import UsageError
from launcher.home import write_atomically
from launcher.set_up import NONE, checked_setting
from launcher.settings import Settings, read_settings, settings_path, settings_text

_UNIT = "_usd"  # that nobody types


def show_all(*, as_json: bool) -> None:
    """Print every setting. Raises ConfigError for a damaged file."""
    found = {_typed(name): value for name, value in asdict(read_settings()).items()}
    if as_json:
        console.answer_json(found)
        return
    console.answer_facts([(name, value or NONE) for name, value in found.items()])
    console.answer_text(f"they are in {settings_path()}")


def show_one(name: str) -> None:
    """Print one setting. Raises UsageError, or ConfigError for a damaged file."""
    console.answer(getattr(read_settings(), _field(name)) or NONE)


def change(name: str, typed: str) -> None:
    """Write one setting.

    Raises:
        UsageError: There is no such setting, or it cannot have this value.
        ConfigError: The file is damaged.
    """
    field, old = _field(name), read_settings()
    value = checked_setting(field, typed)
    new = replace(old, **{field: value})
    if new == old:
        console.answer(f"{_typed(field)} is {value or NONE} already: nothing was changed")
        return
    path = settings_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, settings_text(new), 0o600)
    console.answer(f"{_typed(field)}: {getattr(old, field) or NONE} -> {value or NONE}")


def _typed(field: str) -> str:
    return field.removesuffix(_UNIT)


def _field(name: str) -> str:
    """The field of a setting, with its unit or without. Raises UsageError."""
    known = {_typed(field): field for field in asdict(Settings())}
    if (found := known.get(_typed(name))) is None:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"there is no setting {name!r}", place="ldlm config",
                         fix=f"{meant}There are: {', '.join(known)}")
    return found
