"""Gradients of the trained parts: each part is clipped by a norm of its own.

The losses of the parts differ in scale and in how they change over a run; under one norm for all, a
burst in one part would brake the others (a guess of the method's specification, not the paper's word).
DeepSpeed knows one norm for all, so it is told to clip nothing: what it has averaged and is about to
hand to the optimizer is scaled here, between the last `backward` of a step and its `step`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

_PART = "part"  # key of a parameter group; DeepSpeed and torch keep it, checkpoints too
_EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_


def parameter_groups(parts: Mapping[str, nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for the optimizer: for each part, what decays and what does not.

    Vectors and scalars (norm gains, biases, gates) do not decay.

    Args:
        parts: Trained parts by name. They share no parameter.
        weight_decay: Of matrices and of learned positions.
    """
    groups = []
    for name, part in parts.items():
        for is_matrix, decay in ((True, weight_decay), (False, 0.0)):
            chosen = [weight for weight in part.parameters() if (weight.ndim >= 2) is is_matrix]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, _PART: name})
    return groups


def flat_groups(model: nn.Module, parts: Mapping[str, nn.Module]) -> list[dict[str, list[int]]]:
    """Name and shape of the parameters of each of `parameter_groups`, in their order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(weight)]: list(weight.shape) for weight in group["params"]}
            for group in parameter_groups(parts, 0.0)]


@torch.no_grad()
def clip_by_part(engine: Any, max_norm: float) -> dict[str, Tensor]:
    """Scale the averaged gradients of every part whose norm is larger than `max_norm` down to it.

    A collective, for ZeRO stages 1 and 2, at the end of gradient accumulation only. Waits for no device.

    Args:
        engine: DeepSpeed engine whose optimizer was made from `parameter_groups`.
        max_norm: Largest norm of a part.

    Returns:
        Norm of each part before clipping, float32 scalars on the device, equal on all ranks. Not finite
        when a gradient is not: then the gradients of that part are not finite afterwards either.
    """
    by_part: dict[str, list[Tensor]] = {}
    for group, gradients in zip(engine.optimizer.param_groups, _own_gradients(engine.optimizer), strict=True):
        by_part.setdefault(group[_PART], []).extend(gradients)
    squares = torch.stack([torch.stack(torch._foreach_norm(gradients)).square().sum()
                           for gradients in by_part.values()])
    dist.all_reduce(squares)
    norms = squares.sqrt()
    factors = (max_norm / (norms + _EPS)).clamp(max=1)
    for gradients, factor in zip(by_part.values(), factors, strict=True):
        torch._foreach_mul_(gradients, factor)
    return dict(zip(by_part, norms, strict=True))


def _own_gradients(optimizer: Any) -> list[list[Tensor]]:
    """This rank's share of the averaged gradients, float32, group by group.

    DeepSpeed has two optimizers for these stages and no common way to ask them (0.19.8): bf16 in stage 1
    keeps a flat partition for each group, the others lists of tensors that make up a partition.
    """
    flat = getattr(optimizer, "fp32_groups_gradient_flat_partition", None)
    if flat is not None:
        return [[gradient] for gradient in flat]
    return [list(optimizer.averaged_gradients[group]) for group in range(len(optimizer.param_groups))]
