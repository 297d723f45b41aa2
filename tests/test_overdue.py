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

from trainer.node import wait_for
from trainer.notices import cloud_named
from trainer.overdue import overdue_at
from trainer.stop_request import StopRequest

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
FAMILY = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep({})'])"


@pytest.mark.parametrize(("limits", "hours"), [
    ({}, None),
    ({"LDLM_DEADLINE": "", "LDLM_MAX_COST_USD": "5", "LDLM_PRICE_USD_PER_HOUR": ""}, None),
    ({"LDLM_MAX_COST_USD": "0.0001", "LDLM_PRICE_USD_PER_HOUR": "1e-30"}, None),
    ({"LDLM_DEADLINE": "2026-11-23T20:00:00+00:00"}, 9),
    ({"LDLM_DEADLINE": "2026-11-23T08:00:00+00:00"}, 1),
    ({"LDLM_MAX_COST_USD": "5", "LDLM_PRICE_USD_PER_HOUR": "2"}, 3.5),
    ({"LDLM_MAX_COST_USD": "5", "LDLM_PRICE_USD_PER_HOUR": "2",
      "LDLM_DEADLINE": "2026-11-23T20:00:00+00:00"}, 3.5)])
def test_a_program_has_an_hour_beyond_the_first_limit_that_it_can_reach(limits: dict[str, str],
                                                                       hours: float | None) -> None:
    assert overdue_at(NOON, Decimal(0), limits) == (None if hours is None else NOON + hours * HOUR)


@pytest.mark.parametrize(("spent", "hours"), [("3", 2), ("4.5", 1.25), ("7", 1)])
def test_what_earlier_attempts_have_spent_of_the_cap_is_not_there_a_second_time(spent: str,
                                                                                hours: float) -> None:
    limits = {"LDLM_MAX_COST_USD": "5", "LDLM_PRICE_USD_PER_HOUR": "2"}
    assert overdue_at(NOON, Decimal(spent), limits) == NOON + hours * HOUR


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


def test_what_ends_by_itself_is_left_alone(stop: StopRequest, tmp_path: Path) -> None:
    child = start(0.5)
    wait_for(child, tmp_path, stop, datetime.now(UTC) + HOUR)
    assert child.returncode == 0
