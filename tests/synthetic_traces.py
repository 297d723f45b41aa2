"""Windows of availability made up for tests: alternating times of up and down, drawn independently."""

import gzip
import json
import random
from pathlib import Path


def window(rng: random.Random, hours: float, tick_s: int, mean_up_h: float, mean_down_h: float) -> str:
    """Run lengths such as `12u,3d`."""
    left = int(hours * 3600 / tick_s)
    is_up = rng.random() < mean_up_h / (mean_up_h + mean_down_h)
    parts = []
    while left > 0:
        mean_h = mean_up_h if is_up else mean_down_h
        length = min(left, max(1, round(rng.expovariate(1 / mean_h) * 3600 / tick_s)))
        parts.append(f"{length}{'u' if is_up else 'd'}")
        is_up, left = not is_up, left - length
    return ",".join(parts)


def rows(num_windows: int, num_zones: int = 1, hours: float = 60.0, seed: int = 0) -> list[dict]:
    """Zones of different temper, open at once, at both tick sizes of the real data."""
    rng = random.Random(seed)
    tempers = [(rng.uniform(0.5, 8), rng.uniform(0.3, 4)) for _ in range(num_zones)]
    return [{"source": "made up", "zone": f"zone-{zone}", "window": str(number), "start": str(number),
             "tick_seconds": tick_s, "up": window(rng, hours, tick_s, *tempers[zone])}
            for number in range(num_windows) for tick_s in [(195, 600)[number % 2]]
            for zone in range(num_zones)]


def write(path: Path, lines: list[dict]) -> Path:
    """As the real file: gzipped JSON lines."""
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return path
