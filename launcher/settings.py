"""What this user has said once for every run: `settings.json` in `ldlm`'s home, written by `ldlm init`.

What is typed wins over it, then the environment; it wins over a recipe. A recipe's cap it only lowers.
Standard library only: it is read before anything slow.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path

from launcher.errors import ConfigError
from launcher.home import ldlm_home
from trainer.contract import Env

API_SERVER = "SKYPILOT_API_SERVER_ENDPOINT"  # a server of SkyPilot's elsewhere, by its URL


@dataclass(frozen=True)
class Settings:
    """None where nothing was said.

    Attributes:
        store: URL of the object store of runs.
        max_cost_usd: No run may cost more unless `--max-cost` is typed.
        wandb_project: Where runs are shown on W&B.
        wandb_entity: Its team or user.
        api_server: URL of SkyPilot's API server; None: on this machine.
    """

    store: str | None = None
    max_cost_usd: str | None = None  # dollars, as written: JSON has no decimals
    wandb_project: str | None = None
    wandb_entity: str | None = None
    api_server: str | None = None

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


def api_server_url() -> str | None:
    """URL of SkyPilot's API server by the environment, else the settings; None: the one of this machine."""
    return os.environ.get(API_SERVER) or read_settings().api_server


def _checked(found: object) -> Settings:
    names = {field.name for field in fields(Settings)}
    if not isinstance(found, Mapping) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("it is no object of texts")
    if unknown := sorted(set(found) - names):
        raise ValueError(f"it has a key that nobody knows: {unknown[0]}")
    settings = Settings(**found)
    if settings.max_cost_usd and not Decimal(settings.max_cost_usd) > 0:
        raise ValueError(f"max_cost_usd is {settings.max_cost_usd}")
    return settings
