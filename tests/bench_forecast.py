"""Milliseconds of a forecast on one core: `python -m tests.bench_forecast`. Processor time."""

import time
from collections.abc import Callable

from launcher.availability import Availability
from launcher.forecast_paths import Job, paths_of

SPOT = Availability(hours_to_loss=7.0, loss_spread=1.0, hours_to_machine=0.2, wait_spread=1.0)


def job(training_h: float) -> Job:
    """A run on spot whose speed is guessed."""
    return Job(training_h=training_h, speed_factors=(0.5, 2.0), beside_h=1.0, first_h=0.3, again_h=0.2,
               bench_h=0.1, guess_factors=(0.5, 2.0), interval_h=0.5, save_h=0.1, availability=SPOT)


def timed_ms(work: Callable[[], object]) -> float:
    """Milliseconds of the quickest."""
    found = []
    for _ in range(5):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found) * 1000


def main() -> None:
    """A line per length of a run."""
    anew = paths_of.__wrapped__  # it remembers what it was asked
    for hours in (20.0, 200.0, 2000.0, 20000.0):
        print(f"{hours:8,.0f} h on spot {timed_ms(lambda hours=hours: anew(job(hours))):8.1f} ms")


if __name__ == "__main__":
    main()
