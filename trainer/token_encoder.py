"""The frozen pre-trained language model and its hidden states.

Shapes: B batch, L tokens, P tokens of a prompt, D channels of a hidden state.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.config import Placement, TokenEncoderConfig
from trainer.contract import ConfigError, set_option
from trainer.encoder_weights import Weights
from trainer.host_copies import to_device
from trainer.manifest import EncoderIdentity
from trainer.placement import placed_trunk
from trainer.store import Store
from trainer.text_tokenizer import end_of_text_id
from trainer.trunk import family_of, first_line, quiet
from trainer.weight_sources import EncoderSource

# Rows that stand for no token: 243 of 248,320 in Qwen3.6; the most seen is 905 of 51,200 (phi-2).
_MOST_PADDING, _MOST_PADDING_SHARE = 1024, 0.1


class TokenEncoder:
    """Hidden states of a truncated, frozen language model.

    Attributes:
        name: As in the config.
        hidden_size: D.
        vocab_size: Rows of the embedding; token ids are below it.
        max_length: Longest sequence that it reads, without the prefix; None when it sets no limit.
        identity: What decides its hidden states; the same wherever its weights come from or lie.
        tokenizer: The Hugging Face tokenizer that belongs to it.
        num_tokens: Ids of the tokenizer; rows of the embedding from there on stand for no token.
        end_of_text_id: Id that ends a document.
        is_causal: A state depends on the tokens up to its own only.
        is_collective: All ranks must call it together, with inputs of any size.
        first_measured: Position from which on states count in statistics: without a prefix the first
            one, which is unlike any other, does not.
    """

    def __init__(self, weights: Weights, tokenizer: Any, config: TokenEncoderConfig, device: torch.device,
                 encoder_device: torch.device) -> None:
        model = weights.config
        self.identity = EncoderIdentity(
            name=config.name, commit=weights.commit, kept_blocks=model.num_hidden_layers,
            weights=config.weights, products=config.products, prefix_token=config.prefix_token,
            source=weights.source)
        self.tokenizer = tokenizer
        self.num_tokens = _num_tokens(tokenizer)
        self.end_of_text_id = end_of_text_id(tokenizer)
        self.hidden_size: int = model.hidden_size
        self.vocab_size: int = model.vocab_size
        self.is_causal = family_of(model).is_causal
        self.is_collective = config.placement == "sharded"
        self.first_measured = 0 if config.prefix_token else 1
        self.name, self._source = config.name, weights
        self._trunk: nn.Module | None = None
        self._weights, self._products = config.weights, config.products
        # The placement `auto` is the plan's to decide.
        self._placement: Placement = "gpu" if config.placement == "auto" else config.placement
        self._device, self._encoder_device = device, encoder_device
        self._prefix_id = _prefix_id(tokenizer) if config.prefix_token else None
        self.max_length = _max_length(model, with_prefix=config.prefix_token)

    def load(self) -> None:
        """Bring the weights to where they lie while it is used; they are fetched if they are not here.

        Nothing where that has been done. Under torch.distributed all ranks call this together when the
        placement is `sharded`.

        Raises:
            ConfigError: They are not whole, or not of this model.
            StoreError: A download was cut off.
        """
        if self._trunk is None:
            self._trunk = placed_trunk(self._source, self._weights, self._placement, self._encoder_device,
                                   self._products)

    @property
    def trunk(self) -> nn.Module | None:
        """The modules that compute; None until it is loaded."""
        return self._trunk

    @property
    def linear_attention(self) -> Literal["fla", "torch"] | None:
        """Which code computes linear attention, by transformers' choice; None where there is none."""
        if "linear_attention" not in (getattr(self._source.config, "layer_types", None) or ()):
            return None
        try:
            importlib.import_module("fla.ops.gated_delta_rule")
        except Exception:  # whatever it is, transformers then takes its own code too
            return "torch"
        return "fla"

    def summary(self) -> str:
        """One line: which blocks run, where their weights lie, and by which code."""
        on_cpu = self._encoder_device.type == "cpu"
        held = "float32" if on_cpu and self._weights == "bf16" else self._weights
        held += "" if self._products == "bf16" else f", multiplied in {self._products}"
        line = (f"token encoder {self.name}: {self.identity.kept_blocks} blocks in {held}, "
                f"{'on the CPU' if on_cpu else f'placement {self._placement}'}")
        code = self.linear_attention
        hint = " (slow: python3 -m trainer.environment --gpu)" if code == "torch" and not on_cpu else ""
        return line + (f", linear attention by {code}{hint}" if code else "")

    def check_length(self, sequence_length: int) -> None:
        """Refuse sequences that, with the prefix, are longer than the encoder's positions.

        Raises:
            ConfigError: They are.
        """
        if self.max_length is not None and sequence_length > self.max_length:
            prefix = "" if self._prefix_id is None else " (one position goes to the prefix)"
            raise ConfigError(
                f"data.sequence_length is {sequence_length}, but {self.name} reads at most "
                f"{self.max_length} tokens{prefix}",
                place="data.sequence_length",
                fix=f"add {set_option('train.data.sequence_length', self.max_length)} (or less)")

    def hidden_states(self, tokens_BL: Tensor, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """Hidden states h_BLD of the tokens, on the training device, without gradient.

        Where the config says so, one fixed token is put in front and its state dropped: in large models
        the first position collects attention and carries values unlike any other.

        Args:
            tokens_BL: Token ids.
            dtype: Of the states; None: the encoder's own.

        Raises:
            ConfigError: The sequences are longer than the encoder's positions.
        """
        return self._states(tokens_BL, None, dtype)

    def prompt_states(self, tokens_BP: Tensor, lengths_B: Tensor) -> Tensor:
        """Hidden states h_BPD of prompts on their own, as `hidden_states`; 0 beyond each length.

        Args:
            tokens_BP: Right-padded with any ids.
            lengths_B: Tokens of each prompt that count, 0 to P.

        Raises:
            ConfigError: As `hidden_states`.
        """
        positions_P = torch.arange(tokens_BP.shape[1], device=tokens_BP.device)
        counts_BP = positions_P < lengths_B[:, None].to(tokens_BP.device)
        # An empty prompt still needs one position to attend to; its state is dropped below.
        mask_BP = counts_BP | (positions_P == 0)
        states = self._states(tokens_BP, mask_BP.to(tokens_BP.dtype), torch.float32)
        return torch.where(counts_BP[..., None].to(states.device), states, 0.0)

    def _states(self, tokens_BL: Tensor, mask_BL: Tensor | None, dtype: torch.dtype | None) -> Tensor:
        assert self._trunk is not None, "it is loaded"
        self.check_length(tokens_BL.shape[1])
        tokens_BL = to_device(tokens_BL, self._encoder_device)
        mask: Any = None if mask_BL is None else mask_BL.to(self._encoder_device)
        skip = 0
        if self._prefix_id is not None:
            tokens_BL = nn.functional.pad(tokens_BL, (1, 0), value=self._prefix_id)
            mask, skip = None if mask is None else nn.functional.pad(mask, (1, 0), value=1), 1
        mask = _mask_of_all(self._trunk.config, tokens_BL) if mask is None else mask
        # Triton kernels start on the current device, wherever their tensors are.
        here = torch.cuda.device(self._encoder_device if self._encoder_device.type == "cuda" else -1)
        with here, torch.inference_mode():
            states = self._trunk(input_ids=tokens_BL, attention_mask=mask)[0]
        # A copy made out here is an ordinary tensor, which a backward pass may keep.
        return states[:, skip:].to(self._device, dtype or states.dtype, copy=True)


def _mask_of_all(config: Any, tokens_BL: Tensor) -> Any:
    """What transformers takes for sequences without padding."""
    kinds = getattr(config, "layer_types", None)
    if kinds and config._attn_implementation == "sdpa":
        # It would look whether a mask is all ones, wait for the device to say so, and drop it.
        return dict.fromkeys(kinds)
    return torch.ones_like(tokens_BL)


def load_token_encoder(config: TokenEncoderConfig, device: torch.device | str,
                       sequence_length: int | None = None, *, store: Store | None = None,
                       say: Callable[[str], None] = print) -> TokenEncoder:
    """A token encoder that can be used at once.

    Args:
        config: As of `open_token_encoder`.
        device: Where it computes, and hidden states are wanted.
        sequence_length: When given, checked against the encoder's positions.
        store: Where a mirror of the truncated trunk may lie.
        say: Told, line by line, what is being fetched.

    Raises:
        ConfigError, StoreError: As `open_token_encoder` and `TokenEncoder.load`.
    """
    encoder = open_token_encoder(config, EncoderSource(config, store, say), device, sequence_length)
    encoder.load()
    return encoder


def open_token_encoder(config: TokenEncoderConfig, source: EncoderSource, device: torch.device | str,
                       sequence_length: int | None = None, *,
                       encoder_device: torch.device | str | None = None) -> TokenEncoder:
    """A frozen language model, cut off above the layer whose hidden states are read, yet to be loaded.

    float32 on the CPU, bfloat16 elsewhere. No code of the model folder runs.

    Args:
        config: `name` is a package that carries a model, a folder in Hugging Face layout or a model of
            the Hub. The placement `auto` is the plan's to decide and read as `gpu` here.
        source: Where its files are.
        device: Where hidden states are wanted.
        sequence_length: When given, checked against the encoder's positions.
        encoder_device: Where it computes; `device` by default.

    Raises:
        ConfigError: No such model, it cannot be used, tokenizer and model do not fit, the layer is out of
            range, or the sequences are too long.
        StoreError: A download was cut off.
    """
    weights = source.weights()
    tokenizer = open_tokenizer(weights.folder)
    check_fit(tokenizer, weights.config.vocab_size, config.name)
    encoder = TokenEncoder(weights, tokenizer, config, torch.device(device),
                           torch.device(encoder_device or device))
    if sequence_length is not None:
        encoder.check_length(sequence_length)
    return encoder


def load_tokenizer(config: TokenEncoderConfig, store: Store | None = None,
                   say: Callable[[str], None] = print) -> Any:
    """The tokenizer of a token encoder, without its weights. Raises as `load_token_encoder`."""
    return open_tokenizer(EncoderSource(config, store, say).tokenizer())


def _prefix_id(tokenizer: Any) -> int:
    for token_id in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token_id is not None:
            return int(token_id)
    return end_of_text_id(tokenizer)


def _num_tokens(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _max_length(config: Any, *, with_prefix: bool) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    if config.model_type in ("roberta", "xlm-roberta"):
        positions -= config.pad_token_id + 1  # they count positions from there
    return int(positions) - with_prefix


def check_fit(tokenizer: Any, num_rows: int, name: str) -> None:
    """Refuse a tokenizer whose ids are not those of a model's embedding, or far fewer than them.

    Args:
        tokenizer: Of the Hugging Face kind.
        num_rows: Of the embedding, which may be padded.
        name: Of the model.

    Raises:
        ConfigError: It is of another vocabulary.
    """
    num_tokens = _num_tokens(tokenizer)
    if not num_rows - max(_MOST_PADDING, _MOST_PADDING_SHARE * num_rows) <= num_tokens <= num_rows:
        raise ConfigError(f"tokenizer and model do not fit: the tokenizer has ids up to {num_tokens - 1}, "
                          f"the model has embeddings for {num_rows}",
                          place=f"token_encoder.name: {name}",
                          fix="put the tokenizer of this very model beside it")


def open_tokenizer(folder: Path) -> Any:
    """The Hugging Face tokenizer in a folder. Raises ConfigError when none can be loaded."""
    from transformers import AutoTokenizer

    fix = "put the tokenizer files of this very model there"
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
            raise ConfigError(f"the tokenizer cannot be loaded: {first_line(error)}", place=str(folder),
                              fix=fix) from error
    # Without its files transformers makes one up from config.json, to which every text is nothing.
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        raise ConfigError("the tokenizer is not there: it has no vocabulary", place=str(folder), fix=fix)
    return tokenizer
