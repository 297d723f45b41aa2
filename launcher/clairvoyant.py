"""The least that a window could have cost somebody who knew it beforehand, to the cent.

A dynamic programme from the deadline back, over time, work left, machine held and overhead left. It is
exact: time goes in the ticks of the window, and work in the largest unit that divides tick, overhead and
work. A machine that is started is kept at least until it has made progress (anything else costs more), so a
start is one step over the ticks of the overhead, and what overhead is left needs no dimension of its own.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.policy import Floats, Setting
from launcher.traces import Windows

_BLOCK = 16  # windows at once: their values should stay in the processor's cache (guess)
Values = NDArray[np.float32]


@dataclass(frozen=True)
class _Units:
    """Whole numbers of the unit of work.

    Attributes:
        tick: Length of a whole tick.
        ticks: Length of each; the last one ends at the deadline.
    """

    tick: int
    ticks: list[int]
    work: int
    overhead: int


def clairvoyant_usd(setting: Setting, windows: Windows) -> Floats:
    """(N,) dollars of the cheapest way to end by the deadline, over all places. Exact to 1e-5 of it."""
    units = _units(setting, windows.tick_s)
    usd = [_block(setting, windows, units, slice(first, first + _BLOCK))
           for first in range(0, windows.num_windows, _BLOCK)]
    return np.concatenate(usd) if usd else np.zeros(0)


def _units(setting: Setting, tick_s: int) -> _Units:
    """In seconds, divided by what divides all of them."""
    seconds = [round(hours * 3600) for hours in (setting.work_h, setting.overhead_h, setting.deadline_h)]
    num_whole, rest = divmod(seconds[2], tick_s)
    unit = math.gcd(tick_s, seconds[0], seconds[1], rest)
    ticks = [tick_s // unit] * num_whole + ([rest // unit] if rest else [])
    return _Units(tick_s // unit, ticks, seconds[0] // unit, seconds[1] // unit)


@dataclass
class _Tables:
    """Least dollars by work left, of the tick that was worked out last and of some after it.

    Attributes:
        free: (n, W + 1) holding nothing, or leaving what is held.
        held: Ring of (n, P + 1, W + 1): spot of each place, and on demand last; overhead paid.
    """

    free: Values
    held: list[Values]

    @classmethod
    def at_the_deadline(cls, num_windows: int, num_machines: int, work: int, num_kept: int) -> "_Tables":
        """Nothing can be done any more: work that is left costs infinitely much."""
        free = np.full((num_windows, work + 1), np.inf, dtype=np.float32)
        free[:, 0] = 0
        held = np.repeat(free[:, None], num_machines, axis=1)
        return cls(free, [held.copy() for _ in range(num_kept)])


def _block(setting: Setting, windows: Windows, units: _Units, which: slice) -> Floats:
    """(n,) dollars of a few windows."""
    usd = _usd_per_unit(setting, windows, units, which)
    num_ticks, num_windows, num_machines = usd.shape
    start_ticks = max(1, -(-units.overhead // units.tick))
    tables = _Tables.at_the_deadline(num_windows, num_machines, units.work, start_ticks + 1)
    elapsed = np.cumsum([0, *units.ticks])
    for tick in reversed(range(num_ticks)):
        most = min(units.work, int(elapsed[-1] - elapsed[tick]))  # more can't be done until the deadline
        least = max(1, units.work - int(elapsed[tick]))  # more can't have been done until now
        if least <= most:
            span = slice(least, most + 1)
            starting = slice(tick, tick + start_ticks)
            _start(tables, usd[starting], units.ticks[starting], units, tick, span)
            _go_on(tables, usd[tick], units.ticks[tick], tick, span)
    return tables.free[:, -1].astype(np.float64)


def _usd_per_unit(setting: Setting, windows: Windows, units: _Units, which: slice) -> Values:
    """(T, n, P + 1) dollars a unit of time: spot where it is up, else infinite; on demand last."""
    num_ticks = len(units.ticks)
    spot = np.where(windows.is_up[:num_ticks, which], windows.spot_usd_per_hour[:num_ticks, which], np.inf)
    on_demand = windows.on_demand_usd_per_hour[:num_ticks, which, None]
    per_hour = np.concatenate([spot, on_demand], axis=2)
    return np.asarray(per_hour * (windows.tick_s / 3600 / units.tick), dtype=np.float32)


def _start(tables: _Tables, usd: Values, ticks: list[int], units: _Units, tick: int, span: slice) -> None:
    """Take `free` one tick back: wait, or start any machine and keep it until it makes progress."""
    gain = sum(ticks) - units.overhead
    if gain < 0:
        return
    before = np.tensordot(np.array(ticks[:-1], dtype=np.float32), usd[:-1], axes=1)  # (n, P + 1)
    whole = before + ticks[-1] * usd[-1]
    after = tables.held[(tick + len(ticks)) % len(tables.held)]
    ending = slice(span.start, min(span.stop, gain + 1))
    for machine in range(usd.shape[2]):
        if ending.start < ending.stop:
            last = np.arange(ending.start, ending.stop, dtype=np.float32) + (ticks[-1] - gain)
            usd_ending = before[:, machine, None] + usd[-1][:, machine, None] * last
            np.minimum(tables.free[:, ending], usd_ending, out=tables.free[:, ending])
        first = max(span.start, gain + 1)
        if first < span.stop:
            going_on = after[:, machine, first - gain:span.stop - gain] + whole[:, machine, None]
            np.minimum(tables.free[:, first:span.stop], going_on, out=tables.free[:, first:span.stop])


def _go_on(tables: _Tables, usd: Values, length: int, tick: int, span: slice) -> None:
    """Values of what runs at a tick: it is left, or kept for this tick too."""
    num_kept = len(tables.held)
    now, after = tables.held[tick % num_kept], tables.held[(tick + 1) % num_kept]
    free = tables.free[:, None]
    ending = slice(span.start, min(span.stop, length + 1))
    if ending.start < ending.stop:
        last = np.arange(ending.start, ending.stop, dtype=np.float32)
        now[..., ending] = np.minimum(free[..., ending], usd[..., None] * last)
    first = max(span.start, length + 1)
    if first < span.stop:
        kept = after[..., first - length:span.stop - length] + usd[..., None] * length
        np.minimum(free[..., first:span.stop], kept, out=now[..., first:span.stop])
