"""How a preparation goes on, told on stderr; numbers and lines for people. No torch."""

import shutil
import sys
import textwrap
import time
from typing import Any

from trainer.shards import Part

_LINE_EVERY_S = 15.0  # where no terminal can redraw a bar
_MOST_COLUMNS = 80


class Progress:
    """A bar on a terminal, a line now and then elsewhere. See `trainer.preparing.Watch`.

    Attributes:
        num_units: In all, of every machine; 0 before they are counted.
        num_finished: Of all, as far as this machine knows.
        num_tokens: Made by this call.
    """

    def __init__(self) -> None:
        self.num_units = self.num_finished = self.num_tokens = 0
        self._weights: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._knows_sizes = True
        self._done_weight = 0
        self._began = self._last_line_s = time.monotonic()
        self._bar: Any = None  # tqdm has no types

    def begin(self, num_units: int, num_done: int, weights: dict[int, int]) -> None:
        """Units are counted where the size of one is not known."""
        self.num_units, self.num_finished = num_units, num_done
        self._knows_sizes = all(weights.values())
        self._weights = weights if self._knows_sizes else dict.fromkeys(weights, 1)
        self._began = self._last_line_s = time.monotonic()
        talk(f"{count(num_units, 'unit')}, {num_done} finished, {len(weights)} to do here")
        if sys.stderr.isatty() and weights:
            from tqdm import tqdm

            self._bar = tqdm(total=sum(self._weights.values()), file=sys.stderr, smoothing=0.1,
                             bar_format="{percentage:3.0f}% |{bar}| {remaining} left{postfix}")

    def tell(self, unit: int, characters: int, tokens: int) -> None:
        """So much more of a unit is done."""
        self.num_tokens += tokens
        if self._knows_sizes:
            self._told[unit] = min(self._weights.get(unit, 0), self._told.get(unit, 0) + characters)
        self._show()

    def done(self, part: Part) -> None:
        """A unit is finished."""
        self.num_finished += 1
        self._told.pop(part.unit, None)
        self._done_weight += self._weights.get(part.unit, 0)
        self._show()

    def say(self, line: str) -> None:
        """Something is worth a line."""
        talk(line)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self) -> None:
        now = time.monotonic()
        at = self._done_weight + sum(self._told.values())
        rate = self.num_tokens / max(now - self._began, 1e-9)
        words = (f"{self.num_finished}/{count(self.num_units, 'unit')}, {number(self.num_tokens)} tokens, "
                 f"{number(rate)}/s")
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(at - self._bar.n)
        elif now - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = now
            share = at / max(1, sum(self._weights.values()))
            left = f", {duration((now - self._began) * (1 - share) / share)} left" if share else ""
            talk(f"{share:4.0%}, {words}{left}")


def talk(text: str) -> None:
    """Say it on stderr, in lines that a narrow terminal shows whole."""
    print(fold(text), file=sys.stderr, flush=True)


def fold(text: str, indent: int = 2) -> str:
    """Text in lines of a terminal's least width, all but the first indented; names and URLs stay whole."""
    width = min(_MOST_COLUMNS, shutil.get_terminal_size((_MOST_COLUMNS, 24)).columns)
    return textwrap.fill(text, max(width, 2 * indent), subsequent_indent=" " * indent,
                         break_long_words=False, break_on_hyphens=False)


def count(amount: int, what: str) -> str:
    """`1 unit`, `2,000 units`, `2 processes`."""
    return f"{amount:,} {what}" + ("" if amount == 1 else "es" if what.endswith("s") else "s")


def number(value: float) -> str:
    """`950`, `94.2 k`, `1.5 M`, `2 G`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """`11 s`, `20 min`, `3.2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
