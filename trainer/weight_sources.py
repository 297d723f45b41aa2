"""Which of the places that may hold a token encoder does: package, folder, mirror, earlier download, Hub."""

import re
from collections.abc import Callable
from pathlib import Path

from trainer.config import TokenEncoderConfig
from trainer.contract import ConfigError
from trainer.encoder_weights import PACKAGED, TOKENIZER_FILES, Checkpoint, Mirrored, Weights, local_folder
from trainer.hub import HubModel
from trainer.mirror_format import fetch_mirror, find_mirror
from trainer.store import Store

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def find_weights(config: TokenEncoderConfig, store: Store | None, say: Callable[[str], None]) -> Weights:
    """The weights of the kept blocks, fetched to this machine when they are not on it.

    Processes of one machine may call this together: one fetches, the others wait.

    Raises:
        ConfigError: Nothing of that name is found, or what is found is not whole or not usable.
        StoreError: A download was cut off.
    """
    if store is not None and local_folder(config.name) is None:
        found = find_mirror(store, config)
        if found is not None:
            key, manifest = found
            return Mirrored(fetch_mirror(store, key, manifest, say), manifest.weights)
    return open_checkpoint(config, say)[0]


def open_checkpoint(config: TokenEncoderConfig, say: Callable[[str], None]) -> tuple[Checkpoint, str | None]:
    """The checkpoint behind a name, never a mirror of it; and its commit where it is the Hub's.

    Raises as `find_weights`.
    """
    folder = local_folder(config.name)
    if folder is not None:
        return Checkpoint(folder, config.layer, config.name), None
    model = _hub_model(config, say)
    return model.checkpoint(config.layer), model.commit


def find_tokenizer(config: TokenEncoderConfig, store: Store | None, say: Callable[[str], None]) -> Path:
    """A folder on this machine with the tokenizer, fetched without weights. Raises as `find_weights`."""
    folder = local_folder(config.name)
    if folder is None and store is not None:
        found = find_mirror(store, config)
        if found is not None:
            key, manifest = found
            folder = fetch_mirror(store, key, manifest, say, only=("config.json", *TOKENIZER_FILES))
    return folder or _hub_model(config, say).tokenizer()


def _hub_model(config: TokenEncoderConfig, say: Callable[[str], None]) -> HubModel:
    if _HUB_NAME.fullmatch(config.name):
        return HubModel(config.name, config.revision, say)
    raise ConfigError(f"{config.name} is no folder with a model (it has no config.json)",
                      place="token_encoder.name",
                      fix="name a model of the Hugging Face Hub (owner/name), a folder in Hugging Face "
                          f"layout, or one of: {', '.join(PACKAGED)}")
