"""Profiles with encoders of the real kinds that a CPU trains in milliseconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from trainer import encoder_shape, profiles

_BLOCKS: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "max_position_embeddings": 64}
ENCODERS = {
    "tiny-dense": {"model_type": "qwen3_5_text", "intermediate_size": 64, **_BLOCKS},
    "tiny-mixture": {"model_type": "qwen3_5_moe_text", "moe_intermediate_size": 16, "num_experts": 4,
                     "shared_expert_intermediate_size": 16, "num_experts_per_tok": 2, **_BLOCKS}}


@contextmanager
def tiny_profiles() -> Iterator[None]:
    """Within, there are profiles of these names."""
    with pytest.MonkeyPatch.context() as patch:
        for name, config in ENCODERS.items():
            patch.setitem(encoder_shape.KNOWN_CONFIGS, name, config)
            patch.setitem(profiles.PROFILES, name, {
                "data": {"sequence_length": 16}, "token_encoder": {"name": name}, "precision": "fp32",
                "model": {"latent_width": 16, "width": 16, "num_heads": 2, "encoder_layers": 1,
                          "decoder_layers": 1, "denoiser_layers": 1, "token_decoder_layers": 1,
                          "token_decoder_width": 16, "token_decoder_heads": 2},
                "diffusion": {"self_conditioning_probability": 1.0},
                "global_batch_size": 8, "micro_batch_size": 2})
        yield
