"""What this user has said once for every run: `settings.json` in `ldlm`'s home, written by `ldlm init`.

What is typed wins over it, then the environment; it wins over a recipe. A recipe's cap it only lowers.
Standard library only: it is read before anything slow.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from launcher.errors import ConfigError, UsageError
from launcher.home import ldlm_home
from launcher.wallets import Wallet, read_wallets
from trainer.contract import Env

API_SERVER = "SKYPILOT_API_SERVER_ENDPOINT"  # a server of SkyPilot's elsewhere, by its URL
_EVER = datetime(1970, 1, 1, tzinfo=UTC)
_told: set[str] = set()  # what stands in that variable because of the settings, and nobody has said


@dataclass(frozen=True)
class Settings:
    """None where nothing was said.

    Attributes:
        store: URL of the object store of runs.
        max_cost_usd: No run may cost more unless `--max-cost` is typed.
        monthly_cap_usd: What all runs of a store may cost in a calendar month (UTC), see `launcher/month.py`.
        wandb_project: Where runs are shown on W&B.
        wandb_entity: Its team or user.
        api_server: Where SkyPilot's API server is: its URL, or `ssh://USER@HOST` for one that listens only to
            its own machine; None: on this machine.
        controller_usd_per_hour: What the machine of that server costs.
        wallets: Credits, see `launcher/wallets.py`.
    """

    store: str | None = None
    max_cost_usd: str | None = None  # dollars, as written: JSON has no decimals
    monthly_cap_usd: str | None = None
    wandb_project: str | None = None
    wandb_entity: str | None = None
    api_server: str | None = None
    controller_usd_per_hour: str | None = None
    wallets: str | None = None

    def overrides(self, recipe_cap_usd: Decimal) -> dict[str, str]:
        """What they change of a recipe: YAML by dotted name.

        Args:
            recipe_cap_usd: The cap that the recipe names.
        """
        named = {"train.wandb.project": self.wandb_project, "train.wandb.entity": self.wandb_entity}
        found = {name: json.dumps(text) for name, text in named.items() if text}
        if self.max_cost_usd and Decimal(self.max_cost_usd) < recipe_cap_usd:
            found["limits.max_cost_usd"] = self.max_cost_usd
        return found


def settings_path() -> Path:
    """Where they lie."""
    return ldlm_home() / "settings.json"


def read_settings() -> Settings:
    """The settings, all None where there are none yet. Raises ConfigError for a damaged file, OSError."""
    path = settings_path()
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return Settings()
    except (ValueError, InvalidOperation) as error:
        raise ConfigError(f"cannot be understood: {error}", place=str(path),
                          fix="delete it and type `ldlm init`, which writes it anew") from error


def settings_text(settings: Settings) -> str:
    """Their file, without what was not said."""
    return json.dumps({name: value for name, value in asdict(settings).items() if value is not None},
                      indent=2) + "\n"


def usual_store_url() -> str | None:
    """The store that the environment names, else the settings; None where neither does."""
    return os.environ.get(Env.STORE) or read_settings().store


def server_of_environment() -> str | None:
    """SkyPilot's API server that the user's environment names, which wins over the settings."""
    named = os.environ.get(API_SERVER)
    return named if named and named not in _told else None


def api_server() -> str | None:
    """SkyPilot's API server by the environment, else the settings; None: the one of this machine."""
    return server_of_environment() or read_settings().api_server


def tell_sky(url: str) -> bool:
    """Have SkyPilot in this process, and in those that it starts, ask the API server at a URL.

    Returns:
        True if that is another than before.
    """
    if os.environ.get(API_SERVER) == url:
        return False
    _told.add(url)
    os.environ[API_SERVER] = url
    return True


def controller_usd_per_hour() -> Decimal | None:
    """What supervising a run costs; None where nobody has said, and on this machine."""
    settings = read_settings()
    price = settings.controller_usd_per_hour
    return Decimal(price) if price and api_server() == settings.api_server else None


def own_wallets() -> tuple[Wallet, ...]:
    """The user's credits as they were written down; what was ever spent is taken off where no moment is."""
    text = read_settings().wallets
    return read_wallets(text, _EVER) if text else ()


def _checked(found: object) -> Settings:
    names = {field.name for field in fields(Settings)}
    if not isinstance(found, Mapping) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("it is no object of texts")
    if unknown := sorted(set(found) - names):
        raise ValueError(f"it has a key that nobody knows: {unknown[0]}")
    settings = Settings(**found)
    for name in ("max_cost_usd", "monthly_cap_usd"):
        if (cap := getattr(settings, name)) and not Decimal(cap) > 0:
            raise ValueError(f"{name} is {cap}")
    if settings.controller_usd_per_hour and not Decimal(settings.controller_usd_per_hour) >= 0:
        raise ValueError(f"controller_usd_per_hour is {settings.controller_usd_per_hour}")
    try:
        if settings.wallets:
            read_wallets(settings.wallets, _EVER)
    except UsageError as error:
        raise ValueError(f"wallets: {error.problem}") from error
    return settings
