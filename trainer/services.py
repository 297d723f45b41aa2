"""Which services besides its store a document of a run asks, and so which keys its nodes need. No torch."""

import re
from collections.abc import Mapping

from trainer.config import TokenEncoderConfig, WandbConfig
from trainer.contract import Env
from trainer.encoder_files import local_folder
from trainer.manifest import pinned_by_run
from trainer.mirror_format import find_mirror
from trainer.run_folder import RunFolder

HUB_KEY = "HF_TOKEN"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def goes_online(config: WandbConfig, environment: Mapping[str, str]) -> bool:
    """True where a run is shown while it trains. Without a key nothing is ever sent."""
    return config.mode in ("auto", "online") and bool(environment.get(Env.WANDB_KEY))


def asks_hub(config: TokenEncoderConfig, folder: RunFolder) -> bool:
    """True where tokenizer and weights of a run's encoder come from the Hub: in no package or folder, and no
    mirror in the run's store.

    Raises:
        ConfigError: The folder holds no model, or the model of the mirror has no such layer.
        StoreError: The store cannot be read.
    """
    if not HUB_NAME.fullmatch(config.name) or local_folder(config.name):
        return False
    return find_mirror(folder.store, pinned_by_run(config, folder)) is None
