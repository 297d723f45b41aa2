"""Trains a small transformer for some minutes and keeps the weights that did best on held-out rows.

Shapes: N rows, B rows of a step, L tokens.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_WARM_UP_STEPS = 200
_LOOKS = 20  # at held-out rows, evenly over the time
_HEAD_WIDTH = 64


@dataclass(frozen=True)
class Trained:
    """How far it came. Losses are those at each look, nats per token; the best weights were kept."""

    steps: int
    seconds: float
    train_losses: list[float]
    heldout_losses: list[float]


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_bf16() -> Any:
    """Autocast on a GPU; nothing on a CPU."""
    return torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda")


def dtype() -> str:
    """What `in_bf16` computes in, for the record; as `trainer.frontier` calls it."""
    return "bfloat16 autocast" if device().type == "cuda" else "float32"


def width_for(parameters: float, num_ids: int, layers: int) -> int:
    """The width, a multiple of the heads' 64, whose transformer is nearest to a number of parameters.

    A block has 12 width^2 (four maps of attention, an MLP of factor 4), the embedding is the head too.
    """
    def count(width: int) -> float:
        return 12 * layers * width**2 + num_ids * width

    widths = range(_HEAD_WIDTH, 64 * _HEAD_WIDTH, _HEAD_WIDTH)
    return min(widths, key=lambda width: abs(count(width) - parameters))


def train(model: nn.Module, loss: Callable[[Tensor], Tensor], heldout_loss: Callable[[], float],
          rows_NL: np.ndarray, *, minutes: float, batch: int, learning_rate: float, seed: int,
          max_steps: int | None = None) -> Trained:
    """Train with AdamW until the time is up, the rate falling to 0 over it; the best weights stay.

    Args:
        model: On `device()`.
        loss: Of rows_BL, on the device.
        heldout_loss: In nats per token, over few rows: it is asked often.
        rows_NL: To train on, each once per epoch, shuffled anew.
        minutes: Of training, looks included.
        batch: B.
        learning_rate: The highest.
        seed: Of the order.
        max_steps: When given, no more than so many.
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, (0.9, 0.98), weight_decay=0.01,
                                  fused=device().type == "cuda")
    best: dict[str, Tensor] = {}
    train_losses, looks, latest = [], [], torch.tensor(math.nan)
    began = time.monotonic()
    for steps, rows_BL in enumerate(_batches(rows_NL, batch, seed)):
        done = _share(began, minutes, steps, max_steps)
        if done >= (len(looks) + 1) / _LOOKS or done >= 1:
            train_losses.append(latest.item())
            looks.append(look(model, heldout_loss))
            print(f"{done:.0%}  step {steps}  loss {latest.item():.3f}  held out {looks[-1]:.3f}", flush=True)
            if looks[-1] == min(looks):
                best = {name: value.clone() for name, value in model.state_dict().items()}
        if done >= 1:
            model.load_state_dict(best)
            return Trained(steps, time.monotonic() - began, train_losses, looks)
        rate = learning_rate * min((steps + 1) / _WARM_UP_STEPS, 0.5 * (1 + math.cos(math.pi * done)))
        latest = _step(model, optimizer, loss, rows_BL, rate)
    raise AssertionError("batches have no end")


def _batches(rows_NL: np.ndarray, batch: int, seed: int) -> Iterator[Tensor]:
    """Whole batches without end, each epoch in an order of its own."""
    rows, order = torch.from_numpy(rows_NL).to(device()), torch.Generator().manual_seed(seed)
    while True:
        for picked in torch.randperm(len(rows), generator=order)[: len(rows) // batch * batch].split(batch):
            yield rows[picked.to(rows.device)]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[Tensor], Tensor],
          rows_BL: Tensor, rate: float) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = rate
    with in_bf16():
        found = loss(rows_BL)
    found.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return found.detach()


def _share(began: float, minutes: float, steps: int, max_steps: int | None) -> float:
    by_time = (time.monotonic() - began) / (60 * minutes)
    return min(1.0, max(by_time, steps / max_steps if max_steps else 0.0))


def look(model: nn.Module, heldout_loss: Callable[[], float]) -> float:
    """The held-out loss of a model as it is used: without dropout, in bf16 on a GPU."""
    model.eval()
    with torch.inference_mode(), in_bf16():
        found = heldout_loss()
    model.train()
    return found
