"""From the start of a process to its first text, part by part: `python -m trainer.first_text JSON`.

Answers with a line of JSON: seconds by part, in order. The benchmark starts it (`trainer/bench_first.py`).
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from trainer.generate import Generator


class Marks:
    """Seconds from one moment to the next.

    Args:
        began: Seconds of the wall clock: when the process was asked for, before it could look at a clock.
    """

    def __init__(self, began: float) -> None:
        self._last, self.parts = began, dict[str, float]()

    def reached(self, part: str) -> None:
        """A part has ended now."""
        now = time.time()
        self.parts[part] = now - self._last
        self._last = now


def main() -> None:
    """Do what the benchmark asks for, and say how long each part took."""
    asked = json.loads(sys.argv[1])
    marks = Marks(asked["began"])
    marks.reached("python")
    import torch

    marks.reached("torch")
    from trainer.export import load_export
    from trainer.fast.generator import fast_generator

    marks.reached("imports")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.zeros(1, device=device)
    marks.reached("device")
    generator = load_export(asked["export"], device) if asked["export"] else _of_profile(asked, device)
    marks.reached("weights")
    if asked["is_fast"]:
        generator = fast_generator(generator, lambda words: None, None, asked["mode"])
    marks.reached("layout")
    _write_text(generator)
    marks.reached("first text")
    _write_text(generator)
    marks.reached("next text")
    print(json.dumps(marks.parts))


def _of_profile(asked: dict[str, Any], device: "torch.device") -> "Generator":
    """Of weights that the benchmark has made."""
    from trainer.bench_cases import Model
    from trainer.bench_models import generator_of, profile_config
    from trainer.weights_file import read_tensors

    config = profile_config(Model(name=asked["preset"], length=asked["length"]))
    return generator_of(config, read_tensors(Path(asked["weights"]), device))


def _write_text(generator: "Generator") -> None:
    tokens = generator.tokens(1, 0).cpu()
    if generator.tokenizer is not None:
        generator.to_texts(tokens)


if __name__ == "__main__":
    main()
