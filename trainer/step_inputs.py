"""What the model reads for one micro-batch: hidden states, and all that is random.

Shapes: B micro-batch, L tokens, P tokens of a prompt, D channels of a hidden state.
"""

from collections.abc import Iterator
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


def states_in_turn(job: Asked, batch: Tensor) -> Iterator[Tensor]:
    """Hidden states h_BLD of one micro-batch after the other, float32.

    The encoder reads as many micro-batches at once as its own one holds, just before the first of them is
    asked for. The states of the others wait in its own precision, until the last of them is asked for.

    Args:
        job: Whose encoder is asked.
        batch: Token ids of the micro-batches, (micro-batches, B, L).
    """
    size = batch.shape[1]
    for group in batch.split((job.config.token_encoder.micro_batch_size or size) // size):
        waiting = list(job.encoder.hidden_states(group.flatten(0, 1), None).split(size))
        while waiting:
            yield waiting.pop(0).float()


def model_inputs(job: Asked, step: int, positions: range, tokens_BL: Tensor, h_BLD: Tensor) -> ModelInputs:
    """Draw what is random, and ask the token encoder for states of prompts where it needs them.

    Args:
        job: Whose encoder and timestep sampler are asked.
        step: From 0.
        positions: Of the samples in the global batch: their noise depends on it.
        tokens_BL: Token ids.
        h_BLD: Their hidden states.
    """
    config, settings = job.config, job.config.diffusion
    noise = draw_noise(config, config.seed, step, positions, job.device)
    prompt_h_BPD = None
    if config.model.prompt and not job.encoder.is_causal:
        prompts_BP = tokens_BL[:, :longest_prompt(config)]
        prompt_h_BPD = job.encoder.prompt_states(prompts_BP, noise.prompt_length_B)
    gate = encoder_gate(step, settings.encoder_warmup_steps, settings.encoder_warmup_floor)
    return ModelInputs(tokens_BL, h_BLD, noise, gate, job.timesteps.sample(noise.uniform_B), prompt_h_BPD)
