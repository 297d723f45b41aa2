"""A model of a few thousand parameters, for tests of its parts."""

from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.model import LatentDiffusionLM
from trainer.profiles import merged

HIDDEN_SIZE, VOCABULARY = 10, 40

# Every setting of the layout away from its default, alone.
LAYOUTS: tuple[dict[str, Any], ...] = (
    {}, {"perceiver_block": "split"}, {"token_decoder_mlp": "plain"}, {"denoiser_block": "plain"},
    {"self_conditioning": False}, {"denoiser_block": "plain", "self_conditioning": False},
    {"latent_norm": "none"}, {"latent_norm": "running_std"}, {"time_input": "log_snr"},
    {"denoiser_positions": "rotary"}, {"qk_norm": False}, {"dropout": 0.2}, {"prompt": True},
    {"denoiser_block": "plain", "prompt": True}, {"num_latents": 4},
    # As the seed profiles: every part as wide as the hidden states, no projection anywhere.
    {"perceiver_block": "split", "denoiser_block": "plain", "self_conditioning": False, "latent_width": 10,
     "width": 10, "num_heads": 1, "token_decoder_width": 10, "token_decoder_heads": 1})


def name_of(layout: dict[str, Any]) -> str:
    """Test id of a layout."""
    return "-".join(f"{key}={value}" for key, value in layout.items()) or "default"


def tiny_config(model: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    """8 tokens, width 16, one layer of everything; `model` and `changes` go over it."""
    base = {
        "steps": 1, "micro_batch_size": 2, "global_batch_size": 8, "precision": "fp32",
        "token_loss_fraction": 0.25, "data": {"source": "none", "sequence_length": 8},
        "token_encoder": {"name": "none"}, "checkpoint": {"every_steps": 1},
        "model": {"latent_width": 6, "width": 16, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1,
                  "denoiser_layers": 1, "token_decoder_layers": 1, "token_decoder_width": 16,
                  "token_decoder_heads": 2} | (model or {}),
        "diffusion": {"decoder_noise_std": 1.0}}
    return TrainConfig.model_validate(merged(base, changes))


def tiny_model(config: TrainConfig, token_ids: torch.Tensor | None = None) -> LatentDiffusionLM:
    """The model of `tiny_config`, with weights where it starts at zero: those would hide gradients."""
    torch.manual_seed(0)
    model = LatentDiffusionLM(config, HIDDEN_SIZE, token_ids, VOCABULARY)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.denoiser.named_parameters():
        if parameter.ndim == 2 or name in ("output.weight", "blocks.0.prompt.gate"):
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


class TableEncoder:
    """Hidden states from a table."""

    num_tokens = VOCABULARY
    table = torch.randn(VOCABULARY, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))

    def hidden_states(self, tokens_BL: torch.Tensor, _dtype: torch.dtype | None = None) -> torch.Tensor:
        return self.table[tokens_BL]

    def prompt_states(self, tokens_BP: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        return self.table[tokens_BP]


class Words:
    """A tokenizer that writes ids as numbers."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))
