"""What the model reads for one micro-batch: hidden states, and all that is random.

Shapes: B micro-batch, L tokens, P tokens of a prompt, D channels of a hidden state.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.diffusion import TimestepSampler, encoder_gate
from trainer.model import StepNoise, draw_noise
from trainer.sizes import longest_prompt
from trainer.token_encoder import TokenEncoder


class ModelInputs(NamedTuple):
    """What the model reads for one micro-batch, in the order of its `forward`."""

    tokens_BL: Tensor
    h_BLD: Tensor
    noise: StepNoise
    encoder_gate: float
    u_B: Tensor
    prompt_h_BPD: Tensor | None


class Asked(Protocol):
    """What the inputs of a micro-batch come from; a `Job` is one."""

    config: TrainConfig
    device: torch.device
    encoder: TokenEncoder
    timesteps: TimestepSampler


def model_inputs(job: Asked, step: int, positions: range, tokens_BL: Tensor) -> ModelInputs:
    """Ask the token encoder and draw what is random.

    Args:
        job: Whose encoder and timestep sampler are asked.
        step: From 0.
        positions: Of the samples in the global batch: their noise depends on it.
        tokens_BL: Token ids.
    """
    config, settings = job.config, job.config.diffusion
    noise = draw_noise(config, config.seed, step, positions, job.device)
    prompt_h_BPD = None
    if config.model.prompt and not job.encoder.is_causal:
        prompts_BP = tokens_BL[:, :longest_prompt(config)]
        prompt_h_BPD = job.encoder.prompt_states(prompts_BP, noise.prompt_length_B)
    gate = encoder_gate(step, settings.encoder_warmup_steps, settings.encoder_warmup_floor)
    return ModelInputs(tokens_BL, job.encoder.hidden_states(tokens_BL), noise, gate,
                       job.timesteps.sample(noise.uniform_B), prompt_h_BPD)
