"""What Vast charges for an instance, by its published rules. Shares no code with ldlm: it is what ldlm's own
bills are compared with.

- The GPU costs money while the instance runs: not while it loads, not while it is stopped.
- The disk costs money from creation until it is destroyed, whether the instance runs or not.
- Every byte costs money, up and down, at prices of the host.
- All of it by the time that has passed, at the price of that time: a price may change in the middle.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

_HOUR_S = 3600
_MONTH_H = 720  # 30 days: so Vast turns $/GB/month into the hourly prices that it shows
_GB = 10**9
_STEP_USD = Decimal("1e-10")  # parts are rounded to it, so that they add up to the total


class Status(StrEnum):
    """What an instance does, as far as it matters for its bill."""

    LOADING = "loading"
    RUNNING = "running"
    STOPPED = "stopped"
    DESTROYED = "destroyed"


@dataclass(frozen=True)
class Rates:
    """Prices that hold as long as an instance exists."""

    storage_usd_per_gb_month: Decimal
    up_usd_per_gb: Decimal
    down_usd_per_gb: Decimal


@dataclass(frozen=True)
class Segment:
    """From `since` (Unix seconds) until the next one begins; the price is what the GPU costs if it runs."""

    since: Decimal
    status: Status
    gpu_usd_per_hour: Decimal


@dataclass(frozen=True)
class Bill:
    """What one instance has cost so far."""

    seconds: Mapping[Status, Decimal]
    gpu_usd: Decimal
    storage_usd: Decimal
    up_usd: Decimal
    down_usd: Decimal
    bytes_up: int
    bytes_down: int
    segments: tuple[Segment, ...]

    @property
    def network_usd(self) -> Decimal:
        """Both ways."""
        return self.up_usd + self.down_usd

    @property
    def total_usd(self) -> Decimal:
        """The sum of the three parts."""
        return self.gpu_usd + self.storage_usd + self.network_usd

    def as_json(self) -> dict[str, Any]:
        """Seconds and dollars as decimal text."""
        return {
            **{f"{status}_s": str(seconds) for status, seconds in self.seconds.items()},
            "gpu_usd": _text(self.gpu_usd), "storage_usd": _text(self.storage_usd),
            "network_usd": _text(self.network_usd), "total_usd": _text(self.total_usd),
            "bytes_up": self.bytes_up, "bytes_down": self.bytes_down,
            "segments": [{"since": str(segment.since), "status": segment.status,
                          "gpu_usd_per_hour": str(segment.gpu_usd_per_hour)} for segment in self.segments],
        }


@dataclass
class Account:
    """Keeps what an instance is billed for. Segments are only ever added, never changed.

    Args:
        gpu_usd_per_hour: Of all its GPUs together: the host's price, or the bid of an interruptible one.
        disk_gb: Rented, not used.
        clock: Unix seconds.
    """

    rates: Rates
    gpu_usd_per_hour: Decimal
    disk_gb: Decimal
    clock: Callable[[], Decimal]
    bytes_up: int = 0
    bytes_down: int = 0
    _segments: list[Segment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._add(Status.LOADING)

    @property
    def status(self) -> Status:
        """What it does now."""
        return self._segments[-1].status

    def becomes(self, status: Status) -> None:
        """From now on it does this. Nothing follows on DESTROYED."""
        if self.status is not Status.DESTROYED and status is not self.status:
            self._add(status)

    def costs(self, gpu_usd_per_hour: Decimal) -> None:
        """From now on its GPUs cost this."""
        self.gpu_usd_per_hour = gpu_usd_per_hour
        self._add(self.status)

    def transferred(self, up: int, down: int) -> None:
        """So many more bytes have left it and reached it."""
        self.bytes_up += up
        self.bytes_down += down

    def bill(self) -> Bill:
        """What it has cost until now."""
        seconds = dict.fromkeys((Status.LOADING, Status.RUNNING, Status.STOPPED), Decimal(0))
        gpu_usd = Decimal(0)
        ends = [segment.since for segment in self._segments[1:]] + [self.clock()]
        for segment, end in zip(self._segments, ends, strict=True):
            if segment.status is Status.DESTROYED:
                continue
            passed = end - segment.since
            seconds[segment.status] += passed
            if segment.status is Status.RUNNING:
                gpu_usd += segment.gpu_usd_per_hour * passed / _HOUR_S
        storage_usd = (self.rates.storage_usd_per_gb_month * self.disk_gb * sum(seconds.values())
                       / (_MONTH_H * _HOUR_S))
        up_usd, down_usd = (self.rates.up_usd_per_gb * self.bytes_up / _GB,
                            self.rates.down_usd_per_gb * self.bytes_down / _GB)
        return Bill(seconds, _rounded(gpu_usd), _rounded(storage_usd), _rounded(up_usd), _rounded(down_usd),
                    self.bytes_up, self.bytes_down, tuple(self._segments))

    def _add(self, status: Status) -> None:
        self._segments.append(Segment(self.clock(), status, self.gpu_usd_per_hour))


def storage_usd_per_hour(usd_per_gb_month: Decimal, disk_gb: Decimal) -> Decimal:
    """What a disk adds to the hourly price that a search shows."""
    return usd_per_gb_month * disk_gb / _MONTH_H


def _rounded(usd: Decimal) -> Decimal:
    return usd.quantize(_STEP_USD)


def _text(usd: Decimal) -> str:
    return f"{usd:f}"
