"""Which of the places that may hold a token encoder does: package, folder, mirror, earlier download, Hub."""

import re
from collections.abc import Callable
from pathlib import Path

from trainer.config import TokenEncoderConfig
from trainer.contract import ConfigError
from trainer.encoder_weights import PACKAGED, Checkpoint, Weights, local_folder
from trainer.store import Store

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def find_weights(config: TokenEncoderConfig, store: Store | None, say: Callable[[str], None]) -> Weights:
    """The weights of the kept blocks, fetched to this machine when they are not on it.

    Processes of one machine may call this together: one fetches, the others wait.

    Raises:
        ConfigError: Nothing of that name is found, or what is found is not whole or not usable.
        StoreError: A download was cut off.
    """
    folder = local_folder(config.name)
    return Checkpoint(folder or _missing(config.name), config.layer, config.name)


def find_tokenizer(config: TokenEncoderConfig, store: Store | None, say: Callable[[str], None]) -> Path:
    """A folder on this machine with the tokenizer. Raises as `find_weights`."""
    return local_folder(config.name) or _missing(config.name)


def _missing(name: str) -> Path:
    raise ConfigError(f"{name} is no folder with a model (it has no config.json)", place="token_encoder.name",
                      fix="name a model of the Hugging Face Hub (owner/name), a folder in Hugging Face "
                          f"layout, or one of: {', '.join(PACKAGED)}")
