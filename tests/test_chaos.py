"""The short form of the fault campaign, what has failed once, and that a broken protocol is found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.chaos.case import Result  # noqa: E402
from tests.chaos.failed import FAILED  # noqa: E402
from tests.chaos.plan import Case, Life, Strike  # noqa: E402
from tests.chaos.seen import Row, Seen, code_digest  # noqa: E402
from tests.trainer_runs import ROOT  # noqa: E402

# The driver of cases forks and adopts orphans: in a process of its own, with no threads.
RUN_CASES = """
import json
import sys
from tests.chaos.case import run_case
from tests.chaos.levels import protocol_level
from tests.chaos.machine import adopt_orphans
from tests.test_chaos import CASES

adopt_orphans()
results = {name: run_case(protocol_level()._replace(deadline_s=20), CASES[name]) for name in sys.argv[1:]}
print(json.dumps({name: [result.struck, result.wrong] for name, result in results.items()}))
"""
# A campaign whose time is up before it begins.
TOO_LATE = """
import sys
from tests.chaos import __main__ as program

program._LIMIT_S = -1
sys.exit(program.main(["--level", "protocol", "--seeds", "0-1"]))
"""
LATE = Strike("step", "", 9, "before", 0, "machine")
# Protocols that look like ours and are wrong, by what they do, with a case that has to find it.
BROKEN = {
    "hashes are not looked at": (
        Case("protocol", 0, "", (Life(2, LATE, "flipped"),), keeps_promise=False), """
from trainer import piece_codec
piece_codec.digest = lambda *_: ""
"""),
    "old checkpoints go before the new one counts": (
        Case("protocol", 0, "", (Life(2, Strike("put", "manifest", 2, "before", 0, "machine")),)), """
from trainer.commit import Committer
whole = Committer._write_manifest
def write(self, manifest):
    store = self._folder.store
    store.delete([found.key for found in store.objects(self._folder.key("checkpoints"))
                  if found.key < self._folder.key(f"checkpoints/step-{manifest.step:08d}")])
    whole(self, manifest)
Committer._write_manifest = write
"""),
    "the manifest comes first": (
        Case("protocol", 0, "", (Life(2, Strike("stream", "shard", 1, "before", 0, "machine")),)), """
from trainer.commit import Committer
put_shard, retain = Committer._put_shard, Committer._retain
def later(self, base, copied):
    if self._peers.rank:
        return put_shard(self, base, copied)
    store, self._late = self._folder.store, []
    store.stream = lambda key, buffers: self._late.append((key, [bytes(buffer) for buffer in buffers]))
    part = put_shard(self, base, copied)
    del store.stream
    return part
def late(self, step):
    import time
    time.sleep(0.2)  # as uploads take longer than manifests
    while getattr(self, "_late", []):
        self._folder.store.stream(*self._late.pop())
    retain(self, step)
Committer._put_shard, Committer._retain = later, late
"""),
}
CASES = FAILED | {name: case for name, (case, _) in BROKEN.items()}


def outcomes(*names: str, patch: str = "") -> dict[str, list[Any]]:
    """How many faults have struck in each case, and what was wrong with it."""
    done = subprocess.run([sys.executable, "-c", patch + RUN_CASES, *names], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def ours() -> dict[str, list[Any]]:
    """Of every case, under our own protocol."""
    return outcomes(*CASES)


def survived(seed: int) -> Result:
    """Of a case of the protocol level."""
    return Result(Case("protocol", seed, "killed at shard", (Life(1),)), [], 1, 0, 0.0, "")


@pytest.mark.parametrize("name", FAILED)
def test_what_has_failed_once_does_not_fail_again(name: str, ours: dict[str, list[Any]]) -> None:
    assert ours[name] == [sum(life.strike is not None for life in FAILED[name].lives), []]


def test_every_kind_of_fault_ends_in_the_bits_of_the_run_that_nobody_interrupts(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.chaos", "--short"], cwd=tmp_path, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / ".chaos" / "seen.json").read_text())["ranks"].values()
    assert {(row.kind, row.struck) for row in (Row(*row) for row in rows)} == {
        ("killed at retention", 1), ("one rank stopped", 1), ("killed at snapshot", 1)}


def test_a_campaign_that_has_not_run_all_that_it_was_asked_for_does_not_pass(tmp_path: Path) -> None:
    def ends_well() -> bool:
        done = subprocess.run([sys.executable, "-c", TOO_LATE], cwd=tmp_path, text=True, capture_output=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
        assert done.returncode in (0, 1), done.stderr
        assert ("not run, since the time is up" in done.stdout) == bool(done.returncode)
        return done.returncode == 0

    assert not ends_well()
    seen = Seen(tmp_path / ".chaos" / "seen.json", code_digest(ROOT))
    seen.note(survived(0))
    assert not ends_well()
    seen.note(survived(1))
    assert ends_well()


def test_what_another_state_of_the_code_has_survived_does_not_count(tmp_path: Path) -> None:
    code = ["trainer/commit.py", "trainer/requirements.lock", "tests/trainer_runs.py", "tests/chaos/plan.py"]
    for place in code:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("1")
    file = tmp_path / "seen.json"
    for place in code:
        Seen(file, code_digest(tmp_path)).note(survived(3))
        assert Seen(file, code_digest(tmp_path)).not_run("protocol", [3, 4]) == [4]
        (tmp_path / place).write_text("2")
        assert Seen(file, code_digest(tmp_path)).not_run("protocol", [3, 4]) == [3, 4]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_protocol_does_not_survive(name: str, ours: dict[str, list[Any]]) -> None:
    case, patch = BROKEN[name]
    assert ours[name] == [len(case.lives), []]
    struck, wrong = outcomes(name, patch=patch)[name]
    assert struck and wrong, (struck, wrong)
