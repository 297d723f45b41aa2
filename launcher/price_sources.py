"""Asks whoever names prices, all at once: SkyPilot's catalogs, Vast's market; or reads a saved file.

A cloud that is down is one line among the problems, and the others are there.
"""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from launcher.errors import UsageError
from launcher.list_prices import list_prices
from launcher.offers_file import read_offers
from launcher.priced_offers import Found
from launcher.vast_prices import vast_prices

CLOUDS = ("vast", "azure", "gcp")


def ask_prices(clouds: Collection[str], gpus: Collection[str]) -> Found:
    """What some clouds have of some cards now.

    Args:
        clouds: Of `CLOUDS`; others are passed over.
        gpus: `H100` for any number of it in a machine, `H100:8`.
    """
    asked: list[Callable[[], Found]] = [_question(cloud, gpus) for cloud in CLOUDS if cloud in clouds]
    if not asked or not gpus:
        return Found()
    with ThreadPoolExecutor(len(asked)) as pool:
        return sum(pool.map(lambda ask: ask(), asked), Found())


def _question(cloud: str, gpus: Collection[str]) -> Callable[[], Found]:
    return lambda: vast_prices(gpus) if cloud == "vast" else list_prices(cloud, gpus)


def saved_prices(path: str, now: datetime) -> Found:
    """What a file says. Raises UsageError where it is no file of offers."""
    try:
        return read_offers(Path(path).read_text(encoding="utf-8"), path, now)
    except UnicodeDecodeError as error:
        raise UsageError("is no text", place=path, fix="name a file that `ldlm offers --json` wrote") from error
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", place=path,
                         fix=f"make it: ldlm offers --gpu NAME --json > {path}") from error
