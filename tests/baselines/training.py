"""Trains a small transformer for some minutes and keeps the weights that did best on held-out rows.

Shapes: N rows, B rows of a step, L tokens.
"""

import math
import time
from collections.abc import Callable
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
    """How far it came. Losses in nats per token; the best one is that of the weights that were kept."""

    steps: int
    seconds: float
    heldout_loss: float
    heldout_at_end: float
    train_losses: list[float]


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_bf16() -> Any:
    """Autocast on a GPU; nothing on a CPU."""
    return torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda")


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
        heldout_loss: In nats per token.
        rows_NL: To train on, each once per epoch, shuffled anew.
        minutes: Of training, looks included.
        batch: B.
        learning_rate: The highest.
        seed: Of the order.
        max_steps: When given, no more than so many.
    """
    torch.manual_seed(seed)
    fused = device().type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, (0.9, 0.98), weight_decay=0.01,
                                  fused=fused)
    rows = torch.from_numpy(rows_NL).to(device())
    order = torch.Generator().manual_seed(seed)
    began, steps, next_look, losses = time.monotonic(), 0, 1 / _LOOKS, []
    best, best_state = math.inf, {}
    while True:
        for picked in torch.randperm(len(rows), generator=order)[: len(rows) // batch * batch].split(batch):
            done = _share(began, minutes, steps, max_steps)
            if done >= next_look or done >= 1:
                next_look += 1 / _LOOKS
                latest = _look(model, heldout_loss)
                losses.append(float(last.detach()) if steps else math.nan)  # noqa: F821
                print(f"{done:.0%}  step {steps}  loss {losses[-1]:.3f}  held out {latest:.3f}", flush=True)
                if latest < best:
                    best, best_state = latest, {name: value.clone() for name, value in
                                                model.state_dict().items()}
            if done >= 1:
                model.load_state_dict(best_state)
                return Trained(steps, time.monotonic() - began, best, latest, losses)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min((steps + 1) / _WARM_UP_STEPS,
                                                  0.5 * (1 + math.cos(math.pi * done)))
            with in_bf16():
                last = loss(rows[picked.to(rows.device)])
            last.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1


def _share(began: float, minutes: float, steps: int, max_steps: int | None) -> float:
    by_time = (time.monotonic() - began) / (60 * minutes)
    return min(1.0, max(by_time, steps / max_steps if max_steps else 0.0))


def _look(model: nn.Module, heldout_loss: Callable[[], float]) -> float:
    model.eval()
    with torch.inference_mode(), in_bf16():
        found = heldout_loss()
    model.train()
    return found
