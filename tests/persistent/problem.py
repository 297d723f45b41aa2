"""Random denoiser blocks of the plain kind, and what torch makes of them: the trainer's own modules.

Shapes: K 64 latents, W width, S steps. Batch 1.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tests.persistent.shape import NUM_LATENTS, Shape
from trainer.attention import AttentionShape, TransformerBlock

_QK_EPS = 1e-6  # as in the kernel; None would be another number in bf16 than in float32


@dataclass(frozen=True)
class Problem:
    """A generation without its decoder.

    Args:
        blocks: In order.
        noise_KW: Latents that it starts from, float32.
        positions_KW: Embeddings of positions.
        times_SW: Embedding of each step's time.
        gain_W: Factor of the last block's output, which then is the estimate of the clean latents.
        coefficients: c1, c2 of each step: z becomes c1 z + c2 estimate. The last step's are not used.
    """

    blocks: list[TransformerBlock]
    noise_KW: Tensor
    positions_KW: Tensor
    times_SW: Tensor
    gain_W: Tensor
    coefficients: list[tuple[float, float]]


def random_problem(shape: Shape, num_blocks: int, num_steps: int, seed: int, device: str = "cuda") -> Problem:
    """Weights that bf16 can hold, so that its rounding of them is no error; all else float32."""
    torch.manual_seed(seed)
    width = shape.width
    with torch.device(device):
        blocks = [_random_block(AttentionShape(width, shape.num_heads)) for _ in range(num_blocks)]
        return Problem(
            blocks, noise_KW=torch.randn(NUM_LATENTS, width),
            positions_KW=0.5 * torch.randn(NUM_LATENTS, width),
            times_SW=0.3 * torch.randn(num_steps, width), gain_W=1 + 0.1 * torch.randn(width),
            coefficients=[(0.8 + 0.01 * step, 0.2) for step in range(num_steps)])


def _random_block(shape: AttentionShape) -> TransformerBlock:
    block = TransformerBlock(shape).requires_grad_(False)
    for module in block.modules():
        if isinstance(module, nn.Linear):
            weight = torch.randn_like(module.weight) * module.in_features**-0.5
            module.weight.copy_(weight.bfloat16())
            module.bias.normal_(0, 0.1)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.weight.normal_(1, 0.1)
        if isinstance(module, nn.LayerNorm):
            module.bias.normal_(0, 0.1)
        if isinstance(module, nn.RMSNorm):
            module.eps = _QK_EPS
    return block


def in_bf16(problem: Problem) -> Problem:
    """The same with blocks in bf16, as torch computes them fast."""
    return replace(problem, blocks=[copy.deepcopy(block).bfloat16() for block in problem.blocks])


def generated(problem: Problem) -> Tensor:
    """The last estimate (K, W), in the dtype of the blocks but for the solver's float32 steps."""
    dtype = problem.blocks[0].mlp_norm.weight.dtype
    z_KW = problem.noise_KW
    for time_W, (keep, add) in zip(problem.times_SW, problem.coefficients, strict=True):
        x_1KW = (z_KW + problem.positions_KW + time_W).to(dtype)[None]
        for block in problem.blocks:
            x_1KW = block(x_1KW)
        estimate_KW = (x_1KW[0] * problem.gain_W.to(dtype)).float()
        z_KW = keep * z_KW + add * estimate_KW
    return estimate_KW


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference by the norm of what is wanted."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())
