"""One attempt at a time: who waits, who is refused, and what becomes of one that slept through its end."""

import signal
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from trainer import lease
from trainer.contract import Document, ExitCode
from trainer.lease import LeaseError, SupersededError, await_free, check_own, machine_here, renewed
from trainer.run_folder import AttemptEnd, Heartbeat, Phases, RunFolder
from trainer.store import open_store

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


class Clock:
    """Time that passes only while somebody sleeps; things happen at their second."""

    def __init__(self, events: dict[float, Callable[[], object]] | None = None) -> None:
        self.seconds, self._events = 0.0, events or {}

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        for at in [at for at in self._events if at <= self.seconds]:
            self._events.pop(at)()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(open_store(f"file://{tmp_path}/store"), "run")


def claim(folder: RunFolder, owner: str, *, lease_s: float = 300) -> int:
    return folder.claim_attempt(Document.TRAIN, billed_from=NOON, price_usd_per_hour=Decimal(1), offer="",
                                host="h", owner=owner, lease_until=NOON + timedelta(seconds=lease_s)).number


def beat(folder: RunFolder, number: int, at_s: float) -> None:
    at = NOON + timedelta(seconds=at_s)
    folder.write(f"attempts/{number}/heartbeat.json", Heartbeat(
        at=at, step=9, total_steps=12, resumed_from_step=0, durable_step=7, durable_train_s=1,
        durable_evaluate_s=0, phases=Phases(), tokens_per_s=1, spent_usd=Decimal(0),
        lease_until=renewed(at, 15)))


def waited(folder: RunFolder, owner: str, clock: Clock) -> tuple[float, list[str]]:
    said: list[str] = []
    await_free(folder, owner, said.append, now=clock.now, sleep=clock.sleep)
    return clock.seconds, said


def test_nobody_waits_where_no_attempt_is_open(folder: RunFolder) -> None:
    assert waited(folder, "job 1", Clock()) == (0, [])
    number = claim(folder, "job 2")
    folder.write(f"attempts/{number}/end.json", AttemptEnd(at=NOON, exit_code=75, preempted=False, reason=""))
    assert waited(folder, "job 1", Clock()) == (0, [])


def test_who_has_started_the_attempt_before_does_not_wait_for_it(folder: RunFolder) -> None:
    claim(folder, "job 1")
    assert waited(folder, "job 1", Clock()) == (0, [])


def test_a_machine_of_the_same_name_waits_and_this_one_does_not(
        folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(folder, machine_here(), lease_s=50)
    assert waited(folder, machine_here(), Clock()) == (0, [])
    other = tmp_path / "boot_id"
    other.write_text("0f0f0f0f-1111-2222-3333-444444444444\n")
    monkeypatch.setattr(lease, "_BOOT_ID", other)
    assert machine_here() == f"{socket.gethostname()} (boot 0f0f0f0f)"
    assert waited(folder, machine_here(), Clock())[0] == 50
    monkeypatch.setattr(lease, "_BOOT_ID", tmp_path / "no Linux")
    assert machine_here() == socket.gethostname()


def test_the_lease_of_a_machine_that_vanished_is_waited_for_and_said_once(folder: RunFolder) -> None:
    beat(folder, claim(folder, "job 1"), at_s=-10)
    seconds, said = waited(folder, "job 2", Clock())
    assert seconds == 50  # four heartbeats of 15 s from the last one on
    assert said == ["attempt 1 (job 1) may be alive until its lease ends at 12:00:50 UTC: waiting"]


def test_a_second_one_is_refused_as_soon_as_the_first_renews_its_lease(folder: RunFolder) -> None:
    beat(folder, claim(folder, "job 1"), at_s=-10)
    clock = Clock({15: lambda: beat(folder, 1, at_s=15)})
    with pytest.raises(LeaseError) as refused:
        waited(folder, "job 2", clock)
    assert clock.seconds == 15
    assert str(refused.value).splitlines() == [
        f"{folder.url}: attempt 1 is training this run: job 1 holds its lease until 12:01:15 UTC and renews "
        "it",
        "  fix: let it go on; or `ldlm stop run` first, then resume"]


def test_an_attempt_has_lost_the_run_to_any_later_number(folder: RunFolder) -> None:
    first = claim(folder, "job 1")
    check_own(folder, first)
    second = claim(folder, "job 2")
    check_own(folder, second)
    with pytest.raises(SupersededError, match="attempt 2 has taken this run over"):
        check_own(folder, first)


# -- real trainers ------------------------------------------------------------------------------------

def managed(owner: str) -> dict[str, str]:
    return {"SKYPILOT_MANAGED_JOB_ID": "1", "SKYPILOT_TASK_ID": owner}


def training(folder: Path, steps: int):
    pytest.importorskip("torch")
    from tests.trainer_runs import TrainerRun, tiny_config, write_text

    config = tiny_config(write_text(folder / "prose.txt"), steps=steps, evaluate_every_steps=steps,
                         checkpoint={"every_steps": 10, "keep": 2})
    return TrainerRun(config, folder / "store", num_ranks=1)


def signal_tree(process: "subprocess.Popen[str]", number: int) -> None:
    import psutil

    for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        member.send_signal(number)


def test_a_second_trainer_of_a_run_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    run = training(tmp_path, steps=5000)
    first = run.start(**managed("job a"))
    run.wait_for(first, 1, durable=10)
    code, output = run.finish(**managed("job b"))
    assert code == ExitCode.BAD_CONFIG
    assert "attempt 1 is training this run: job a holds its lease" in output
    assert [files.attempt.number for files in run.folder.attempts()] == [1]
    beat = run.folder.attempt(1).heartbeat
    run.wait_for(first, 1, step=beat.step + 1)
    first.terminate()
    first.communicate(timeout=run.deadline_s)
    assert first.returncode == ExitCode.RECOVER


def test_a_trainer_that_slept_while_another_took_over_saves_nothing_more(tmp_path: Path) -> None:
    run = training(tmp_path, steps=40)
    sleeper = run.start(**managed("job a"))
    run.wait_for(sleeper, 1, durable=10)
    signal_tree(sleeper, signal.SIGSTOP)
    assert run.finish(**managed("job a"))[0] == ExitCode.FINISHED
    before = run.folder.store.versions("run")
    signal_tree(sleeper, signal.SIGCONT)
    output, _ = sleeper.communicate(timeout=run.deadline_s)
    assert sleeper.returncode == ExitCode.SUPERSEDED
    assert "error: attempt 2 has taken this run over" in output
    after = run.folder.store.versions("run")
    assert {key for key in after if before.get(key) != after[key]} <= {
        key for key in after if key.startswith("run/attempts/1/")}
