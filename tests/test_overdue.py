"""A program that hangs far past the limits of its run is killed with all that it has started."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psutil
import pytest

from trainer.contract import Document, RankEnd
from trainer.guard import Standing
from trainer.node import node_end, wait_for
from trainer.notices import cloud_named
from trainer.overdue import OverTimeError, bench_until, check_in_time, overdue_at
from trainer.run_folder import Attempt, AttemptEnd, AttemptFiles
from trainer.stop_request import StopRequest

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
FAMILY = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep({})'])"


@pytest.mark.parametrize(("limits", "hours"), [
    ({}, None),
    ({"LDLM_DEADLINE": "", "LDLM_MAX_COST_USD": "", "LDLM_MAX_HOURS": ""}, None),
    ({"LDLM_MAX_COST_USD": "1e30"}, None),
    ({"LDLM_DEADLINE": "2026-11-23T20:00:00+00:00"}, 8),
    ({"LDLM_DEADLINE": "2026-11-23T08:00:00+00:00"}, 0),
    ({"LDLM_MAX_COST_USD": "5"}, 1),
    ({"LDLM_MAX_COST_USD": "2"}, 0),
    ({"LDLM_MAX_HOURS": "3"}, 0.5),
    ({"LDLM_MAX_COST_USD": "5", "LDLM_DEADLINE": "2026-11-23T20:00:00+00:00"}, 1)])
def test_a_program_has_five_minutes_beyond_the_first_limit_of_its_run(limits: dict[str, str],
                                                                      hours: float | None) -> None:
    """Three of five dollars are spent, in two and a half hours, and an hour costs two."""
    standing = Standing(NOON, Decimal(3), 2.5 * 3600, Decimal(2))
    found = overdue_at(standing, environ=limits)
    assert found == (None if hours is None else NOON + hours * HOUR + timedelta(minutes=5))


def bench(number: int, minute: float, end: float | None = None,
          document: Document = Document.BENCH) -> AttemptFiles:
    start = NOON + timedelta(minutes=minute)
    own = Attempt(number=number, document=document, billed_from=start, price_usd_per_hour=Decimal(1),
                  offer="", host="")
    over = None if end is None else AttemptEnd(at=NOON + timedelta(minutes=end), exit_code=None,
                                               preempted=True, reason="")
    return AttemptFiles(attempt=own, end=over)


@pytest.mark.parametrize(("earlier", "resumed", "minutes"), [
    ([], None, 60),
    ([bench(1, -9000, -10, Document.TRAIN)], None, 60),  # whatever the training took
    ([bench(1, -50, -40), bench(2, -30, -5)], None, 25),
    ([bench(1, -90, -1)], None, -29),
    ([bench(1, -90, -1), bench(2, -10, -4)], -15, 54)])  # the first was before a person started it again
def test_all_attempts_of_a_benchmark_share_its_hours(
        earlier: list[AttemptFiles], resumed: float | None, minutes: float) -> None:
    own = bench(len(earlier) + 1, 0)
    again = None if resumed is None else NOON + timedelta(minutes=resumed)
    until = bench_until([*earlier, own], own.attempt, again, {"LDLM_BENCH_HOURS": "1"})
    assert until == NOON + timedelta(minutes=minutes)


def test_training_and_a_task_without_such_a_limit_have_none() -> None:
    train, own = bench(1, 0, document=Document.TRAIN), bench(1, 0)
    assert bench_until([train], train.attempt, None, {"LDLM_BENCH_HOURS": "1"}) is None
    assert bench_until([own], own.attempt, None, {"LDLM_BENCH_HOURS": ""}) is None
    assert bench_until([own], own.attempt, None, {}) is None


def test_a_benchmark_that_is_there_ten_minutes_after_its_hours_hangs() -> None:
    standing = Standing(NOON, usd_per_hour=Decimal("0.5"))
    assert overdue_at(standing, NOON + HOUR, {"LDLM_MAX_COST_USD": "500"}) == NOON + timedelta(minutes=70)
    assert overdue_at(standing, NOON + HOUR, {}) == NOON + timedelta(minutes=70)


@pytest.mark.parametrize(("end", "is_refused"), [
    (None, True), (RankEnd(75, "asked to stop"), True), (RankEnd(1, "a rank died"), True),
    (RankEnd(0, "done"), False), (RankEnd(78, "no such text"), False), (RankEnd(70, "NaN"), False)])
def test_a_benchmark_out_of_time_asks_for_no_other_attempt(end: RankEnd | None, is_refused: bool) -> None:
    check_in_time(end, NOON, NOON - HOUR)
    check_in_time(end, None, NOON)
    if is_refused:
        with pytest.raises(OverTimeError, match="the benchmark has had its time, up to 12:00 UTC") as caught:
            check_in_time(end, NOON, NOON)
        assert caught.value.node_exit_code == 70 and (end is None or end.reason in caught.value.problem)
    else:
        check_in_time(end, NOON, NOON)


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield StopRequest(cloud_named(""))
    for number, handler in before.items():
        signal.signal(number, handler)


def start(seconds: float) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", FAMILY.format(seconds)])


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_what_hangs_past_its_limits_is_killed_with_all_that_it_has_started(
        stop: StopRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = start(1000)
    while not (family := psutil.Process(child.pid).children(recursive=True)):
        time.sleep(0.02)
    wait_for(child, tmp_path, stop, datetime.now(UTC) + timedelta(seconds=0.5))
    assert child.returncode == -signal.SIGKILL and not any(is_alive(one) for one in family)
    assert "it hangs and is killed" in capsys.readouterr().out


class Unkillable(subprocess.Popen[bytes]):
    """As in state D, on a GPU or a disk that does not answer: SIGKILL is sent, and does nothing."""

    def kill(self) -> None:
        pass


def test_what_survives_sigkill_is_left_behind_and_said(
        stop: StopRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.programs._DIES_WITHIN_S", 0.2)
    child = Unkillable([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        wait_for(child, tmp_path, stop, datetime.now(UTC))
        assert child.poll() is None
        assert f"process {child.pid} survives SIGKILL" in capsys.readouterr().out
        end = node_end([], 1, child.returncode)
        assert end.code == 1 and "a GPU or a disk does not answer" in end.reason
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


def test_whoever_reads_what_a_node_prints_does_not_wait_for_what_it_has_left_behind(tmp_path: Path) -> None:
    node = f"""
import subprocess, sys
from trainer.relay import relayed
with relayed() as output:
    words = "echo its word; echo its error >&2; touch {tmp_path}/said; sleep 300"
    left = subprocess.Popen(["sh", "-c", words], stdout=output, stderr=output)
    while subprocess.call(["test", "-e", "{tmp_path}/said"]):
        pass
print(left.pid, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", node], cwd=Path(__file__).parents[1], text=True,
                          stdout=subprocess.PIPE, check=True, timeout=120)
    *said, pid = done.stdout.split("\n")[:-1]
    left = psutil.Process(int(pid))
    assert is_alive(left) and said == ["its word", "its error"]
    for process in (*left.children(), left):
        process.kill()


def test_what_ends_by_itself_is_left_alone(stop: StopRequest, tmp_path: Path) -> None:
    child = start(0.5)
    wait_for(child, tmp_path, stop, datetime.now(UTC) + HOUR)
    assert child.returncode == 0
