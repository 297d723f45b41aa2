"""What a training config amounts to: parameters by part, arithmetic per token, bytes that travel.

Counts are of the very modules in `trainer/latents.py`, `denoiser.py` and `prompt.py`, biases, norms and
positions included; a test builds those without memory and compares. No torch.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from trainer.config import ModelConfig, TrainConfig, WeightFormat
from trainer.encoder_shape import NF4_BLOCK, EncoderShape

# Guess: about a third of the vocabulary of 30,522 occurs in a text of some million words.
SEEN_VOCABULARY = 10_000
# Of logits at a time in the vocabulary loss (guess: enough to keep a GPU busy, little beside the rest).
_LOGITS_BYTES = 384 * 2**20
_ROW_MULTIPLE = 128
PARTS = ("latent_encoder", "latent_decoder", "token_decoder", "vocabulary_head", "denoiser")


def head_rows(config: TrainConfig, shape: EncoderShape | None, num_seen_ids: int | None = None) -> int:
    """Rows of the vocabulary head; a guess where it covers only ids that occur in a text not yet read."""
    if config.model.head_vocabulary == "full" and shape is not None:
        return shape.vocab_size
    if num_seen_ids is not None:
        return num_seen_ids
    return min(SEEN_VOCABULARY, shape.vocab_size) if shape is not None else SEEN_VOCABULARY


def trained_parameters(config: TrainConfig, shape: EncoderShape,
                       num_seen_ids: int | None = None) -> dict[str, int]:
    """Parameters by part, exact, under the names of `PARTS`; `token_decoder` is without its head.

    Args:
        config: Sizes and layouts.
        shape: Of the token encoder.
        num_seen_ids: Rows of the head, where `model.head_vocabulary` is `seen` and they are known.
    """
    model, hidden = config.model, shape.hidden_size
    length, latents, width = config.data.sequence_length, config.num_latents, config.model.token_decoder_width
    blocks = model.token_decoder_layers * _transformer(
        width, model.token_decoder_heads, model, model.token_decoder_mlp)
    between = _linear(hidden, width) if hidden != width else 0
    return {
        "latent_encoder": _perceiver((length, hidden), (latents, model.latent_width), model.encoder_layers,
                                     model),
        "latent_decoder": _perceiver((latents, model.latent_width), (length, hidden), model.decoder_layers,
                                     model),
        "token_decoder": between + length * width + blocks + 2 * width,
        "vocabulary_head": _linear(width, head_rows(config, shape, num_seen_ids)),
        "denoiser": _denoiser(config, hidden),
    }


def num_trained(config: TrainConfig, shape: EncoderShape) -> int:
    """All trained parameters."""
    return sum(trained_parameters(config, shape).values())


def longest_prompt(config: TrainConfig) -> int:
    """Most tokens of a prompt; 0 when the denoiser reads none."""
    longest = int(config.diffusion.prompt_max_fraction * config.data.sequence_length)
    return max(1, longest) if config.model.prompt else 0


def loss_chunk_rows(vocabulary: int, logit_bytes: int) -> int:
    """Rows of logits that the vocabulary loss works on at a time; fewer read the head's gradient more often.

    Args:
        vocabulary: Logits of a row.
        logit_bytes: What one takes: its own precision, and float32 beside it where there are no kernels.
    """
    rows = max(1, _LOGITS_BYTES // (vocabulary * logit_bytes))
    # Matrix products over an odd number of rows are slow on a GPU.
    return rows - rows % _ROW_MULTIPLE if rows > _ROW_MULTIPLE else rows


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _attention(width: int, num_heads: int, qk_norm: bool, num_maps: int = 4) -> int:
    return num_maps * _linear(width, width) + (2 * width // num_heads if qk_norm else 0)


def _mlp(width: int, kind: str = "plain") -> int:
    inwards = 2 if kind == "gated" else 1
    return inwards * _linear(width, 4 * width) + _linear(4 * width, width)


def _transformer(width: int, num_heads: int, model: ModelConfig, mlp: str = "plain") -> int:
    return _attention(width, num_heads, model.qk_norm) + _mlp(width, mlp) + 4 * width


def _perceiver(inputs: tuple[int, int], outputs: tuple[int, int], layers: int, model: ModelConfig) -> int:
    (num_inputs, input_width), (num_outputs, output_width), width = inputs, outputs, model.width
    is_joint = model.perceiver_block == "joint"
    if is_joint:
        block = _attention(width, model.num_heads, model.qk_norm, 6) + _mlp(width) + 6 * width
    else:
        block = 2 * _attention(width, model.num_heads, model.qk_norm) + _mlp(width) + 8 * width
    entry = _linear(input_width, width) if is_joint or input_width != width else 0
    end = 2 * width + _linear(width, output_width) if is_joint or output_width != width else 0
    return entry + (num_inputs + num_outputs) * width + layers * block + end


def _denoiser(config: TrainConfig, hidden_size: int) -> int:
    model = config.model
    width, latent = model.width, model.latent_width
    inputs = 2 * latent if model.self_conditioning else latent
    positions = config.num_latents * width if model.denoiser_positions == "learned" else 0
    attention = _attention(width, model.num_heads, model.qk_norm)
    if model.denoiser_block == "adaln":
        block = attention + _mlp(width) + _linear(width, 6 * width)
        around = _linear(inputs, width) + 2 * _linear(width, width) + _linear(width, 2 * width)
        around += _linear(width, latent)
    else:
        block = attention + _mlp(width) + 4 * width
        around = _linear(1, width) + _linear(width, width)
        around += _linear(inputs, width) if model.self_conditioning or latent != width else 0
        around += _linear(width, latent) if latent != width else width
    prompt = 0
    if model.prompt:
        prompt = _linear(hidden_size, width) + longest_prompt(config) * width
        block += attention + 3 * width
    return positions + around + prompt + model.denoiser_layers * block


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of training on one token.

    Attributes:
        encoder: Forward pass of the frozen token encoder; 0 where its size is not known.
        trained: Forward and backward pass of the trained parts, three times the forward pass.
        self_conditioning: The denoiser's extra pass, by its probability.
        recomputed: Blocks run again for the backward pass, with activation checkpointing, as far as
            something in them is needed: not the last map of an MLP, unless a gate reads what it gives.
    """

    encoder: float
    trained: float
    self_conditioning: float
    recomputed: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.encoder + self.trained + self.self_conditioning + self.recomputed


def flops_per_token(config: TrainConfig, shape: EncoderShape | None) -> Flops:
    """Matrix products and attention, two operations for each multiply and add.

    Without a shape the encoder counts nothing, and hidden states are taken to be as wide as the parts.
    The prompt, where there is one, counts at its longest.
    """
    length, prefix = config.data.sequence_length, int(config.token_encoder.prefix_token)
    encoder = 0.0
    if shape is not None:
        each = shape.forward_flops_per_token(config.token_encoder.layer, length + prefix)
        encoder = each * (length + prefix) / length
    forward = _forward_flops(config, shape)
    inner = sum(forward.blocks.values())
    repeated = config.diffusion.self_conditioning_probability if config.model.self_conditioning else 0.0
    denoiser = repeated * (forward.blocks["denoiser"] + forward.around["denoiser"])
    trained = 3 * (inner + sum(forward.around.values())) - forward.first
    again = inner - _last_maps(config) if config.activation_checkpointing else 0.0
    return Flops(encoder, trained / length, denoiser / length, again / length)


class _Forward(NamedTuple):
    """Operations of the forward pass of one sequence.

    Attributes:
        blocks: By part, in blocks.
        around: By part, before and after them.
        first: Of those around, in maps whose inputs need no gradient.
    """

    blocks: dict[str, float]
    around: dict[str, float]
    first: float


def _forward_flops(config: TrainConfig, shape: EncoderShape | None) -> _Forward:
    model, length, latents = config.model, config.data.sequence_length, config.num_latents
    hidden = shape.hidden_size if shape is not None else model.width
    decoder_width = model.token_decoder_width
    maps = 16 if model.token_decoder_mlp == "gated" else 12
    rows = head_rows(config, shape) * config.token_loss_positions
    outside = _entry(length, hidden, model)
    inside = _entry(latents, model.latent_width, model)
    read = 2 * length * hidden * decoder_width if hidden != decoder_width else 0
    blocks = {
        "latent_encoder": model.encoder_layers * _perceiver_flops(length, latents, model),
        "latent_decoder": model.decoder_layers * _perceiver_flops(latents, length, model),
        "token_decoder": model.token_decoder_layers * length * (
            2 * maps * decoder_width**2 + 4 * length * decoder_width),
        "denoiser": model.denoiser_layers * _denoiser_block_flops(config),
    }
    around = {
        "latent_encoder": outside + inside,
        "latent_decoder": inside + outside,
        "token_decoder": read + 2 * rows * decoder_width,
        "denoiser": sum(_around_denoiser(config, hidden)),
    }
    own_first = outside + _around_denoiser(config, hidden)[0]
    # Cross-entropy that trains the latent decoder goes through the token decoder's first map, too.
    return _Forward(blocks, around, own_first + (read if config.diffusion.decoder_loss == "hidden" else 0))


def _entry(number: int, other_width: int, model: ModelConfig) -> float:
    """Between so many vectors of another width and those of a Perceiver, where there is such a map."""
    is_there = model.perceiver_block == "joint" or other_width != model.width
    return 2 * number * other_width * model.width if is_there else 0


def _around_denoiser(config: TrainConfig, hidden: int) -> tuple[float, float]:
    """Of time and prompt, the maps that come first; and all others around the denoiser's blocks."""
    model, latents, width = config.model, config.num_latents, config.model.width
    is_plain, latent = model.denoiser_block == "plain", model.latent_width
    first = 2 * (width if is_plain else width**2) + 2 * longest_prompt(config) * hidden * width
    others = 2 * width**2 * (1 if is_plain else 3)  # time; without `plain` the last modulation, too
    if not is_plain or model.self_conditioning or latent != width:
        others += 2 * latents * width * latent * (2 if model.self_conditioning else 1)
    if not is_plain or latent != width:
        others += 2 * latents * width * latent
    return first, others


def _denoiser_block_flops(config: TrainConfig) -> float:
    """One block; of adaln with its modulation, which is once a sequence."""
    model, latents, prompt = config.model, config.num_latents, longest_prompt(config)
    width = model.width
    own = latents * (24 * width**2 + 4 * latents * width)
    if model.denoiser_block == "adaln":
        own += 12 * width**2
    if prompt:
        own += 4 * (latents + prompt) * width**2 + 4 * latents * prompt * width
    return own


def _last_maps(config: TrainConfig) -> float:
    """Operations of one sequence in the last maps of blocks that end with one."""
    model, length, latents = config.model, config.data.sequence_length, config.num_latents
    plain = model.denoiser_layers if model.denoiser_block == "plain" else 0
    inner = latents * (model.encoder_layers + plain) + length * model.decoder_layers
    return 8 * (inner * model.width**2 + length * model.token_decoder_layers * model.token_decoder_width**2)


def _perceiver_flops(num_inputs: int, num_outputs: int, model: ModelConfig) -> float:
    """One block: outputs read inputs and each other."""
    width, read = model.width, num_inputs + num_outputs
    own = 12 if model.perceiver_block == "joint" else 14
    return 2 * width**2 * (own * num_outputs + 2 * num_inputs) + 4 * num_outputs * read * width


def generation_parameters(config: TrainConfig, shape: EncoderShape,
                          num_seen_ids: int | None = None) -> dict[str, int]:
    """Parameters by part that one pass of it has to read to generate without a prompt.

    Maps of the denoiser that see nothing but the time are left out: what they give for a grid of times can
    be known beforehand. Neither encoder runs.
    """
    plain = _without_prompt(config)
    found = trained_parameters(plain, shape, num_seen_ids)
    del found["latent_encoder"]
    return found | {"denoiser": found["denoiser"] - _time_maps(plain)[0]}


def generation_flops(config: TrainConfig, shape: EncoderShape,
                     num_seen_ids: int | None = None) -> dict[str, float]:
    """Operations of one pass of each part over one sequence, as `generation_parameters` has the parts."""
    plain = _without_prompt(config)
    forward, width = _forward_flops(plain, shape), config.model.token_decoder_width
    trained = {part: forward.blocks[part] + forward.around[part] for part in forward.blocks}
    in_training = 2 * head_rows(plain, shape) * plain.token_loss_positions * width
    return {
        "latent_decoder": trained["latent_decoder"],
        "token_decoder": trained["token_decoder"] - in_training,
        "vocabulary_head": 2 * config.data.sequence_length * width * head_rows(plain, shape, num_seen_ids),
        "denoiser": trained["denoiser"] - _time_maps(plain)[1],
    }


def _without_prompt(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"prompt": False})})


def _time_maps(config: TrainConfig) -> tuple[int, int]:
    """Parameters of the denoiser's maps that see nothing but the time, and operations of one pass of them."""
    width, layers = config.model.width, config.model.denoiser_layers
    shapes = [(1, width), (width, width)]
    if config.model.denoiser_block == "adaln":
        shapes = [(width, width)] * 2 + [(width, 6 * width)] * layers + [(width, 2 * width)]
    return (sum(_linear(*shape) for shape in shapes),
            sum(2 * inputs * outputs for inputs, outputs in shapes))


def checkpoint_bytes(config: TrainConfig, shape: EncoderShape, chance_steps: int) -> int:
    """Bytes of one checkpoint at most, all ranks together: float32 weights, two moments, average.

    What is stored is a quarter smaller (see `trainer/piece_codec.py`). Once rounded, the variance takes three
    bytes, momentum and average two each; otherwise all take four.

    Args:
        chance_steps: From one step after which a save by time may begin to the next (`trainer.interval`).
    """
    every_steps = math.gcd(chance_steps, config.checkpoint.every_steps or chance_steps)
    is_rounded = every_steps % config.optimizer.round_steps == 0
    return num_trained(config, shape) * (11 if is_rounded else 16)


def block_bytes(shape: EncoderShape, index: int, weights: WeightFormat) -> int:
    """Bytes of one frozen block in a format, without padding.

    fp8 has a float32 scale for each row, nf4 a bf16 scale for each `NF4_BLOCK` weights.
    """
    block = shape.blocks[index]
    plain = 2 * (block.parameters - block.quantised_parameters)
    if weights == "fp8":
        return plain + block.quantised_parameters + 4 * block.quantised_rows
    if weights == "nf4":
        return plain + block.quantised_parameters // 2 + 2 * (block.quantised_parameters // NF4_BLOCK)
    return 2 * block.parameters


def encoder_bytes(config: TrainConfig, shape: EncoderShape) -> int:
    """Bytes of the frozen weights that a run needs: embeddings in bf16, kept blocks in their format."""
    encoder = config.token_encoder
    kept = range(shape.kept_blocks(encoder.layer))
    return 2 * shape.embedding_parameters + sum(block_bytes(shape, index, encoder.weights) for index in kept)
