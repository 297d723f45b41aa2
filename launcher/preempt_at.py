"""When the local engine plays the cloud that takes the machine back."""

from dataclasses import dataclass
from typing import Literal

from launcher.errors import UsageError
from trainer.run_folder import Heartbeat


@dataclass(frozen=True)
class PreemptAt:
    """A moment of an attempt: local step `value` done, or `value` seconds after its start.

    Attributes:
        away_s: For so long no other machine is to be had on spot.
    """

    kind: Literal["step", "time"]
    value: float
    away_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:g}" + (f"+{self.away_s:g}" if self.away_s else "")

    def is_due(self, age_s: float, heartbeat: Heartbeat | None) -> bool:
        """True when the machine is to vanish now.

        A step counts only once a checkpoint is durable: before that there is nothing to resume
        from, and the injection would show a restart.
        """
        if self.kind == "time":
            return age_s >= self.value
        return heartbeat is not None and heartbeat.step >= self.value and heartbeat.durable_step > 0

    def waits_for_checkpoint(self, heartbeat: Heartbeat | None) -> bool:
        """True when the step is done, but no checkpoint is durable yet."""
        return (self.kind == "step" and heartbeat is not None and heartbeat.step >= self.value
                and heartbeat.durable_step == 0)


def parse_preempt_at(text: str) -> PreemptAt:
    """Read `step:N` (N >= 1) or `time:SECONDS` (> 0), and `+SECONDS` (> 0) for which there is no spot then.

    Raises:
        UsageError: It is neither.
    """
    kind, _, rest = text.partition(":")
    value, plus, away = rest.partition("+")
    try:
        away_s = float(away) if plus else 0.0
        if (0 < away_s < float("inf")) == bool(plus):
            if kind == "step" and int(value) >= 1:
                return PreemptAt("step", int(value), away_s)
            if kind == "time" and 0 < float(value) < float("inf"):
                return PreemptAt("time", float(value), away_s)
    except ValueError:
        pass
    raise UsageError(f"cannot preempt at {text!r}", place="--preempt-at",
                     fix="use step:N or time:SECONDS; +SECONDS behind it keeps spot away for so long")
