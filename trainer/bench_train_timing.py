"""How long training steps take, and their parts, by the device's own clock: nothing waits in between."""

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer.bench_limits import wait_for
from trainer.bench_train_job import take_step
from trainer.job import StepJob

_Mark = Any  # a moment: an event of CUDA, or seconds
_Span = tuple[_Mark, _Mark]


class Clock:
    """Moments on a device, in the order of what it was asked to do."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> _Mark:
        """The moment at which the device has done what was asked so far. Does not wait for it."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: _Mark, end: _Mark) -> float:
        """Between two moments that have passed: call `wait` before."""
        return begin.elapsed_time(end) / 1e3 if self._device.type == "cuda" else end - begin

    def wait(self) -> None:
        """Until every moment has passed."""
        wait_for(self._device)


def time_each(work: Callable[[int], object], num: int, device: torch.device,
              is_over: Callable[[], bool]) -> list[float]:
    """Seconds of each of at most `num` pieces of work that follow each other without a pause, at least one.

    Args:
        work: Told its number, from 0.
        num: Pieces.
        device: Which does them.
        is_over: True once time is up.
    """
    clock = Clock(device)
    clock.wait()
    marks = [clock.mark()]
    for index in range(num):
        if index and is_over():
            break
        work(index)
        marks.append(clock.mark())
    clock.wait()
    return [clock.seconds(begin, end) for begin, end in zip(marks, marks[1:], strict=False)]


class _Sections:
    """Spans of named pieces of work."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.spans: defaultdict[str, list[_Span]] = defaultdict(list)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, each call of it a span."""
        def marked(*arguments: Any) -> Any:
            begin = self.clock.mark()
            result = function(*arguments)
            self.spans[name].append((begin, self.clock.mark()))
            return result

        return marked

    def seconds(self, name: str) -> float:
        """All spans of a name."""
        return sum(self.clock.seconds(*span) for span in self.spans[name])


class _Instead:
    """Another object, some of its methods replaced."""

    def __init__(self, other: Any, **methods: Callable[..., Any]) -> None:
        self._other = other
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)

    def __call__(self, *arguments: Any) -> Any:
        return self._other(*arguments)


def parts_of_step(job: StepJob, first_step: int, num: int) -> dict[str, float]:
    """Seconds of each part of a step, the mean of some more steps; `rest` is whatever else there is.

    `backward` is of all trained parts together; what an encoder, a decoder or the denoiser has is its way
    forward, the token decoder's with its loss and the gradients of the head.
    """
    sections = _Sections(Clock(job.device))
    encoder, engine, average = job.encoder, job.engine, job.average
    watched = dataclasses.replace(
        job, encoder=_Instead(encoder, hidden_states=sections.around("encoder", encoder.hidden_states)),
        engine=_Instead(engine, backward=sections.around("backward", engine.backward),
                        step=sections.around("optimizer", engine.step)),
        average=_Instead(average, update=sections.around("average", average.update)))
    with _hooked(job.model.parts(), sections):
        step = sections.around("step", take_step)
        for index in range(num):
            step(watched, first_step + index)
    sections.clock.wait()
    per_step = len(sections.spans["backward"]) // num
    backward, optimizer = sections.spans["backward"], sections.spans["optimizer"]
    sections.spans["clipping"] = [(backward[last][1], optimizer[last][0])
                                  for last in range(per_step - 1, len(backward), per_step)]
    whole = sections.seconds("step") / num
    parts = {name: sections.seconds(name) / num for name in _ORDER if name in sections.spans}
    return parts | {"rest": max(0.0, whole - sum(parts.values()))}


_ORDER = ("encoder", "latent_encoder", "latent_decoder", "token_decoder", "self_conditioning", "denoiser",
          "backward", "clipping", "optimizer", "average")


@contextmanager
def _hooked(parts: dict[str, torch.nn.Module], sections: _Sections) -> Iterator[None]:
    """Within, every pass forward of a part is a span; one without gradient is the denoiser's for itself."""
    handles, begins = [], list[_Mark]()

    def begin(*_: Any) -> None:
        begins.append(sections.clock.mark())

    def end(name: str) -> Callable[..., None]:
        def ended(*_: Any) -> None:
            known = name if torch.is_grad_enabled() else "self_conditioning"
            sections.spans[known].append((begins.pop(), sections.clock.mark()))

        return ended

    for name, part in parts.items():
        handles += [part.register_forward_pre_hook(begin), part.register_forward_hook(end(name))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
