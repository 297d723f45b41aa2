"""A run in the store as sampling and export need it: its settings and the averaged weights of its newest
checkpoint. No DeepSpeed, no token encoder.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from trainer.averaged_weights import load_averaged_weights
from trainer.config import TrainConfig
from trainer.contract import Name, StoreError
from trainer.generate import Generator, load_generator
from trainer.manifest import Manifest, pinned
from trainer.run_folder import RunFolder
from trainer.store import NotFoundError
from trainer.token_encoder import load_tokenizer


class SavedRun(NamedTuple):
    """What a run has come to.

    Attributes:
        config: As it was launched, with its token encoder at the commit that it was trained with.
        weights: Averaged, float32, with the model's buffers and `TIME_DENSITY`.
    """

    folder: RunFolder
    config: TrainConfig
    manifest: Manifest
    weights: dict[str, Tensor]

    def generator(self, device: torch.device) -> Generator:
        """To sample from it. Raises ConfigError when its tokenizer is not there."""
        tokenizer = load_tokenizer(self.config.token_encoder, self.folder.store)
        return load_generator(self.config, self.manifest, self.weights, device, tokenizer)


def load_run(folder: RunFolder, say: Callable[[str], None]) -> SavedRun:
    """Read a run's settings and newest weights.

    Raises:
        StoreError: There is no such run, or its recipe is not of this version.
        CheckpointError: It has no checkpoint yet, or all are damaged.
    """
    config = recorded_config(folder)
    manifest, weights = load_averaged_weights(folder, say)
    encoder = pinned(config.token_encoder, manifest)
    return SavedRun(folder, config.model_copy(update={"token_encoder": encoder}), manifest, weights)


def recorded_config(folder: RunFolder) -> TrainConfig:
    """The settings that a run was launched with. Raises StoreError."""
    place = f"{folder.url}/{Name.RECIPE}"
    try:
        return TrainConfig.model_validate(folder.read_json(Name.RECIPE)["train"])
    except NotFoundError as error:
        raise StoreError(f"no run {folder.run_id!r}", place=folder.store.url,
                         fix="`ldlm status` lists the runs; --store names another place") from error
    except (ValidationError, KeyError, TypeError) as error:
        raise StoreError(f"is not a recipe of this version: {str(error).splitlines()[0]}", place=place,
                         fix="use the version that launched it") from error
