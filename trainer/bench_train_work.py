"""The two kinds of work that a benchmark of training times: whole steps, and the frozen encoder alone.

Shapes: N steps, B batch, L tokens, D channels of a hidden state.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trainer import norms, token_loss
from trainer.bench_models import shape_of
from trainer.bench_paths import relative_error
from trainer.bench_train_cases import TrainCase, config_of
from trainer.bench_train_encoder import RandomText
from trainer.bench_train_job import build_step, end_step, take_step
from trainer.bench_train_result import gradient_of
from trainer.bench_train_timing import parts_of_step
from trainer.host_copies import to_device

# Modules of transformers whose functions bind fast kernels where those are installed, and the functions.
_BOUND = ("qwen3_5", "qwen3_5_moe"), ("torch_chunk_gated_delta_rule", "causal_conv1d_fn")
_WARM_UP_STEPS = 2
_STEPS_APART = 2  # of which the parts are a mean


class Work(Protocol):
    """Something that is done again and again.

    Attributes:
        waited_s: For text, so far.
    """

    waited_s: float

    def warm_up(self) -> None:
        """Have everything made that is made once in a process."""

    def do(self, _: int = 0) -> None:
        """Once more. Does not wait for the device."""

    def outputs(self, num: int) -> dict[str, Tensor]:
        """What it gives when it is done so many times, on the host."""

    def errors(self, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
        """How far outputs are from others, relative, by name."""

    def apart(self) -> dict[str, Any]:
        """What else there is to say of it: fields of a result."""

    def close(self) -> None:
        """Let go of everything."""


class Training:
    """Steps as the training loop takes them, from the first one on."""

    def __init__(self, case: TrainCase, encoder: Any, seed: int, device: torch.device) -> None:
        self._job = build_step(case, encoder, seed, device)
        self._taken, self._is_imagined = 0, case.num_ranks > 1 and not case.ranks_are_real

    @property
    def waited_s(self) -> float:
        return self._job.data_wait_s

    def warm_up(self) -> None:
        """Two steps; and the denoiser's pass for itself with every number of samples, which chance decides:
        attention is planned anew for each."""
        for _ in range(_WARM_UP_STEPS):
            self.do()
        config, model = self._job.config, self._job.model
        for num in range(1, config.micro_batch_size + 1) if config.model.self_conditioning else ():
            z_BKD = torch.zeros(num, config.num_latents, config.model.latent_width, device=self._job.device)
            with torch.no_grad():
                model.denoiser(z_BKD, z_BKD[:, 0, 0], z_BKD)

    def do(self, _: int = 0) -> None:
        take_step(self._job, self._taken)
        self._taken += 1

    def outputs(self, num: int) -> dict[str, Tensor]:
        """Losses (N,) by name, and norms of each part's gradients: the first steps of a profile are so small
        that its losses hardly tell a wrong way back."""
        taken, names = list[Tensor](), list[str]()
        for _ in range(num):
            self.do()
            told = self._job.losses | {gradient_of(part): norm for part, norm in self._job.grad_norms.items()}
            names = list(told)
            taken.append(torch.stack([value.double() for value in told.values()]))
        return dict(zip(names, torch.stack(taken).cpu().T, strict=True)) if taken else {}

    def errors(self, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
        """Of the worst step."""
        return {name: float(((found[name] - losses_N) / losses_N).abs().max())
                for name, losses_N in wanted.items()}

    def apart(self) -> dict[str, Any]:
        parts = parts_of_step(self._job, self._taken, _STEPS_APART)
        self._taken += _STEPS_APART
        losses = {} if self._is_imagined else {name: float(loss) for name, loss in self._job.losses.items()}
        return {"parts_s": parts, "losses": losses}

    def close(self) -> None:
        end_step(self._job)


class Encoding:
    """Passes of an encoder over as many micro-batches as a step has, each of other tokens."""

    waited_s = 0.0

    def __init__(self, case: TrainCase, encoder: Any, seed: int, device: torch.device) -> None:
        config = config_of(case)
        text = RandomText(config, shape_of(config), seed)
        rows = text.rows(np.arange(case.num_micro_batches * case.micro_batch) % text.layout.num_sequences)
        self._encoder = encoder
        self._batches = to_device(torch.from_numpy(rows.astype("int64")), device).split(case.micro_batch)

    def warm_up(self) -> None:
        for _ in range(_WARM_UP_STEPS):
            self.do()

    def do(self, _: int = 0) -> None:
        for tokens_BL in self._batches:
            self._encoder.hidden_states(tokens_BL)

    def outputs(self, num: int) -> dict[str, Tensor]:
        """Hidden states (B, L, D) of the first micro-batch, however often."""
        return {"hidden states": self._encoder.hidden_states(self._batches[0]).cpu()} if num else {}

    def errors(self, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
        """By norms."""
        return {name: relative_error(found[name], states_BLD) for name, states_BLD in wanted.items()}

    def apart(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def plainly(encoder: Any) -> Iterator[None]:
    """Within, all runs operation by operation: the encoder's blocks by transformers' own modules, their
    linear attention by its code of torch's operations, norms and vocabulary loss too, nothing compiled."""
    plain: list[tuple[Any, str, Any]] = [(norms, "suits", lambda x, gain: False),
                                         (token_loss, "has_triton", lambda device: False)]
    for module_name in _BOUND[0]:
        module = importlib.import_module(f"transformers.models.{module_name}.modeling_{module_name}")
        plain += [(module, name, getattr(module, name).__wrapped__) for name in _BOUND[1]]
    bound = [(module, name, getattr(module, name)) for module, name, _ in plain]
    try:
        for module, name, function in plain:
            setattr(module, name, function)
        with torch.compiler.set_stance("force_eager"), _own_forwards(getattr(encoder, "trunk", None)):
            yield
    finally:
        for module, name, function in bound:
            setattr(module, name, function)


@contextmanager
def _own_forwards(trunk: nn.Module | None) -> Iterator[None]:
    """Within, no module computes by anything but its class."""
    instead = [(module, module.__dict__.pop("forward")) for module in (trunk.modules() if trunk else ())
               if "forward" in module.__dict__]
    try:
        yield
    finally:
        for module, forward in instead:
            module.forward = forward
