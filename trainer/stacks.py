"""What the threads of ranks are doing, from outside: their own stacks, or what the kernel says of them."""

import contextlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.sign_of_life import ASK_FOR_STACKS, Sign, stacks_file

_ANSWER_S = 3.0  # the signal handler takes milliseconds (guess)
_FRAME = re.compile(r'^  File ".*/(trainer/\w+\.py)", line (\d+) in (\w+)$', re.MULTILINE)
_BLOCK = re.compile(r"^(?:Thread|Current thread) 0x\w+.*$", re.MULTILINE)


class Stacks(NamedTuple):
    """Of one rank.

    Attributes:
        rank: Among all nodes.
        place: Where its main thread is, in a few words.
        text: Everything.
    """

    rank: int
    place: str
    text: str


def collect_stacks(signs: Sequence[Sign], ends: Path) -> list[Stacks]:
    """Ask every rank for its stacks; of one that does not answer in seconds, tell what the kernel knows."""
    for sign in signs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(sign.pid, ASK_FOR_STACKS)
    texts = _answers([stacks_file(ends, sign.rank) for sign in signs])
    return [Stacks(sign.rank, f"is in {main_frame(text)}", text) if text else _mute(sign)
            for sign, text in zip(signs, texts, strict=True)]


def _answers(files: Sequence[Path]) -> list[str]:
    """What has been written, once all is there and no more comes."""
    give_up, before = time.monotonic() + _ANSWER_S, [""]
    while time.monotonic() < give_up:
        time.sleep(0.2)
        texts = [file.read_text(errors="replace") for file in files]
        if all(texts) and texts == before:
            break
        before = texts
    return before


def main_frame(text: str) -> str:
    """The innermost function of ours in which the main thread is: `agree (trainer/preemption.py:82)`.

    Args:
        text: As `faulthandler` writes it: the oldest thread comes last.
    """
    found = _FRAME.search(_BLOCK.split(text)[-1])
    return f"{found[3]} ({found[1]}:{found[2]})" if found else "no function of ours"


def _mute(sign: Sign) -> Stacks:
    process = Path(f"/proc/{sign.pid}")
    state = re.search(r"^State:\s*(.*)$", _read(process / "status"), re.MULTILINE)
    place = f"answers no signal: state {state[1]}" if state else "is gone"
    lines = [f"rank {sign.rank}, process {sign.pid}, {place}"]
    for thread in sorted(process.glob("task/*")):
        # The kernel's own stack is for root alone.
        lines += [f"\nThread {thread.name} ({_read(thread / 'comm').strip()}) waits in the kernel in "
                  f"{_read(thread / 'wchan') or '?'}", _read(thread / "stack").rstrip()]
    return Stacks(sign.rank, place, "\n".join(filter(None, lines)) + "\n")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process ends, or the kernel does not tell
        return ""
