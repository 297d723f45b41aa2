"""`ldlm init`: asks what every run needs, shows what it would write, writes it. Says nothing twice."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import NamedTuple

from launcher import console
from launcher.carry_out import ask, end_interrupted
from launcher.commands import positive
from launcher.controller import SCHEME, dollars_an_hour, parse_address
from launcher.errors import LdlmError, Refused, StoreError, UsageError
from launcher.lint_rules import looks_secret
from launcher.patience import soon
from launcher.plugin_version import plugin_version
from launcher.server_health import plugins_here
from launcher.settings import Settings, api_server, read_settings, settings_path, settings_text
from launcher.sky_ready import PLUGIN, RESTART
from launcher.sky_setup import Change, carry_out, sky_changes
from launcher.wallets import written_down
from trainer.store import open_store, store_url
from trainer.store_words import NoBucketError

_PRICE = "controller_usd_per_hour"
NONE = "none"  # typed where nothing shall be said


class _Question(NamedTuple):
    option: str
    words: str
    check: Callable[[str], str]


def run_init(given: Settings, yes: bool) -> None:
    """Settle what every run needs and what SkyPilot on this machine must say.

    Args:
        given: What the command line says, as typed; the rest is asked for, or stays as it is with `yes`.

    Raises:
        UsageError: An answer cannot be used.
        Refused: Nobody is here to answer, or the answer is no.
        ConfigError, EngineError: A file that would be changed is damaged.
    """
    if not yes and not console.can_ask():
        raise Refused("nobody is here to answer, so nothing was done",
                      fix="add --yes; what is not given stays as it is: "
                          "ldlm init --yes --store URL --max-cost 20")
    old = read_settings()
    settings = _settled(old, given, asks=not yes)
    changes = _changes(old, settings)
    if not changes:
        console.answer("everything is set up already: nothing was changed")
        _say_of_plugin()
        return
    _show(changes)
    ask("Write this?", yes)
    for change in changes:
        kept = carry_out(change)
        console.talk(f"wrote {change.path}" + (f", the old one is {kept.name}" if kept else ""))
    _say_what_is_next(settings, changes)


def _settled(old: Settings, given: Settings, *, asks: bool) -> Settings:
    """The settings that are to be: given, asked for, or as they were."""
    found: dict[str, str | None] = {}
    for name, question in _QUESTIONS.items():
        known, typed = getattr(old, name), getattr(given, name)
        if typed is not None:
            found[name] = _checked(question, typed)
        elif name == _PRICE and found.get("api_server", old.api_server) in (None, old.api_server):
            continue  # nothing is paid for, or nothing new
        elif asks:
            found[name] = _asked(question, known)
    new = replace(old, **found)
    return new if new.api_server else replace(new, **{_PRICE: None})


def checked_setting(name: str, typed: str) -> str | None:
    """The value of a setting as it is written; None: nothing is said. Raises UsageError.

    Args:
        name: Of its field in `Settings`.
        typed: As a person types it, `none` included.
    """
    return _checked(_QUESTIONS.get(name) or _UNASKED[name], typed)


def _asked(question: _Question, known: str | None) -> str | None:
    """Ask until the answer can be used."""
    while True:
        try:
            typed = console.question(question.words, known or NONE)
            return known if typed is None else _checked(question, typed)
        except LdlmError as error:
            console.show_error(error)
        except (KeyboardInterrupt, EOFError):
            end_interrupted("interrupted, so nothing was changed")


def _checked(question: _Question, typed: str) -> str | None:
    if typed == NONE:
        return None
    if looks_secret(typed):
        raise UsageError("holds what looks like a key, and settings are kept in the clear",
                         place=question.option, fix="keep keys in the environment or the cloud's own login")
    return question.check(typed)


def _store(typed: str) -> str:
    url = store_url(typed)
    if not url.startswith("file:"):  # to open a folder is to make it
        _look_at_bucket(url)
    return url


def _look_at_bucket(url: str) -> None:
    """Refuse a bucket that is not there; what keeps one from being seen now, keys or the network, is said.

    Raises:
        StoreError: There is no such bucket, or nothing could be opened at a URL like this one.
    """
    store = open_store(url)
    try:
        soon(lambda: store.objects("ldlm-init"))  # who lists it is told
    except NoBucketError:
        raise
    except StoreError as error:
        console.talk(f"{url} could not be looked at now: {error.problem}; ldlm doctor uses it in every way",
                     "note")


def _dollars(typed: str) -> str:
    return f"{positive('--max-cost', 'dollars', typed):f}"


def _month_dollars(typed: str) -> str:
    return f"{positive('monthly_cap', 'dollars', typed):f}"


def _name(typed: str) -> str:
    if re.fullmatch(r"[\w.-]+", typed):
        return typed
    raise UsageError(f"{typed!r} is no name of W&B", fix="use letters, digits, - _ and . only")


def _server(typed: str) -> str:
    if typed.startswith(SCHEME):
        return parse_address(typed, "--api-server").url
    if re.fullmatch(r"https?://[^\s/]+(/\S*)?", typed):
        return typed.rstrip("/")
    raise UsageError(f"{typed!r} is no URL of an API server", place="--api-server",
                     fix="write it like https://sky.example.org, or none for this machine")


# In the order in which they are asked.
_QUESTIONS = {
    "store": _Question("--store", "Object store of all runs (s3://bucket/prefix, gs://, az://)", _store),
    "max_cost_usd": _Question("--max-cost", "Dollars that a run may cost unless --max-cost is typed",
                              _dollars),
    "wandb_project": _Question("--wandb-project", "Project on W&B", _name),
    "wandb_entity": _Question("--wandb-entity", "Team or user on W&B", _name),
    "api_server": _Question("--api-server", "URL of your SkyPilot API server; none: this machine, which must "
                            "stay awake while a run is recovered", _server),
    _PRICE: _Question("--controller-usd-per-hour", "Dollars an hour that its machine costs",
                      lambda typed: dollars_an_hour(typed, "--controller-usd-per-hour")),
}


# What `ldlm config` sets, and `ldlm init` does not ask for.
_UNASKED = {
    "monthly_cap_usd": _Question("monthly_cap", "Dollars of a calendar month", _month_dollars),
    "wallets": _Question("wallets", "Credits at clouds",
                         lambda typed: written_down(typed, datetime.now(UTC)))}


def _changes(old: Settings, new: Settings) -> list[Change]:
    """Ours first. Of SkyPilot only what lies on this machine: a server elsewhere has its own files."""
    found = [] if new.api_server else sky_changes()
    if new == old:
        return found
    before, after = asdict(old), asdict(new)
    lines = tuple(f"{name}: {after[name] or NONE}" for name in after if after[name] != before[name])
    text = settings_text(old) if settings_path().exists() else None
    return [Change(settings_path(), text, settings_text(new), lines), *found]


def _show(changes: list[Change]) -> None:
    for change in changes:
        console.answer(f"{change.path}{'' if change.old is not None else ' (new)'}", "title")
        for line in change.lines:
            console.answer(f"  {line}")
    console.answer()


def _say_what_is_next(settings: Settings, changes: list[Change]) -> None:
    if any(change.path != settings_path() for change in changes):
        console.answer("SkyPilot's API server reads this when it starts; where it runs, restart it:")
        console.answer(f"  {RESTART}")
    else:
        _say_of_plugin()
    if settings.api_server:
        console.answer_text(f"{settings.api_server} has a config of its own; what it lacks is said by:")
    else:
        console.answer("whether everything is there is said by:")
    console.answer("  ldlm doctor")


def _say_of_plugin() -> None:
    """Tell of an API server on this machine that goes on with other code of ours than this checkout's."""
    loaded = plugins_here().get(PLUGIN) if api_server() is None else None
    if loaded is not None and loaded != plugin_version():
        console.answer("SkyPilot's API server here still runs another version of ldlm's plugin; restart it:")
        console.answer(f"  {RESTART}")
