"""A model of weights that exist: built as sizes, with no start worked out that they would overwrite."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trainer.config import TrainConfig
from trainer.model import LatentDiffusionLM

ENCODER = "encoder."  # the latent encoder: it makes latents of texts, never texts


class _NoStarts(TorchFunctionMode):
    """Leaves starts of weights out: without memory they are no numbers, and yet load torch's compiler."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def generating_model(config: TrainConfig, hidden_size: int, vocab_size: int, token_ids: Tensor | None = None,
                     *, has_encoder: bool = False) -> LatentDiffusionLM:
    """The parts that generate, and the latent encoder where it is wanted, on the device `meta`.

    Args:
        config: Sizes.
        hidden_size: See `LatentDiffusionLM`, as of the others.
    """
    with torch.device("meta"), _NoStarts():
        model = LatentDiffusionLM(config, hidden_size, token_ids, vocab_size)
    if not has_encoder:
        del model.encoder
    return model


def model_of(config: TrainConfig, hidden_size: int, vocab_size: int,
             state: dict[str, Tensor]) -> LatentDiffusionLM:
    """A model of these weights and buffers, which are its own from now on: where they are, as they are.

    It has a latent encoder when they have one.
    """
    has_encoder = any(name.startswith(ENCODER) for name in state)
    model = generating_model(config, hidden_size, vocab_size, state.get("token_ids"), has_encoder=has_encoder)
    model.load_state_dict(state, assign=True)
    device = next(iter(state.values())).device
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:  # a running sum, which no file holds
                module._buffers[name] = torch.zeros_like(buffer, device=device)
    return model.eval()
