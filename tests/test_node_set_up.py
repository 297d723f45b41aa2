"""trainer/set_up.py: a node's set-up ends, whatever hangs in it, and its node says what that means."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.test_environment import CHECKOUT, Checkout
from tests.trainer_runs import TrainerRun, tiny_config, write_text
from trainer import own_bill
from trainer.contract import Document, Env, ExitCode, Name, Outcome, TaskOffer
from trainer.guard import Standing
from trainer.limit_watch import check_limits
from trainer.limits import LimitError
from trainer.machine import MachineError, check_set_up
from trainer.own_bill import billed_from, set_up_left_s
from trainer.rental_terms import TERMS, RentalTerms
from trainer.rented import Rented
from trainer.run_folder import AttemptEnd, Heartbeat, Phases, RunFolder, RunOutcome
from trainer.set_up import _Steps, limit_s
from trainer.store import open_store

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def set_up(checkout: Checkout, home: Path, seconds: float, **settings: str) -> tuple[int, str]:
    """Exit code and output of a set-up by a run whose deadline comes in so many seconds."""
    deadline = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
    done = subprocess.run(
        [sys.executable, "-m", "trainer.set_up"], cwd=checkout.root, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "HOME": str(home),
                          "PIP_FIND_LINKS": str(checkout.wheels), "LDLM_DEADLINE": deadline} | settings)
    return done.returncode, done.stdout


def test_a_set_up_that_hangs_is_killed_and_leaves_word_for_its_node(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    checkout, home = Checkout(tmp_path / "code"), tmp_path
    for name in ("set_up.py", "relay.py"):
        (checkout.root / "trainer" / name).write_bytes((CHECKOUT / "trainer" / name).read_bytes())
    (checkout.root / "trainer/first_look.py").write_text("print('as it should be')")
    assert checkout.make("--node")[0] == 0
    # The pip that brings torch hangs, as in a download that trickles.
    (home / "sitecustomize.py").write_text(
        "import os, sys, time\nif 'trainer/requirements.lock' in sys.orig_argv:\n"
        f"    open({str(home / 'pid')!r}, 'w').write(str(os.getpid()))\n    time.sleep(600)\n")

    code, output = set_up(checkout, home, 10, PYTHONPATH=str(home), SKYPILOT_MANAGED_JOB_ID="1")

    assert code == 0 and "error: set-up did not end within" in output, output
    pip = Path("/proc") / (home / "pid").read_text()
    while pip.exists():  # it has had its SIGKILL
        time.sleep(0.02)
    with pytest.raises(MachineError, match=r"set-up did not end within .* trainer.environment`"):
        check_set_up(home / ".ldlm_set_up_late")

    # Past the deadline the node's own program is made all the same: it ends the run at its limit.
    shutil.rmtree(checkout.root / ".venv-train")
    code, output = set_up(checkout, home, -3600, SKYPILOT_MANAGED_JOB_ID="1")
    assert code == 0 and "error: set-up did not end within 0 minutes" in output, output
    assert (checkout.root / ".venv-train/ldlm-installed.json").exists()
    assert (home / ".ldlm_set_up_late").exists()

    # At home nobody rents another machine: it fails. What was found before says nothing any more.
    code, output = set_up(checkout, home, 0)
    assert code == 1 and "error: set-up did not end within 0 minutes" in output
    check_set_up(home / ".ldlm_set_up_late")


def test_a_set_up_begins_with_the_old_python_that_a_machine_may_have() -> None:
    for name in ("set_up.py", "relay.py"):
        ast.parse((CHECKOUT / "trainer" / name).read_text(), feature_version=(3, 8))
    # What 3.8 does not have yet.
    subprocess.run([sys.executable, "-c", "import datetime; del datetime.UTC; import trainer.set_up"],
                   cwd=CHECKOUT, check=True)


def test_whoever_reads_what_a_set_up_prints_does_not_wait_for_what_survives_sigkill() -> None:
    """A pip on a disk that does not answer, say: here it is not sent the signal."""
    program = """
import os, trainer.set_up as it
steps = ["sh", "-c", "echo its word; echo its pid $$; sleep 300"]
it.set_up = lambda own, options: own.run(steps, at_least_s=1.0)
it.os.killpg = lambda *which: None
os._exit(it.main([], {"LDLM_MAX_COST_USD": "0", "LDLM_PRICE_USD_PER_HOUR": "1"}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, text=True, stdout=subprocess.PIPE,
                          timeout=120, check=False)
    said = done.stdout.splitlines()
    os.killpg(int(said[1].rpartition(" ")[2]), signal.SIGKILL)  # it was still there
    assert (done.returncode, said[0]) == (1, "its word")


@pytest.mark.parametrize(("limits", "minutes"), [
    ({}, 60),
    ({"LDLM_DEADLINE": "2026-11-01T12:20:00+00:00"}, 20),
    ({"LDLM_DEADLINE": "2026-11-01T11:00:00+00:00"}, 0),
    ({"LDLM_DEADLINE": "2026-11-02T12:00:00+00:00"}, 60),
    ({"LDLM_MAX_COST_USD": "1", "LDLM_PRICE_USD_PER_HOUR": "4"}, 15),
    ({"LDLM_MAX_HOURS": "0.5"}, 30),
    ({"LDLM_MAX_COST_USD": "1", "LDLM_PRICE_USD_PER_HOUR": ""}, 60)])
def test_a_set_up_has_an_hour_and_no_longer_than_its_run(limits: dict[str, str], minutes: float) -> None:
    assert limit_s(limits, NOON) == 60 * minutes


@pytest.mark.parametrize(("cap", "left_s"), [("", None), ("4", 3600), ("2.50", 900), ("1", -1800)])
def test_set_up_has_what_earlier_attempts_have_left_of_the_limits(tmp_path: Path, cap: str,
                                                                  left_s: float | None) -> None:
    """One before has taken an hour at two dollars, and vanished."""
    folder = RunFolder(open_store(f"file://{tmp_path}/store"), "run")
    folder.claim_attempt(Document.TRAIN, billed_from=NOON - timedelta(hours=3), host="", offer="",
                         price_usd_per_hour=Decimal(2), cloud="gcp", lease_until=NOON - timedelta(hours=2))
    envs = {"LDLM_MAX_COST_USD": cap, "LDLM_PRICE_USD_PER_HOUR": "2"}
    found = set_up_left_s(folder, NOON, envs)
    assert found == (None if left_s is None else pytest.approx(left_s))


def test_set_up_counts_an_earlier_attempt_without_a_price_by_the_dearest_place_of_its_task(
        tmp_path: Path) -> None:
    """An hour of which no price is known may have cost $8: of $9 one is left, half an hour at $2."""
    folder = RunFolder(open_store(f"file://{tmp_path}/store"), "run")
    folder.claim_attempt(Document.TRAIN, billed_from=NOON - timedelta(hours=3), host="", offer="",
                         price_usd_per_hour=Decimal(0), cloud="gcp", lease_until=NOON - timedelta(hours=2))
    places = TaskOffer.write_all([TaskOffer("gcp", True, {Env.PRICE: "8"}), TaskOffer("vast", True, {})])
    found = set_up_left_s(folder, NOON, {Env.MAX_COST: "9", Env.PRICE: "2", Env.OFFERS: places})
    assert found == pytest.approx(1800)


@pytest.mark.parametrize(("minute", "billed"), [
    (None, -20), (-60, -20), (-5, -5),  # the one before ended on this machine
    (30, -20), (0.5, -20),  # or by a clock that was wrong
])
def test_an_attempt_is_billed_from_the_boot_or_the_end_before_it_on_the_machine(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minute: float | None, billed: float) -> None:
    folder = RunFolder(open_store(f"file://{tmp_path}/store"), "run")
    folder.claim_attempt(Document.TRAIN, billed_from=NOON - timedelta(hours=3), host="", offer="",
                         price_usd_per_hour=Decimal(2), cloud="gcp", lease_until=NOON - timedelta(hours=2))
    if minute is not None:
        folder.write("attempts/1/end.json", AttemptEnd(
            at=NOON + timedelta(minutes=minute), exit_code=75, preempted=False, reason=""))
    monkeypatch.setattr(own_bill, "booted_at", lambda environ: NOON - timedelta(minutes=20))
    assert billed_from(folder, NOON) == NOON + timedelta(minutes=billed)


def test_a_set_up_is_killed_when_the_time_is_over_that_its_limits_leave() -> None:
    steps = _Steps(600, subprocess.DEVNULL)
    steps.shorten(0.5)
    steps.shorten(500)
    with pytest.raises(subprocess.TimeoutExpired):
        steps.run(["sleep", "60"])


@pytest.mark.parametrize(("document", "spent", "limit"), [
    (Document.TRAIN, "1.50", None),
    (Document.TRAIN, "1.85", r"\$1.85 of the cap of \$2.00"),
    (Document.BENCH, "1.85", None),
    (Document.BENCH, "2.00", r"\$2.00 of the cap of \$2.00")])
def test_what_set_up_has_spent_counts_towards_the_cap_before_anything_begins(
        document: Document, spent: str, limit: str | None) -> None:
    envs = {"LDLM_MAX_COST_USD": "2", "LDLM_BENCH_RESERVE_USD": "0.2", "LDLM_DEADLINE": ""}
    standing = Standing(NOON, Decimal(spent))
    if limit is None:
        return check_limits(document, standing, envs)
    with pytest.raises(LimitError, match=limit):
        check_limits(document, standing, envs)


@pytest.mark.parametrize(("durable", "code"), [(0, ExitCode.STOPPED), (7, ExitCode.FINISHED)])
def test_an_attempt_that_a_limit_keeps_from_beginning_ends_its_run_and_what_was_trained_is_benchmarked(
        tmp_path: Path, durable: int, code: ExitCode) -> None:
    folder = RunFolder(open_store(f"file://{tmp_path}/store"), "run")
    folder.add_event("submitted", NOON)
    folder.claim_attempt(Document.TRAIN, billed_from=NOON, price_usd_per_hour=Decimal(1), offer="", host="")
    folder.write("attempts/1/heartbeat.json", Heartbeat(
        at=NOON, step=9, total_steps=12, resumed_from_step=0, durable_step=durable, durable_train_s=1,
        durable_evaluate_s=0, phases=Phases(), tokens_per_s=1, spent_usd=Decimal(0)))
    node = Rented(folder, Document.TRAIN, node=0)

    assert node.conclude(node.end_at_limit(LimitError("deadline 2026-11-01 12:00 UTC"))) == code

    found = folder.read(Name.OUTCOME, RunOutcome)
    assert (found.outcome, found.step) == (Outcome.LIMIT, durable)


@pytest.mark.parametrize(("deadline_h", "code", "word"), [
    (1, ExitCode.RECOVER, "wrong machine (1 of 3): "),
    (-1, ExitCode.STOPPED, "before train began on this machine")])
def test_a_node_whose_set_up_was_late_asks_for_another_machine_unless_its_run_is_at_its_limit(
        tmp_path: Path, deadline_h: int, code: ExitCode, word: str) -> None:
    (tmp_path / ".ldlm_set_up_late").write_text("set-up did not end within 60 minutes")
    run = TrainerRun(tiny_config(write_text(tmp_path / "prose.txt")), tmp_path / "store", num_ranks=1)
    run.folder.add_event("submitted", datetime.now(UTC))
    deadline = datetime.now(UTC) + timedelta(hours=deadline_h)

    found, output = run.finish(HOME=str(tmp_path), SKYPILOT_MANAGED_JOB_ID="1",
                               LDLM_DEADLINE=deadline.isoformat())

    assert found == code and word in output, output
    end = run.folder.attempt(1).end
    assert (end.exit_code, end.wrong_machine) == (code, code == ExitCode.RECOVER)


def test_a_disk_and_a_machine_that_never_began_use_up_the_cap_as_the_bill_will(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    earlier = ((now - timedelta(minutes=30), Decimal("0.50")), (now - timedelta(days=9), Decimal(7)))
    (tmp_path / TERMS).write_text(RentalTerms(
        rented_at=now - timedelta(hours=1), disk_usd_per_hour=Decimal("0.60"),
        earlier=earlier).model_dump_json())
    run = TrainerRun(tiny_config(write_text(tmp_path / "prose.txt")), tmp_path / "store", num_ranks=1)
    run.folder.add_event("submitted", now - timedelta(hours=2))

    code, output = run.finish(HOME=str(tmp_path), SKYPILOT_MANAGED_JOB_ID="1", LDLM_MAX_COST_USD="1.10",
                              LDLM_PRICE_USD_PER_HOUR="0.001")

    assert code == ExitCode.STOPPED and "$1.10 of the cap of $1.10" in output, output
    assert run.folder.attempt(1).attempt.terms.disk_usd_per_hour == Decimal("0.60")
