"""What a campaign has seen of one state of the code, by level and seed: kept in a file, told as a table."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.chaos.case import Result
from tests.chaos.plan import KINDS, LEVELS


class Row(NamedTuple):
    """Of one case."""

    kind: str
    wrong: list[str]
    struck: int
    lost_steps: int
    resume_s: float


def code_digest(root: Path) -> str:
    """Of all that is judged and that judges, below a checkout's root."""
    files = [*root.glob("trainer/*.py"), *root.glob("tests/chaos/*.py"), root / "tests/trainer_runs.py",
             root / "trainer/requirements.lock"]
    lines = (f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


class Seen:
    """What was seen of one state of the code; what another one has left in the file is forgotten.

    Args:
        file: That keeps it.
        code: Digest of the code that is run.
    """

    def __init__(self, file: Path, code: str) -> None:
        self._file, self._code = file, code
        self._rows: dict[str, dict[int, Row]] = {level: {} for level in LEVELS}
        found = json.loads(file.read_text()) if file.exists() else {}
        if found.get("code") == code:
            for level in LEVELS:
                self._rows[level] = {int(seed): Row(*row) for seed, row in found[level].items()}

    def has_survived(self, level: str, seed: int) -> bool:
        """It was run, and nothing was wrong."""
        return seed in self._rows[level] and not self._rows[level][seed].wrong

    def note(self, result: Result) -> None:
        """One more case."""
        self._rows[result.case.level][result.case.seed] = Row(
            result.case.kind, result.wrong, result.struck, result.lost_steps, result.resume_s)
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps({"code": self._code, **self._rows}))
        draft.replace(self._file)

    def not_run(self, level: str, seeds: Iterable[int]) -> list[int]:
        """Those of some."""
        return [seed for seed in seeds if seed not in self._rows[level]]

    def failed(self, level: str, seeds: Iterable[int]) -> list[int]:
        """Those of some that did not survive."""
        return [seed for seed in seeds if seed in self._rows[level] and self._rows[level][seed].wrong]

    def table(self, level: str, seeds: Sequence[int]) -> str:
        """What was seen of some seeds of a level, by kind."""
        seen = [self._rows[level][seed] for seed in seeds if seed in self._rows[level]]
        lines = [f"{level:<26} {'cases':>6} {'survived':>9} {'faults':>7} {'worst lost steps':>17} "
                 f"{'worst resume s':>15}"]
        for kind in [*KINDS, "all"]:
            rows = [row for row in seen if kind in (row.kind, "all")]
            if rows:
                lost, resume_s = max(row.lost_steps for row in rows), max(row.resume_s for row in rows)
                lines.append(f"{kind:<26} {len(rows):>6} {sum(not row.wrong for row in rows):>9} "
                             f"{sum(row.struck for row in rows):>7} {lost:>17} {resume_s:>15.2f}")
        return "\n".join(lines)
