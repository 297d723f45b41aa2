"""Causal language models of transformers, from the Hub or a folder: judges, and what stands beside ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.contract import ConfigError
from trainer.trunk import first_line, quiet

_HUB_WAIT_S = 5.0
_ALIKE = 0.01  # of what logits differ by: rounding is below, in bfloat16 too (guess)


@dataclass(frozen=True)
class CausalLM:
    """A model that says what comes next.

    Attributes:
        name: As it was asked for: a model of the Hub, or a folder.
        revision: Commit of the Hub; None for a folder.
        model: With a language modelling head, on the device where it computes, in evaluation mode.
        tokenizer: Its own.
        most_tokens: That it has positions for; None: it does not say.
    """

    name: str
    revision: str | None
    model: Any
    tokenizer: Any
    most_tokens: int | None


def load_causal_lm(name: str, device: torch.device | str, *, role: str, option: str, example: str,
                   revision: str | None = None) -> CausalLM:
    """Load a model: bfloat16 on a GPU, float32 elsewhere. No code of the model's folder runs.

    Args:
        name: Causal language model of the Hub, or a folder that `save_pretrained` has written.
        device: Where it computes.
        role: What it is here, for what is said of a mistake.
        option: Which named it, for the same.
        example: A model of the Hub to be named instead.
        revision: Commit or tag on the Hub.

    Raises:
        ConfigError: There is no such model, it is not here and cannot be fetched, or it is none that
            predicts the next token.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise ConfigError(f"there is no folder {name}", place=option,
                          fix="name a folder with a causal language model and its tokenizer, or a model "
                              "of the Hub")
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    # Asked for first: without a Hub, transformers would try again and again and print each try.
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": False,
                             "local_files_only": not Path(name).is_dir() and not _hub_answers()}
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **where)
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **where)
            if not tokenizer.is_fast:
                raise ValueError("its tokenizer is not one of the `tokenizers` library")
        except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError,
                SafetensorError) as error:
            raise ConfigError(
                f"{role} {name} cannot be loaded: {first_line(error)}", place=option,
                fix=f"with a network, fetch it once: hf download {example}; without one, "
                    f"name a folder with a causal language model and its tokenizer: {option} PATH") from error
    flaw = _flaw(model.to(device).eval())
    if flaw:
        raise ConfigError(f"{role} {name} {flaw}", place=option,
                          fix=f"name a causal language model, such as {example}")
    return CausalLM(name, getattr(model.config, "_commit_hash", None), model, tokenizer,
                    getattr(model.config.get_text_config(), "max_position_embeddings", None))


@torch.inference_mode()
def _flaw(model: Any) -> str | None:
    """Why a model that was loaded predicts no next token: transformers loads BERT as well."""
    tokens_BL = torch.tensor([[0, 0], [0, 1]], device=model.device)
    first_V, other_V = model(input_ids=tokens_BL).logits[:, 0].float()
    if not first_V.isfinite().all():
        return "gives no numbers: its weights are damaged"
    is_alike = (first_V - other_V).std() <= _ALIKE * first_V.std()
    return None if is_alike else "reads what comes after a token, too: it predicts none"


def _hub_answers() -> bool:
    """Whether the Hub can be reached, by one request."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_WAIT_S)
    except Exception:  # of whichever HTTP client the installed huggingface_hub brings
        return False
    return True
