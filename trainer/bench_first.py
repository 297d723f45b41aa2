"""Time to the first text: a process of its own, from its start, with the fast path and without."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainer.contract import LdlmError
from trainer.fast.weights import dtype_of
from trainer.generate import Generator

# Names the folder of compiled kernels, also of our own (trainer/fast/persistent/compiling.py).
COMPILED = "TRITON_CACHE_DIR"
_WAIT_S = 600


class FirstText(BaseModel):
    """One cold start; files of weights and programs may have been in the system's cache.

    Attributes:
        name: The profile or export.
        is_fast: By the fast path, as one graph but not compiled by torch; False: operation by operation.
        was_compiled: It found kernels that earlier processes have compiled.
        parts_s: Seconds in order: python, torch (its import, which is the floor), imports, device, weights,
            layout, first text (graph capture in it); and the text after it, for comparison.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    is_fast: bool
    was_compiled: bool = False
    mode: str
    parts_s: dict[str, float]

    @property
    def total_s(self) -> float:
        """From the start of the process to the first text."""
        return sum(seconds for part, seconds in self.parts_s.items() if part != "next text")


def first_texts_of_export(path: Path, mode: str) -> list[FirstText]:
    """Of an export, its tokenizer and the check of its hashes in it."""
    return _first_texts(lambda is_fast, compiled: first_text_of_export(
        path, is_fast=is_fast, mode=mode, compiled=compiled))


def first_text_of_export(path: Path, *, is_fast: bool, mode: str, compiled: Path,
                         option: str = "--first-text") -> FirstText:
    """One cold start from an export.

    Args:
        compiled: Where what is compiled is looked for, and kept.
        option: That has asked for it.

    Raises:
        LdlmError: It did not come to a text.
    """
    return _first_text({"export": str(path.absolute())}, path.resolve().name, is_fast, mode, compiled, option)


def first_texts_of_profile(generator: Generator, name: str, mode: str) -> list[FirstText]:
    """Of a profile's random weights: token ids, since they have no tokenizer. Frees nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model = generator.model
        trained = {name for name, _ in model.named_parameters()}
        weights = {key: tensor.to(dtype_of(mode) if key in trained else tensor.dtype).contiguous()
                   for key, tensor in model.state_dict().items()}
        try:
            save_file(weights, path)
        except SafetensorError as error:
            raise LdlmError(f"weights for a process of its own cannot be written: {error}", place=folder,
                            fix="name a folder with room: TMPDIR=PATH") from error
        asked = {"export": None, "weights": str(path), "preset": name,
                 "length": generator.config.data.sequence_length}
        return _first_texts(lambda is_fast, compiled: _first_text(asked, name, is_fast, mode, compiled))


def _first_texts(start: Callable[[bool, Path], FirstText]) -> list[FirstText]:
    """By the fast path, where that has compiled something once more with it at hand; then without."""
    with tempfile.TemporaryDirectory() as folder:
        found = [start(True, Path(folder))]
        if any(Path(folder).iterdir()):
            found.append(start(True, Path(folder)))
        return [*found, start(False, Path(folder))]


def _first_text(asked: dict[str, Any], name: str, is_fast: bool, mode: str, compiled: Path,
                option: str = "--first-text") -> FirstText:
    was_compiled = any(compiled.iterdir())
    order = asked | {"is_fast": is_fast, "mode": mode, "began": time.time()}
    try:
        done = subprocess.run([sys.executable, "-m", "trainer.first_text", json.dumps(order)],
                              env=os.environ | {COMPILED: str(compiled)}, capture_output=True, text=True,
                              timeout=_WAIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise LdlmError(f"a process of its own had come to no text after {_WAIT_S} s", place=name,
                        fix=f"leave {option} out") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LdlmError(f"a process of its own did not come to a text: {last}", place=name,
                        fix=f"leave {option} out")
    return FirstText(name=name, is_fast=is_fast, was_compiled=was_compiled, mode=mode,
                     parts_s=json.loads(done.stdout.splitlines()[-1]))
