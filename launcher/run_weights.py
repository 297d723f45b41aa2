"""Mirrors of a run's frozen encoder, looked for where its nodes will look: in the store."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from launcher.console import data_size
from launcher.errors import ConfigError, StoreError
from launcher.patience import soon
from launcher.plan import Plan
from launcher.plan_sizes import EncoderPlan, Mirrors
from launcher.recipe import Recipe, checkout_folder
from trainer.contract import Document
from trainer.encoder_shape import family_in
from trainer.mirror_format import mirrors_by_format
from trainer.store import may_exist, open_store

# What is smaller comes from the Hub within a minute, and is not worth a word (guess).
_WORTH_A_MIRROR_BYTES = 4 * 2**30


@dataclass(frozen=True)
class RunWeights:
    """What a look for mirrors has brought.

    Attributes:
        mirrors: Bytes of all files, by format; None when it could not be seen.
        problem: Why not.
    """

    mirrors: Mirrors = None
    problem: str = ""

    def warnings(self, recipe: Recipe, plan: Plan) -> Iterator[str]:
        """What a mirror would spare each start, with the command that writes it; nothing for small models."""
        if plan.without_encoder:
            yield _why_unknown(recipe.train.token_encoder.name)
        if plan.sizes is None or plan.sizes.encoder.source_bytes < _WORTH_A_MIRROR_BYTES:
            return
        encoder, is_local = plan.sizes.encoder, plan.offers[Document.TRAIN].is_local
        if encoder.source == "package" or (encoder.source == "folder" and is_local):
            return
        if self.problem:
            yield f"a mirror of {encoder.name} was not looked for: {self.problem}"
        elif encoder.weights != encoder.source_weights or (encoder.source != "mirror" and not is_local):
            yield f"{_what_is_spared(encoder, is_local)}; once: {mirror_command(recipe)}"


def _why_unknown(name: str) -> str:
    family, known = family_in(checkout_folder() / name), "GPT-2, BERT, RoBERTa, DistilBERT, Qwen3.5 and 3.6"
    if family is not None:
        return (f"the size of {name} is not known from its config.json (model_type: {family or 'none'}); "
                f"nodes take {known}")
    if name.startswith("/"):
        return (f"{name} is a folder, and there is none of that name here: a rented machine finds it only in "
                "its image, or in the store by ldlm weights mirror")
    return f"a folder with the config.json of {name} would tell, if it is one of {known}"


def _what_is_spared(encoder: EncoderPlan, is_local: bool) -> str:
    if encoder.source == "folder" and not is_local:
        return f"no mirror of {encoder.name} in this store, and a rented machine has no such folder"
    kind = f" in {encoder.weights}" if encoder.source == "mirror" else ""
    done = "read" if is_local else f"fetched{' from the Hub' if encoder.source == 'Hub' else ''}"
    packed = f" and packed as {encoder.weights}" if encoder.weights != encoder.source_weights else ""
    return (f"no mirror of {encoder.name}{kind} in this store: {data_size(encoder.source_bytes)} in "
            f"{encoder.source_weights} are {done}{packed} at each start")


def look_for_mirrors(recipe: Recipe) -> RunWeights:
    """Look for mirrors without reading them. Takes seconds at most."""
    encoder, url = recipe.train.token_encoder, recipe.store
    if url is None:
        return RunWeights(problem="no store is named (--store URL)")
    if not may_exist(url):
        return RunWeights({})
    try:
        found = soon(lambda: mirrors_by_format(open_store(url), encoder))
    except (StoreError, ConfigError) as error:
        return RunWeights(problem=f"{error.place}: {error.problem}")
    return RunWeights({weights: manifest.num_bytes for weights, (_, manifest) in found.items()})


def mirror_command(recipe: Recipe) -> str:
    """What writes the mirror that a run reads best."""
    encoder = recipe.train.token_encoder
    revision = ["--revision", encoder.revision] if encoder.revision else []
    return shlex.join(["ldlm", "weights", "mirror", "--name", encoder.name, *revision, "--layer",
                       str(encoder.layer), "--weights", encoder.weights, "--store", recipe.store or "URL"])
