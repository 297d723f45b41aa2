"""The trunk of a language model, cut off above one block: its config, its empty modules, its parts.

Everything goes through transformers' native classes and their own renaming of checkpoint tensors, one
block at a time, so that nothing above the cut is ever read and one block is all that memory holds twice.
"""

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.contract import ConfigError, set_option


@dataclass(frozen=True)
class Family:
    """What transformers does not say about a kind of model.

    Attributes:
        is_causal: A position's state depends on earlier ones only.
        blocks: Path of the list of blocks in the trunk.
        embedding: Name of the token embedding in the trunk.
        after: Modules that only serve what comes after the blocks.
    """

    is_causal: bool
    blocks: str
    embedding: str
    after: tuple[str, ...]

    def block_list(self, trunk: nn.Module) -> nn.ModuleList:
        """The list of blocks."""
        return trunk.get_submodule(self.blocks)  # type: ignore[return-value]


_BERT = Family(False, "encoder.layer", "embeddings.word_embeddings.weight", ("pooler",))
_QWEN = Family(True, "layers", "embed_tokens.weight", ("norm",))
FAMILIES = {
    "qwen3_5_text": _QWEN,
    "qwen3_5_moe_text": _QWEN,
    "gpt2": Family(True, "h", "wte.weight", ("ln_f",)),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": Family(False, "transformer.layer", "embeddings.word_embeddings.weight", ()),
}
_KNOWN = "Qwen3.5, Qwen3.6, GPT-2, BERT, RoBERTa, DistilBERT"


def read_config(folder: Path) -> Any:
    """The text part of a model's config, whole, as transformers has it.

    Raises:
        ConfigError: config.json is missing or damaged, names a kind of model that is not known, or
            describes weights that are quantised already.
    """
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _check_kind(raw)
        with quiet():
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return config.get_text_config()
    except ConfigError as error:
        raise ConfigError(error.problem, place=str(folder / "config.json"), fix=error.fix) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(f"config.json cannot be used: {first_line(error)}", place=str(folder),
                          fix="put the config.json of this very model there") from error


def _check_kind(raw: Any) -> None:
    if not isinstance(raw, dict):
        raise ConfigError("it holds no object", fix="put the config.json of this very model there")
    text = raw.get("text_config") if isinstance(raw.get("text_config"), dict) else raw
    kind = text.get("model_type") or raw.get("model_type")
    if kind not in FAMILIES:
        own_code = " and comes with code of its own, which is never run" if "auto_map" in raw else ""
        raise ConfigError(f"model_type is {kind!r}, which is not known here{own_code}",
                          fix=f"choose a model of one of these: {_KNOWN}")
    if "quantization_config" in raw or "quantization_config" in text:
        raise ConfigError("its weights are quantised already",
                          fix="name the model with plain weights; for fewer bytes add "
                              f"{set_option('train.token_encoder.weights', 'fp8')} (or nf4)")


def family_of(config: Any) -> Family:
    """The family behind a text config that `read_config` has let through."""
    return FAMILIES[config.model_type]


def truncated(config: Any, num_blocks: int) -> Any:
    """The config of a model's first blocks."""
    return _with_blocks(config, slice(0, num_blocks))


def empty_trunk(config: Any) -> nn.Module:
    """The trunk on the meta device: shapes and names, no memory."""
    with quiet(), torch.device("meta"):
        return _model_class(config)._from_config(config).eval().requires_grad_(False)


def build_trunk(config: Any, outer: Mapping[str, Tensor], dtype: torch.dtype,
                device: torch.device) -> nn.Module:
    """The trunk with its embeddings, its blocks still on the meta device and what follows them cut off.

    Args:
        config: Truncated.
        outer: Tensors outside the blocks, by checkpoint names without prefix.
        dtype: What it computes in.
        device: Where the embeddings go.
    """
    family, hollow = family_of(config), empty_trunk(config)
    trunk, missing = _load(_with_blocks(config, slice(0, 0)), outer, dtype)
    _check_complete(missing, family)
    trunk.to(device)
    trunk.config = hollow.config  # the one that the blocks hold
    trunk.config.use_cache = False
    family.block_list(trunk).extend(family.block_list(hollow))
    for name in family.after:
        # BERT asks for None; the norms of the others are called whatever they are.
        setattr(trunk, name, None if name == "pooler" else nn.Identity())
    return trunk.eval().requires_grad_(False)


def load_block(config: Any, index: int, tensors: Mapping[str, Tensor],
               dtype: torch.dtype) -> dict[str, Tensor]:
    """The parameters of one block by name, from checkpoint tensors that name it as block 0.

    Raises:
        ConfigError: Some are missing or have another shape.
    """
    alone = _with_blocks(config, slice(index, index + 1))
    alone.vocab_size, alone.pad_token_id = 1, None  # embeddings are not wanted and take no room
    family = family_of(config)
    try:
        model, missing = _load(alone, tensors, dtype)
    except RuntimeError as error:
        raise ConfigError(f"block {index} cannot be loaded: {first_line(error)}",
                          fix="put the weights of this very model beside its config.json") from error
    lost = sorted(name for name in missing if name.startswith(f"{family.blocks}."))
    if lost:
        raise ConfigError(f"the weights lack {lost[0]} of block {index} and {len(lost) - 1} more",
                          fix="put the weights of this very model beside its config.json")
    return dict(family.block_list(model)[0].named_parameters())


def _check_complete(missing: set[str], family: Family) -> None:
    lost = sorted(name for name in missing if not name.startswith(family.after))
    if lost:
        raise ConfigError(f"the weights lack {lost[0]}",
                          fix="put the weights of this very model beside its config.json")


def _load(config: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[nn.Module, set[str]]:
    """A model of `tensors`, and the names of what they did not fill."""
    # What is missing is drawn at random by transformers; the caller's random state is none of its business.
    with quiet(), torch.random.fork_rng(devices=[]):
        model, report = _model_class(config).from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True)
    return model, set(report["missing_keys"])


def _model_class(config: Any) -> Any:
    from transformers import MODEL_MAPPING

    return MODEL_MAPPING[type(config)]


def _with_blocks(config: Any, which: slice) -> Any:
    part = copy.deepcopy(config)
    types = getattr(config, "layer_types", None)
    if types is not None:
        part.layer_types = types[which]
    part.num_hidden_layers = len(range(config.num_hidden_layers)[which])
    return part


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' reports and progress bars: what is missing on purpose is not news."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
