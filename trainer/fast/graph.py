"""A program as one CUDA graph: the host gives one order for a whole generation."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainer.fast.devices import has_triton
from trainer.fast.program import Generated, Program
from trainer.host_copies import write_to
from trainer.prompt import PromptContext

_MOST_SIZES = 1_000  # by itself torch compiles one function for eight
_WARM_UPS = 3  # what compiles, tunes or asks for workspaces has done so before the capture


class CapturedProgram:
    """Replays a program with other keys and prompts, wherever they lie.

    What it returns is overwritten by the next replay.

    Raises:
        RuntimeError: Something in the program cannot be compiled or captured, or there is no memory for it.
    """

    @torch.inference_mode()
    def __init__(self, program: Program, keys_B2: Tensor, prompt: PromptContext | None) -> None:
        device = keys_B2.device
        self._keys_B2 = keys_B2.clone()
        self._prompt = prompt and PromptContext(*(part.to(device, copy=True) for part in prompt))
        self._program = program  # the graph reads its tensors
        # The stream of now: torch does not come back to it from a capture that fails.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            with _many_sizes():
                _do_aside(lambda: program(self._keys_B2, self._prompt), _WARM_UPS)
            self._graph = torch.cuda.CUDAGraph()
            with _drawing_goes_on(), torch.cuda.graph(self._graph):
                self._found = program(self._keys_B2, self._prompt)

    @torch.inference_mode()
    def __call__(self, keys_B2: Tensor, prompt: PromptContext | None) -> Generated:
        write_to(self._keys_B2, keys_B2)
        for own, given in zip(self._prompt or (), prompt or (), strict=True):
            write_to(own, given)
        self._graph.replay()
        return self._found


def replay_of(work: Callable[[], object]) -> Callable[[], None]:
    """Some work on the current device as one graph, after it was done once: what does it again."""
    _do_aside(work, 1)
    graph = torch.cuda.CUDAGraph()
    # The stream of now, as for a program: what comes after a capture that fails is done there.
    with torch.cuda.stream(torch.cuda.current_stream()), _drawing_goes_on(), torch.cuda.graph(graph):
        work()
    return graph.replay


def quickest_replay(work: Callable[[], object], device: torch.device, of: str,
                    say: Callable[[str], None]) -> Callable[[], object]:
    """Replays some work that changes tensors in place: as torch compiles it, else as it is; no GPU: does it.

    Args:
        work: What to do, once more each time.
        device: Where it is done.
        of: Whose it is, for `say`.
        say: Hears what does not work, in a sentence.
    """
    if device.type != "cuda":
        return work
    ways = {"": work}
    if has_triton(device):
        ways = {" compiled": torch.compile(work, fullgraph=True, dynamic=False)} | ways
    for how, way in ways.items():
        try:
            return replay_of(way)
        except RuntimeError as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"warning: no CUDA graph of {of}{how}: {why}")
    return work


def _do_aside(work: Callable[[], object], times: int) -> None:
    """On a stream of its own, as torch asks for before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(times):
            work()
    torch.cuda.current_stream().wait_stream(side)


@contextlib.contextmanager
def _drawing_goes_on() -> Iterator[None]:
    """After a capture that fails torch's generator would refuse to draw, waiting for its end (torch 2.11)."""
    try:
        yield
    except RuntimeError:
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        raise


def _many_sizes() -> contextlib.AbstractContextManager[object]:
    """Lets torch compile for as many sizes as are asked for. Whoever compiles has loaded its compiler."""
    compiler = sys.modules.get("torch._dynamo.config")  # a second's work for who does not
    if compiler is None:
        return contextlib.nullcontext()
    return compiler.patch(recompile_limit=_MOST_SIZES, accumulated_recompile_limit=_MOST_SIZES)
