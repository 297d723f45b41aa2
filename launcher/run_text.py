"""The text of a run, looked at before anything is paid: is it there, of the right tokenizer, and enough?"""

from dataclasses import dataclass
from pathlib import Path

from launcher.errors import ConfigError, LdlmError, StoreError
from launcher.patience import soon
from launcher.recipe import Recipe, checkout_folder
from trainer.config import TrainConfig
from trainer.contract import SHARDS
from trainer.encoder_shape import KNOWN_CONFIGS, encoder_shape
from trainer.shards import PreparedManifest, prepared_address
from trainer.text_checks import (
    check_cache,
    check_enough,
    how_to_prepare_for,
    look_up,
    not_there,
    num_sequences,
)

# Bytes of text behind a token: at least, but for odd tokenizers; and about, in English (guess, both).
_LEAST_BYTES, _USUAL_BYTES = 1.0, 4.0


@dataclass(frozen=True)
class RunText:
    """What was found out about a run's text.

    Attributes:
        num_heldout: Held-out sequences there are; None when it is not known.
        num_tokens: To train on, in whole sequences; None when it is not known.
        warning: For the plan.
        refusal: Why a launch would only cost money; a plan can be made all the same.
    """

    num_heldout: int | None = None
    num_tokens: int | None = None
    warning: str | None = None
    refusal: LdlmError | None = None

    def priced(self, recipe: Recipe) -> Recipe:
        """The recipe as it will be: no more held-out sequences are evaluated than there are."""
        train, most = recipe.train, self.num_heldout
        if most is None or train.evaluate_sequences <= most:
            return recipe
        return recipe.model_copy(update={"train": train.model_copy(update={"evaluate_sequences": most})})

    def among(self, warnings: tuple[str, ...]) -> tuple[str, ...]:
        """The warnings of a plan with ours: first what forbids a launch, last what was only not checked."""
        ours = (self.warning,) if self.warning else ()
        return (*ours, *warnings) if self.refusal else (*warnings, *ours)


def look_at_text(recipe: Recipe) -> RunText:
    """Look for the text where the node will, without reading it. Takes seconds at most.

    Raises:
        ConfigError: It is there, but damaged, of another tokenizer or too little.
    """
    config, place = recipe.train, recipe.place("train", "data", "source")
    source = config.data.source
    if not source.startswith(SHARDS) and "://" not in source:
        return _look_at_file(config, checkout_folder() / source, place)
    if source.startswith(SHARDS) and recipe.store is None:
        return RunText(warning=f"{source} was not looked for: no store is named (--store URL)")
    address = prepared_address(recipe.store or "", source, place) if source.startswith(SHARDS) else source
    try:
        found = soon(lambda: look_up(address) or not_there(address, config.token_encoder.name))
    except StoreError as error:
        return RunText(warning=f"whether the text is there was not checked: {error.place}: {error.problem}")
    if isinstance(found, ConfigError):
        return RunText(refusal=found, warning=f"{source} is not there yet, and nothing can be launched "
                                              f"before it is: {found.fix}")
    return _look_at_manifest(config, found, address)


def _look_at_manifest(config: TrainConfig, manifest: PreparedManifest, address: str) -> RunText:
    warning = _check_tokenizer(config, manifest, address)
    check_enough(config, manifest)
    check_cache(config, manifest)
    length = config.data.sequence_length
    num_train, num_heldout = (num_sequences(manifest, split, length) for split in ("train", "heldout"))
    return RunText(num_heldout, num_train * length, warning)


def _check_tokenizer(config: TrainConfig, manifest: PreparedManifest, address: str) -> str | None:
    """Models of one vocabulary may share a tokenizer, so names alone decide nothing. Returns a warning."""
    found, wanted = manifest.preparation.tokenizer, config.token_encoder.name
    if found.name == wanted:
        return None
    again = how_to_prepare_for(wanted, manifest.preparation, address, config.data.source)
    theirs, ours = (encoder_shape(name, checkout_folder()) for name in (found.name, wanted))
    differs = (theirs.vocab_size != ours.vocab_size if theirs and ours
               else ours is not None and found.vocab_size > ours.vocab_size)
    if differs:
        raise ConfigError(f"the shards are of tokenizer {found}, which is not that of the encoder {wanted}",
                          place=address.partition("?")[0],
                          fix=f"{again}; or add --set train.token_encoder.name={found.name}")
    if {found.name, wanted} <= set(KNOWN_CONFIGS):
        return None
    return (f"the text is of tokenizer {found}: whether that of {wanted} is the same shows when it starts; "
            f"if it is not: {again}")


def _look_at_file(config: TrainConfig, path: Path, place: str) -> RunText:
    """A text that the node prepares: by its size. Whether it can be read, loading the recipe has seen."""
    if not path.is_file():  # built in, or of the rented machine
        return RunText()
    needed, num_bytes = config.tokens_per_step, path.stat().st_size
    left = num_bytes * (1 - config.data.heldout_fraction)
    fix = "give a longer text, or lower train.global_batch_size or train.data.sequence_length"
    problem = f"too little text: one step takes {needed:,} tokens, but {path} is {num_bytes:,} bytes"
    if left / _LEAST_BYTES < needed:
        raise ConfigError(problem, place=place, fix=fix)
    unsure = left / _USUAL_BYTES < needed
    return RunText(warning=f"perhaps {problem}; {fix}" if unsure else None)
