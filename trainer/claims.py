"""Whose folder it is: `plan.json` makes it a preparation's, and nothing is deleted elsewhere. No torch."""

from contextlib import suppress
from pathlib import Path

from trainer.contract import ConfigError, Name
from trainer.shards import PARTS, PLAN, SPLITS, Preparation, is_ours, read_record, write_record
from trainer.store import AlreadyExistsError, NotFoundError, Store

_PLAN_BEGINS = b'{\n "format": '  # of whatever version; what a full disk has torn begins so too, or is empty


def find_plan(store: Store) -> Preparation | None:
    """What is prepared in a place, or None. Raises ConfigError when the plan is damaged."""
    try:
        return read_record(store, PLAN, Preparation)
    except NotFoundError:
        return None


def claim(store: Store, wanted: Preparation) -> Preparation:
    """The preparation of this place: ours if nobody was here before, else theirs, if it is the same.

    Raises:
        ConfigError: Something else is prepared there, or files lie there that we would write over.
    """
    others = _written(store)  # before the plan is looked for: whoever writes files has written it first
    found = find_plan(store)
    if found is None and others:
        raise ConfigError(f"files are there that no preparation of this program has left: {others[0]}",
                          place=store.url, fix="name a folder for this text alone with --out")
    if found is None:
        with suppress(AlreadyExistsError):
            write_record(store, PLAN, wanted, create=True)
            return wanted
        found = read_record(store, PLAN, Preparation)
    differences = _differences(found, wanted)
    if differences:
        raise ConfigError(f"something else is prepared there: {'; '.join(differences)}", place=store.url,
                          fix="name another place with --out, or prepare it anew with --restart")
    return found


def check_claim(store: Store, preparation: Preparation) -> None:
    """Asked before each write: nothing of ours may get into what another has begun anew since.

    Raises:
        ConfigError: The place is no longer this preparation's.
    """
    found = find_plan(store)
    if found is None or found.digest != preparation.digest:
        now = "something else is prepared there now" if found else "it was deleted meanwhile"
        raise ConfigError(f"the place was taken from this preparation: {now}, and nothing more is written",
                          place=store.url, fix="use one place for one text: name another with --out")


def check_name(store: Store, tokenizer: str) -> None:
    """Refuse a tokenizer of another name before it is downloaded. Raises ConfigError.

    A folder of this machine costs nothing to read: whether it holds the same one, its vocabulary tells.
    """
    plan = find_plan(store)
    found = plan.tokenizer.name if plan else tokenizer
    if found != tokenizer and not Path(tokenizer).is_dir() and not Path(found).is_absolute():
        raise ConfigError(f"something else is prepared there: its tokenizer is {found}, not {tokenizer}",
                          place=store.url, fix=f"go on with --tokenizer {found}, name another place with "
                          "--out, or prepare it anew with --restart")


def remove_prepared(store: Store) -> None:
    """Delete a prepared text, or what there is of it: the manifest first, the plan last; never other files.

    Raises:
        ConfigError: Another program's files are there.
    """
    try:
        plan = store.get(PLAN)
    except NotFoundError:
        return
    if not _PLAN_BEGINS.startswith(plan[:len(_PLAN_BEGINS)]):
        raise ConfigError(f"its {PLAN} is not of a prepared text, so nothing there is deleted",
                          place=store.url, fix="name a folder for this text alone with --out")
    store.delete([*_written(store), PLAN])


def _written(store: Store) -> list[str]:
    """Keys that have the form of ours, all but the plan's; the manifest first."""
    found = [item.key for folder in (PARTS, *SPLITS) for item in store.objects(folder) if is_ours(item.key)]
    with suppress(NotFoundError):
        store.size(Name.MANIFEST)
        found.insert(0, Name.MANIFEST)
    return found


def _differences(found: Preparation, wanted: Preparation) -> list[str]:
    told = []
    if (found.tokenizer.digest, found.tokenizer.end_of_text_id) != (
            wanted.tokenizer.digest, wanted.tokenizer.end_of_text_id):
        told.append(f"its tokenizer is {found.tokenizer}, not {wanted.tokenizer}")
    if (found.listing, found.num_units) != (wanted.listing, wanted.num_units):
        told.append(f"its source is {found.source}, not {wanted.source}" if found.source != wanted.source
                    else f"its source {found.source} has changed since")
    told += [f"its {name} is {getattr(found, field)}, not {getattr(wanted, field)}"
             for name, field in (("text key", "text_key"), ("held-out fraction", "heldout_fraction"))
             if getattr(found, field) != getattr(wanted, field)]
    return told
