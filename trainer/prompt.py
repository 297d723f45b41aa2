"""What the denoiser knows of a prompt: cross-attention to its hidden states behind a gate that starts shut.

Not in the paper. Shapes: B batch, P prompt tokens, K latents, D channels of a hidden state, W width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.attention import AttentionShape, CrossAttention, RowNorm, sinusoid
from trainer.config import TrainConfig
from trainer.sizes import longest_prompt


class PromptContext(NamedTuple):
    """Normalised hidden states of prompts, padded to one length, and their lengths; 0 is no prompt.

    What stands behind a prompt's length is never read.
    """

    hidden_BPD: Tensor
    lengths_B: Tensor


class ReadablePrompt(NamedTuple):
    """A prompt at the denoiser's width.

    Attributes:
        context_BPW: What blocks read.
        mask_B11P: True where they may. A sample without a prompt may read its first position, since
            attention to nothing is not a number.
        given_B11: 1 where there is a prompt, else 0.
    """

    context_BPW: Tensor
    mask_B11P: Tensor
    given_B11: Tensor


class PromptInput(nn.Module):
    """Hidden states of prompts at the denoiser's width, with learned positions.

    The positions start as those of as many latents as tokens, so a latent finds the token it stands for.
    """

    def __init__(self, config: TrainConfig, hidden_size: int) -> None:
        super().__init__()
        width = config.model.width
        self.input = nn.Linear(hidden_size, width)
        positions = sinusoid(config.data.sequence_length, width)[:longest_prompt(config)]
        self.positions = nn.Parameter(positions.clone())

    def forward(self, prompt: PromptContext) -> ReadablePrompt:
        num = prompt.hidden_BPD.shape[1]
        lengths_B1 = prompt.lengths_B.to(prompt.hidden_BPD.device)[:, None]
        inside_BP = torch.arange(num, device=lengths_B1.device) < lengths_B1
        hidden_BPD = prompt.hidden_BPD.masked_fill(~inside_BP[..., None], 0.0)
        context_BPW = self.input(hidden_BPD.to(self.positions.dtype)) + self.positions[:num]
        mask_BP = inside_BP | (torch.arange(num, device=lengths_B1.device) == 0)
        return ReadablePrompt(context_BPW, mask_BP[:, None, None], (lengths_B1 > 0)[..., None])


class PromptAttention(nn.Module):
    """What one block reads of the prompt, to be added to its input. Nothing at the start of training."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.norm = RowNorm(shape.width)
        self.attention = CrossAttention(shape)
        self.gate = nn.Parameter(torch.zeros(shape.width))

    def forward(self, x_BKW: Tensor, prompt: ReadablePrompt) -> Tensor:
        read_BKW = self.attention(self.norm(x_BKW), prompt.context_BPW, prompt.mask_B11P)
        return self.gate * read_BKW * prompt.given_B11
