"""Everything that touches the terminal: theme, tables, progress, units, JSON. The only file with rich.

stdout is the answer, stderr is talk. Without a terminal there are no colours, no bars and no waiting
for a key: plain lines instead.
"""

import json
import re
import select
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.segment import Segment, Segments
from rich.table import Column, Table
from rich.text import Text
from rich.theme import Theme

from trainer.contract import LdlmError

_THEME = Theme({
    "problem": "bold red", "fix": "green", "note": "yellow", "quiet": "dim", "title": "bold", "money": "cyan",
})
_INDENT = 2
_COMMAND = re.compile(r"(^|\s)(--[a-z]|ldlm |make |\S+/pip )")
_GAP = 3  # between columns of a table, of which the box gives one
# A pipe has no width; tables are made for 80 columns, and wide ones would break in a log.
_WIDTH = None if sys.stdout.isatty() else 80
_out = Console(theme=_THEME, width=_WIDTH, highlight=False)
_err = Console(theme=_THEME, stderr=True, highlight=False, width=None if sys.stderr.isatty() else 80,
               soft_wrap=not sys.stderr.isatty())


def answer(text: str = "", style: str | None = None) -> None:
    """Print a line of the answer."""
    _out.print(escape(text), style=style, soft_wrap=True)


def answer_text(text: str, style: str | None = None) -> None:
    """Print prose of the answer, folded at words."""
    for line in Text(text).wrap(_out, _out.width):
        answer(line.plain.rstrip(), style)


def answer_json(value: Any) -> None:
    """Print the answer as JSON, for programs."""
    print(json.dumps(value, indent=2, default=str))


def answer_plain(text: str) -> None:
    """Print an answer that is a file by itself, as it stands."""
    print(text, end="")


@contextmanager
def aside() -> Iterator[None]:
    """Print what would be an answer on stderr, beside another answer on stdout that programs may read."""
    global _out
    stdout, _out = _out, Console(theme=_THEME, stderr=True, highlight=False, width=_err.width)
    try:
        yield
    finally:
        _out = stdout


def talk(text: str, style: str | None = None) -> None:
    """Say something on stderr that is not part of the answer."""
    _err.print(escape(text), style=style, soft_wrap=True)


def show_error(error: LdlmError) -> None:
    """Print problem, place and fix: folded on a terminal, each a line elsewhere.

    What is to be typed is left to the terminal, which breaks a line without putting anything into it.
    """
    place = f"{error.place}: " if error.place else ""
    _say(Text("error:", style="problem"), place + error.problem)
    if error.fix:
        _say(Text("  fix:", style="fix"), error.fix, is_typed=_COMMAND.search(error.fix) is not None)


def _say(sign: Text, text: str, *, is_typed: bool = False) -> None:
    if is_typed or not _err.is_terminal:
        _err.print(Text.assemble(sign, " ", text), soft_wrap=True)
        return
    indent = " " * (sign.cell_len + 1)
    for index, line in enumerate(text.splitlines()):
        for number, part in enumerate(Text(line).wrap(_err, _err.width - len(indent))):
            begins = Text.assemble(sign, " ") if index == number == 0 else indent
            _err.print(Text.assemble(begins, part.plain.rstrip()))


def answer_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and what is so about them; long texts are folded beside their names."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 3, 0, 0))
    table.add_column(style="quiet", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts:
        table.add_row(escape(name), escape(text))
    _print_without_trailing_spaces(table)


def answer_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (),
                 total: Sequence[str] | None = None, spare: Sequence[int] = ()) -> Sequence[str]:
    """Print a table. Returns the headings of columns that this terminal has no room for.

    Args:
        columns: Headings.
        rows: Cells as text.
        right: Indices of columns with numbers.
        total: A last row under a rule.
        spare: Indices of columns that a narrow terminal goes without, the first to go first.
    """
    kept = _columns_that_fit([columns, *rows, *([total] if total else [])], spare)
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0),
                  show_footer=total is not None, header_style="quiet", footer_style="title",
                  border_style="quiet")
    for index in kept:
        table.add_column(escape(columns[index]), justify="right" if index in right else "left",
                         overflow="fold", footer=escape(total[index]) if total else "")
    for row in rows:
        table.add_row(*(escape(row[index]) for index in kept))
    _print_without_trailing_spaces(table)
    return [name for index, name in enumerate(columns) if index not in kept]


def _columns_that_fit(rows: Sequence[Sequence[str]], spare: Sequence[int]) -> list[int]:
    """Indices of the columns that stay; each takes its widest cell and a gap, the table is set in by two."""
    widths = [max(cell_len(cell) for cell in column) + _GAP for column in zip(*rows, strict=True)]
    kept = list(range(len(widths)))
    for index in spare:
        if _INDENT + sum(widths[column] for column in kept) - _GAP <= _out.width:
            break
        kept.remove(index)
    return kept


def answer_finding(verdict: str, style: str, what: str, detail: str, fix: str) -> None:
    """Print a verdict, its subject and, folded beside them, what is so; beneath, in one piece, what to do."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=11)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text(verdict, style=style), Text(what), Text(detail))
    _print_without_trailing_spaces(table)
    if fix:
        answer(f"{' ' * (_INDENT + 13)}do: {fix}", "quiet")


def answer_notes(notes: Sequence[str]) -> None:
    """Print remarks, each folded under its own sign."""
    for note in notes:
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_row(Text("!", style="note"), Text(note, style="note"))
        _print_without_trailing_spaces(table)


def answer_reasons(reasons: Sequence[LdlmError]) -> None:
    """Print reasons, each with what to do against it, folded at words; a word that is typed stays whole."""
    for reason in reasons:
        place = f"{reason.place}: " if reason.place else ""
        _answer_folded("  - ", place + reason.problem, "note")
        if reason.fix:
            _answer_folded("    fix: ", reason.fix, is_typed=True)


def _answer_folded(sign: str, text: str, style: str | None = None, *, is_typed: bool = False) -> None:
    lines = textwrap.wrap(text, _out.width, initial_indent=sign, subsequent_indent=" " * len(sign),
                          break_long_words=not is_typed, break_on_hyphens=False)
    for line in lines:
        answer(line, style)


def _print_without_trailing_spaces(table: Table) -> None:
    """Rich fills every line up to the width of the table, which is noise in a file."""
    for line in _out.render_lines(Padding(table, (0, 0, 0, _INDENT)), pad=False):
        while line and not line[-1].text.strip():
            line.pop()
        if line:
            line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
        _out.print(Segments([*line, Segment.line()]), end="")


def confirm(question: str) -> bool:
    """Ask on the terminal; anything but y or yes is no."""
    _err.print(f"{escape(question)} [title]\\[y/N][/] ", end="")
    return _typed_line().strip().lower() in ("y", "yes")


def question(words: str, known: str) -> str | None:
    """Ask on the terminal for a text.

    Args:
        known: What holds if nothing is typed.

    Returns:
        What was typed, None for nothing.

    Raises:
        EOFError: Nobody is there any more.
    """
    _err.print(f"{escape(words)} [title]\\[{escape(known)}][/] ", end="", soft_wrap=True)
    line = _typed_line()
    if not line:
        raise EOFError
    return line.strip() or None


def _typed_line() -> str:
    """A line from the terminal; empty where nobody is there any more.

    A Ctrl-C that comes in the instant before a blocking read is heard only when the read returns, which it
    does not: so nothing is read before it is there.
    """
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        pass
    return sys.stdin.readline()


def can_ask() -> bool:
    """True if somebody is there to answer."""
    return sys.stdin is not None and sys.stdin.isatty()


class ProgressLine:
    """How far a run is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, visible=False) if progress else None
        self._said_step: int | None = None

    def update(self, step: int, total: int, text: str) -> None:
        """Show that `step` of `total` are done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, total=total, visible=True,
                                  description=escape(text))
        elif self._said_step is None or step >= self._said_step + max(1, total // 10):
            self._said_step = step
            talk(f"  {step}/{total}  {text}")

    def hide(self) -> None:
        """Nothing trains now."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, visible=False)

    def restart(self) -> None:
        """A new attempt begins: it may stand at an earlier step."""
        self._said_step = None

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the bar."""
        if self._progress is not None:
            self._progress.console.print(escape(text), style=style, soft_wrap=True)
        else:
            talk(text, style)


@contextmanager
def progress_line() -> Iterator[ProgressLine]:
    """A progress line for as long as the block runs."""
    if not _err.is_terminal:
        yield ProgressLine(None)
        return
    # What does not fit is cut off on the right, never wrapped.
    text = TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.description}",
                      table_column=Column(no_wrap=True, overflow="ellipsis"))
    bar_column = BarColumn(bar_width=10, table_column=Column(min_width=10))
    with Progress(bar_column, text, console=_err, transient=True) as progress:
        yield ProgressLine(progress)


def dollars(usd: Decimal | float, digits: int | None = None) -> str:
    """`$12.34`; below a dollar with four digits, since a demo costs cents. `digits` says how many."""
    default = 4 if -1 < usd < 1 else 2
    return f"${usd:,.{default if digits is None else digits}f}"


def one_line(text: str, width: int = 68) -> str:
    """A text without its line ends and what moves a cursor, cut off where it would be longer than `width`."""
    flat = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def duration(length: timedelta | float) -> str:
    """`3 d 04 h`, `2 h 05 min`, `3 min 20 s`, `12 s`. A number is in seconds."""
    seconds = round(length.total_seconds() if isinstance(length, timedelta) else length)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    hours = seconds // 3600
    if hours < 48:
        return f"{hours} h {seconds % 3600 // 60:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def rough_duration(seconds: float) -> str:
    """The same for what is a guess: `2 h 05 min`, `3 min`, `12 s`."""
    return f"{seconds / 60:.0f} min" if 60 <= seconds < 3570 else duration(seconds)


def age(length: timedelta) -> str:
    """`0 min`, `12 min`, `7 h`, `3 d`: how old something is, rounded down."""
    minutes = int(length.total_seconds() // 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // (24 * 60)} d"


def bar(share: Decimal, width: int) -> str:
    """A bar of up to `width` blocks for a share between 0 and 1."""
    block = "█" if _out.encoding.startswith("utf") else "#"
    return block * round(float(share) * width)


def data_size(num_bytes: int) -> str:
    """`1.4 GiB`, `12.0 MiB`."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}" if unit != "B" else f"{num_bytes} B"
        size /= 1024
    return f"{size:.1f} TiB"
