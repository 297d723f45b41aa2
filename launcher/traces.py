"""Windows of spot availability, as recorded, read from `shared/data`'s format into arrays."""

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.errors import LdlmError, UsageError
from launcher.policy import Bools, Floats, Setting, read_runs


@dataclass(frozen=True)
class Trace:
    """What one zone offered in one window of time.

    Attributes:
        zone: Where, and which GPU.
        start: As recorded, to tell which windows are simultaneous; empty where it is not known.
        tick_s: Seconds between two looks.
        runs: (is available, number of ticks), in order.
    """

    zone: str
    start: str
    tick_s: int
    runs: tuple[tuple[bool, int], ...]

    @property
    def hours(self) -> float:
        """How long it is."""
        return sum(length for _, length in self.runs) * self.tick_s / 3600


@dataclass(frozen=True)
class Windows:
    """N windows of P simultaneous places over T ticks.

    Attributes:
        is_up: (T, N, P)
        spot_usd_per_hour: (T, N, P)
        on_demand_usd_per_hour: (T, N)
    """

    tick_s: int
    is_up: Bools
    spot_usd_per_hour: Floats
    on_demand_usd_per_hour: Floats

    @property
    def num_windows(self) -> int:
        """N."""
        return int(self.is_up.shape[1])

    @property
    def num_places(self) -> int:
        """P."""
        return int(self.is_up.shape[2])


def read_traces(path: Path) -> tuple[list[Trace], list[str]]:
    """All windows of a file of JSON lines, gzipped or not.

    Returns:
        The windows, and what was left out: a torn last line, windows without a tick.

    Raises:
        UsageError: The file holds no window, or a line other than the last cannot be read.
    """
    lines, notes = _lines(path)
    traces, num_empty = [], 0
    for number, line in lines:
        place = f"{path}, line {number}"
        try:
            trace = _trace(line, place)
        except LdlmError:
            if len(lines) == 1 or number < lines[-1][0]:
                raise
            notes.append(f"{place}: torn, left out")
            continue
        if trace is None:
            num_empty += 1
        else:
            traces.append(trace)
    if num_empty:
        notes.append(f"{num_empty} windows without a tick are left out")
    if not traces:
        raise UsageError("no window in it", place=str(path),
                         fix="one JSON object a line, with tick_seconds and up")
    return traces, notes


def _lines(path: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """Numbers and lines with text in them, and notes; of a gzip file that ends too early, what is whole."""
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return _numbered(raw), []
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(raw)
    except zlib.error as error:
        raise UsageError(f"damaged gzip file: {error}", place=str(path), fix="copy it again") from error
    notes = [] if unpacker.eof else [f"{path}: the gzip file ends too early; what is whole is used"]
    return _numbered(text), notes


def _numbered(text: bytes) -> list[tuple[int, str]]:
    lines = text.decode(errors="replace").splitlines()
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _trace(line: str, place: str) -> Trace | None:
    """None for a window without a tick."""
    row = _object(line)
    tick_s, up = row.get("tick_seconds"), row.get("up")
    if not isinstance(up, str) or type(tick_s) is not int or not 1 <= tick_s <= 86400:
        raise UsageError("no window: it must be a JSON object with tick_seconds, whole seconds up to a day, "
                         "and up, a text", place=place,
                         fix='{"zone": "z", "start": "…", "tick_seconds": 600, "up": "12u,3d"}')
    if not up:
        return None
    return Trace(str(row.get("zone", "")), str(row.get("start", "")), tick_s, tuple(read_runs(up, place)))


def _object(line: str) -> dict[str, object]:
    """What a line of JSON says; nothing if it is none, or no object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def num_ticks(setting: Setting, tick_s: int) -> int:
    """Ticks until the deadline; the last may be a part of one."""
    return math.ceil(setting.deadline_h * 3600 / tick_s - 1e-6)


def one_by_one(traces: Iterable[Trace]) -> list[list[Trace]]:
    """Each window with one place."""
    return [[trace] for trace in traces]


def together(traces: Iterable[Trace]) -> list[list[Trace]]:
    """Windows of one start and tick, as places that are open at once, in the order of their zones."""
    groups: dict[tuple[str, int], list[Trace]] = defaultdict(list)
    for number, trace in enumerate(traces):
        groups[trace.start or f"line {number}", trace.tick_s].append(trace)
    return [sorted(group, key=lambda trace: trace.zone) for group in groups.values()]


def stack(groups: Iterable[Sequence[Trace]], setting: Setting) -> tuple[list[Windows], int]:
    """Arrays of the windows that reach the deadline, one per tick size and number of places.

    Returns:
        And the number of windows that are too short and left out.
    """
    shaped: dict[tuple[int, int], list[Bools]] = defaultdict(list)
    num_short = 0
    for group in groups:
        length = num_ticks(setting, group[0].tick_s)
        ups = [_ticks(trace, length) for trace in group]
        if min(map(len, ups)) < length:
            num_short += 1
        else:
            shaped[group[0].tick_s, len(group)].append(np.stack(ups, axis=1))
    return [flat_prices(tick_s, np.stack(ups, axis=1), setting)
            for (tick_s, _), ups in sorted(shaped.items())], num_short


def flat_prices(tick_s: int, is_up: Bools, setting: Setting) -> Windows:
    """Windows in which the setting's prices hold all the time.

    Args:
        is_up: (T, N, P)
    """
    return Windows(tick_s, is_up, np.broadcast_to(np.float64(setting.spot_usd_per_hour), is_up.shape),
                   np.broadcast_to(np.float64(setting.on_demand_usd_per_hour), is_up.shape[:2]))


def one_place(windows: Windows) -> Windows:
    """(N * P) windows of one place each, place by place within each window."""
    length = windows.is_up.shape[0]
    return Windows(windows.tick_s, windows.is_up.reshape(length, -1, 1),
                   windows.spot_usd_per_hour.reshape(length, -1, 1),
                   np.repeat(windows.on_demand_usd_per_hour, windows.num_places, axis=1))


def _ticks(trace: Trace, length: int) -> Bools:
    """(length,) or fewer, if the window is shorter."""
    states, lengths = zip(*trace.runs, strict=True)
    return np.repeat(np.array(states), np.minimum(np.array(lengths), length))[:length]
