"""Standard normal numbers that are counted, not drawn one after the other: the same on every device but for
the rounding of logarithm and cosine, and no step on the host, so that a CUDA graph can make them anew.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), then Box and Muller.
Shapes: B samples, N groups of four numbers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.chance import key_words
from trainer.fast.devices import has_triton
from trainer.host_copies import to_device

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_WORD = 2**32 - 1
_ROUNDS = 10
# Of the paper: odd multipliers, and what the key grows by from round to round (golden ratio, root of 3).
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def sample_keys(seed: int, indices: Sequence[int], device: torch.device | str) -> Tensor:
    """Keys (B, 2) of some samples of a seed: words of 32 bits, int64."""
    return to_device(torch.tensor([key_words("sample", seed, index) for index in indices]), device)


def normals(keys_B2: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers (B, *shape), float32: those of a sample depend on its key and `draw` alone.

    Args:
        keys_B2: From `sample_keys`.
        draw: Which of the sample's draws, from 0.
        shape: Of one sample.
    """
    if has_triton(keys_B2.device):
        from trainer.fast.noise_kernel import normals_by_kernel

        return normals_by_kernel(keys_B2, draw, shape)
    return normals_by_torch(keys_B2, draw, shape)


def normals_by_torch(keys_B2: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """The same in operations of torch, on any device."""
    num = math.prod(shape)
    group_1N = torch.arange(-(-num // 4), device=keys_B2.device)[None]
    zero_1N = torch.zeros_like(group_1N)
    a, b, c, d = philox((group_1N, zero_1N, zero_1N + draw, zero_1N), (keys_B2[:, :1], keys_B2[:, 1:]))
    numbers_BN4 = _box_muller(torch.stack([a, c], dim=-1), torch.stack([b, d], dim=-1)).flatten(2)
    return numbers_BN4.flatten(1)[:, :num].unflatten(1, shape)


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random words for each counter of four words under a key of two; int64 of 32 bits, broadcast.

    Products of int64 wrap around, and so hold the 64 bits of the unsigned product.
    """
    a, b, c, d = counter
    rounds = torch.arange(_ROUNDS, device=a.device)
    lefts, rights = (word[..., None] + rounds * weyl for word, weyl in zip(key, _WEYL, strict=True))
    for number in range(_ROUNDS):
        first, third = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        # Above their 32 bits b and d, and keys, may hold anything until a mask takes it away.
        a, b = ((third >> 32) ^ b ^ lefts[..., number]) & _WORD, third
        c, d = ((first >> 32) ^ d ^ rights[..., number]) & _WORD, first
    return a, b & _WORD, c, d & _WORD


def _box_muller(first: Tensor, second: Tensor) -> Tensor:
    """Two independent normal numbers (..., 2) of two words."""
    # In (0, 1]: half a step above a multiple of 2^-32. So no number is beyond 6.77.
    radius = (-2 * (first.float() * 2.0**-32 + 2.0**-33).log()).sqrt()
    angle = second.float() * (2 * math.pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
