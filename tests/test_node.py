"""What a node makes of all that can happen: exit codes through the real torchrun, and the pure parts."""

import json
import re
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import psutil  # noqa: E402

from launcher.attempt_cost import Category, Fate, attempt_cost  # noqa: E402
from launcher.rental_cost import OnRental  # noqa: E402
from tests.trainer_runs import ROOT, TrainerRun, tiny_config, write_text  # noqa: E402
from trainer.contract import Document, ExitCode, Name, Outcome, RankEnd  # noqa: E402
from trainer.node import node_end  # noqa: E402
from trainer.run_folder import (  # noqa: E402
    Attempt,
    AttemptEnd,
    AttemptFiles,
    Heartbeat,
    Phases,
    RunOutcome,
)
from trainer.stuck import StuckError, check_progress  # noqa: E402

DIED = 1
SAVED = RankEnd(ExitCode.RECOVER, "saved")
DONE = RankEnd(ExitCode.FINISHED, "done")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")


def new_run(text: Path, tmp_path: Path, num_ranks: int = 2, **changes: object) -> TrainerRun:
    return TrainerRun(tiny_config(text, **changes), tmp_path / "store", num_ranks)


def ranks_of(node: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The trainer processes below a node, in the order of their ranks."""
    below = psutil.Process(node.pid).children(recursive=True)
    return sorted((process for process in below if "trainer.rank" in process.cmdline()
                   and "torch.distributed.run" not in process.cmdline()),
                  key=lambda process: int(process.environ()["RANK"]))


def wait_for_ranks(node: "subprocess.Popen[str]") -> list[psutil.Process]:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        try:
            if len(found := ranks_of(node)) == 2:
                return found
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.02)
    raise AssertionError("the ranks did not start")


def assert_one_clear_message(output: str) -> str:
    """The one error in a log, with its fix; no trace of a program above or below it."""
    assert "Traceback" not in output and "ChildFailedError" not in output, output
    assert output.count("error: ") == 1 and output.count("\n  fix: ") == 1, output
    return output[output.index("error: "):]


# -- exit codes, through the real torchrun ---------------------------------------------------------


def test_a_finished_run_exits_0_and_its_benchmark_too(text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, num_ranks=1, steps=2)

    code, output = run.finish()
    assert (code, "Traceback" in output) == (0, False), output
    assert run.folder.attempt(1).end.reason == "finished: 2 steps"

    code, output = run.finish("bench")
    assert (code, "Traceback" in output) == (0, False), output
    assert run.folder.read_json("bench/result.json")["step"] == 2


def test_wrong_machines_cost_seconds_are_in_the_bill_and_three_of_them_end_the_run(
        text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.touch(0o755)
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 81000, 580.95.05'\n")
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    run = new_run(text, tmp_path, num_ranks=1)
    run.folder.add_event("submitted", datetime.now(UTC))
    rented = {"SKYPILOT_MANAGED_JOB_ID": "1", "LDLM_PRICE_USD_PER_HOUR": "3600"}

    tries = [run.finish(**rented, LDLM_GPU="RTX5090:1") for _ in range(3)]

    assert [code for code, _ in tries] == [75, 75, 70]
    assert "wrong machine (1 of 3): " in tries[0][1] and tries[2][1].count("error: ") == 1
    ends = [files.end for files in run.folder.attempts()]
    assert [end.wrong_machine for end in ends] == [True, True, True]
    costs = [attempt_cost(files, OnRental(files.end.at), Fate())
             for files in run.folder.attempts()]
    assert [(cost.end, list(cost.seconds)) for cost in costs] == 3 * [("wrong machine", [Category.SETUP])]
    assert all(0 < cost.usd < 60 for cost in costs)  # at a dollar a second
    assert run.folder.read(Name.OUTCOME, RunOutcome).outcome is Outcome.NO_CAPACITY


def test_a_node_that_may_be_in_several_places_counts_the_price_of_its_own(text: Path, tmp_path: Path) -> None:
    """Two without a GPU, one of them dearer: SkyPilot says which of them this is."""
    places = json.dumps([
        {"infra": "slurm/lab", "spot": False, "envs": {}},
        {"infra": "gcp/us-central1", "spot": False, "envs": {
            "LDLM_PRICE_USD_PER_HOUR": "7200", "LDLM_OFFER": "2 CPU cores on gcp"}}])
    told = {"SKYPILOT_MANAGED_JOB_ID": "1", "LDLM_PRICE_USD_PER_HOUR": "3600", "LDLM_GPU": "",
            "LDLM_OFFER": "2 CPU cores on slurm", "LDLM_OFFERS": places}
    here = {"cluster_name": "c-1", "cloud": "GCP", "region": "us-central1", "zone": "us-central1-a"}
    run = new_run(text, tmp_path, num_ranks=1, steps=2)
    run.folder.add_event("submitted", datetime.now(UTC))

    code, output = run.finish(**told, SKYPILOT_CLUSTER_INFO=json.dumps(here))

    assert code == 0, output
    files = run.folder.attempt(1)
    assert (files.attempt.price_usd_per_hour, files.attempt.offer) == (7200, "2 CPU cores on gcp")
    lasted_s = (files.heartbeat.at - files.attempt.billed_from).total_seconds()
    assert files.heartbeat.spent_usd == pytest.approx(Decimal(2 * lasted_s), rel=Decimal("0.05"))

    run.finish("bench", **told, SKYPILOT_CLUSTER_INFO=json.dumps(here | {"cloud": "Slurm", "region": "lab"}))
    bench = run.folder.attempt(2).attempt
    assert (bench.price_usd_per_hour, bench.offer) == (3600, "2 CPU cores on slurm")


@pytest.mark.parametrize("during", ["the start of the ranks", "the steps"])
def test_sigterm_exits_75_whenever_it_comes_and_however_often(
        text: Path, tmp_path: Path, during: str) -> None:
    run = new_run(text, tmp_path, checkpoint={"every_steps": 100, "keep": 2}, steps=10_000)
    node = run.start(PYTHONPATH=f"{ROOT / 'tests' / 'slow_save'}:{ROOT}")
    ranks = wait_for_ranks(node)
    if during == "the steps":
        run.wait_for(node, attempt=1, step=3)
    node.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    node.send_signal(signal.SIGTERM)
    output, _ = node.communicate(timeout=60)

    assert node.returncode == ExitCode.RECOVER, output
    assert "Traceback" not in output and "Signal" not in output, output
    end = run.folder.attempt(1).end
    assert (end.exit_code, end.preempted) == (75, False)
    if during == "the steps":
        saved = int(re.search(r"asked to stop; step (\d+) is durable", output)[1])
        assert saved >= 3 and run.checkpoints()[0].step == saved
    else:  # ranks that do not listen yet have nothing to save: they are not waited for
        assert "asked to stop" in output and run.checkpoints() == []
    assert not any(process.is_running() for process in ranks)


def test_ranks_end_with_their_node_even_when_it_alone_is_killed(text: Path, tmp_path: Path) -> None:
    """A rank left behind would write into a run that the next attempt has taken over."""
    run = new_run(text, tmp_path, steps=10_000, checkpoint={"every_steps": 100, "keep": 2})
    node = run.start()
    ranks = wait_for_ranks(node)
    run.wait_for(node, attempt=1, step=2)
    below = psutil.Process(node.pid).children(recursive=True)
    assert {process.pid for process in ranks} < {process.pid for process in below}
    node.kill()
    _, alive = psutil.wait_procs(below, timeout=10)
    for process in alive:
        process.kill()
    node.communicate()
    assert alive == []


def test_sigterm_to_every_process_still_saves(text: Path, tmp_path: Path) -> None:
    """Some engines signal the whole tree: torchrun may then say what it likes, nothing is lost."""
    run = new_run(text, tmp_path, num_ranks=1, checkpoint={"every_steps": 100, "keep": 2}, steps=10_000)
    node = run.start()
    run.wait_for(node, attempt=1, step=3)
    for process in (*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)):
        process.send_signal(signal.SIGTERM)
    output, _ = node.communicate(timeout=60)

    assert node.returncode == ExitCode.RECOVER, output
    assert run.checkpoints()[0].step >= 3


def test_a_loss_that_is_no_number_exits_70_and_is_never_saved(text: Path, tmp_path: Path) -> None:
    optimizer = {"learning_rate": 1e30, "warmup_steps": 0, "ema_decay": 0.9}
    run = new_run(text, tmp_path, num_ranks=1, optimizer=optimizer, log_every_steps=100,
                  checkpoint={"every_steps": 4, "keep": 3})

    code, output = run.finish()

    assert code == ExitCode.BROKEN, output
    message = assert_one_clear_message(output)
    assert "not finite any more at step 2: " in message and "lower train.optimizer.learning_rate" in message
    assert run.checkpoints() == []
    assert run.folder.attempt(1).end.exit_code == ExitCode.BROKEN


def test_a_killed_rank_is_a_crash_and_leaves_no_process(text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, steps=10_000)
    node = run.start()
    run.wait_for(node, attempt=1, step=5, durable=4)
    ranks = ranks_of(node)
    ranks[1].kill()
    output, _ = node.communicate(timeout=60)

    assert node.returncode not in list(ExitCode), output
    assert not any(process.is_running() for process in ranks)
    assert run.folder.attempt(1).end.exit_code == node.returncode
    assert run.checkpoints()[0].step >= 4


def test_ranks_on_two_nodes_share_one_attempt_and_two_runs_there_meet_at_ports_of_their_own(
        text: Path, tmp_path: Path) -> None:
    place = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1"}
    runs = [new_run(text, tmp_path / name, num_ranks=1, steps=2) for name in ("one", "other")]
    nodes = [run.start(SKYPILOT_NODE_RANK=str(rank), **place) for run in runs for rank in (0, 1)]
    outputs = [node.communicate(timeout=120)[0] for node in nodes]

    assert [node.returncode for node in nodes] == [0] * 4, "\n".join(outputs)
    for run in runs:
        assert [files.attempt.number for files in run.folder.attempts()] == [1]
        assert [(manifest.step, manifest.world_size) for manifest in run.checkpoints()] == [(2, 2)]


def test_a_node_with_another_text_is_named_before_the_first_step(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(reversed(text.read_text().split("\n\n"))))
    place = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1"}
    nodes = [new_run(source, tmp_path, num_ranks=1, steps=2).start(SKYPILOT_NODE_RANK=str(rank), **place)
             for rank, source in enumerate((text, other))]
    outputs = [node.communicate(timeout=60)[0] for node in nodes]

    assert [node.returncode for node in nodes] == [ExitCode.BAD_CONFIG] * 2, "\n".join(outputs)
    for output in outputs:
        # Before it torchrun may tell of its barrier at the end: the first node, with its store, may be gone.
        message = assert_one_clear_message(output[output.index("error: "):])
        assert message.startswith("error: data.source: the text on rank 1 (")
        assert "step 1/" not in output


def test_after_three_crashes_without_a_newer_checkpoint_the_fourth_attempt_exits_70(
        text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path)
    for files in crashes(3):
        number = files.attempt.number
        run.folder.write(f"attempts/{number}/attempt.json", files.attempt)
        run.folder.write(f"attempts/{number}/end.json", files.end)

    code, output = run.finish()

    assert code == ExitCode.BROKEN
    message = assert_one_clear_message(output)
    assert "the last 3 attempts crashed without a newer checkpoint" in message
    assert "ldlm resume RUN" in message
    assert run.folder.attempt(4).end.exit_code == ExitCode.BROKEN


# -- one end out of many ---------------------------------------------------------------------------


@pytest.mark.parametrize(("ends", "stopped", "code"), [
    ([DONE, DONE], "", 0),
    ([SAVED, SAVED], "asked to stop", 75),
    ([SAVED, DONE], "asked to stop", 75),
    ([DONE, RankEnd(78, "bad")], "", 78),
    ([RankEnd(1, "crash"), RankEnd(70, "nan")], "", 70),
    ([RankEnd(1, "crash"), RankEnd(78, "bad")], "asked to stop", 78),
    ([DONE, RankEnd(1, "crash")], "", 1),
    ([DONE], "", DIED),
    ([], "", DIED),
    ([SAVED], "asked to stop", 75),
    ([], "asked to stop", 75),
    ([RankEnd(1, "could not save")], "asked to stop", 1),
])
def test_the_gravest_end_of_any_rank_is_the_node_s(ends: list[RankEnd], stopped: str, code: int) -> None:
    assert node_end(ends, 2, returncode=1, stopped=stopped).code == code


def test_ranks_that_died_are_counted_and_their_possible_reasons_named() -> None:
    end = node_end([DONE], 8, returncode=-9)
    assert "7 of 8 ranks died without a word" in end.reason and "out of memory" in end.reason


# -- three crashes -----------------------------------------------------------------------------------

T0 = datetime(2026, 11, 1, tzinfo=UTC)


def attempt(number: int, document: Document = Document.TRAIN) -> Attempt:
    return Attempt(number=number, document=document, billed_from=T0 + timedelta(hours=number), offer="",
                   host="h", price_usd_per_hour=Decimal("0.5"))


def ended(number: int, code: int | None, *, preempted: bool = False, hung: bool = False,
          resumed_from: int = 0, durable: int = 0, document: Document = Document.TRAIN) -> AttemptFiles:
    at = T0 + timedelta(hours=number, minutes=30)
    beat = Heartbeat(at=at, step=durable, total_steps=12, resumed_from_step=resumed_from,
                     durable_step=durable, durable_train_s=0, durable_evaluate_s=0, phases=Phases(),
                     tokens_per_s=0, spent_usd=Decimal(0))
    return AttemptFiles(attempt=attempt(number, document), heartbeat=beat,
                        end=AttemptEnd(at=at, exit_code=code, preempted=preempted, reason="", hung=hung))


def crashes(num: int) -> list[AttemptFiles]:
    return [ended(number, DIED) for number in range(1, num + 1)]


def test_three_crashes_are_enough() -> None:
    check_progress(crashes(2), attempt(3), None)
    with pytest.raises(StuckError, match="the last 3 attempts crashed"):
        check_progress(crashes(3), attempt(4), None)


def test_three_that_hung_are_enough_and_crashes_among_them_count() -> None:
    hung = [ended(number, ExitCode.RECOVER, hung=True) for number in (1, 2, 3)]
    check_progress(hung[:2], attempt(3), None)
    check_progress([ended(1, ExitCode.RECOVER, hung=True, durable=4), *hung[1:]], attempt(4), None)
    with pytest.raises(StuckError, match="the last 3 attempts hung without"):
        check_progress(hung, attempt(4), None)
    with pytest.raises(StuckError, match="the last 3 attempts crashed or hung without"):
        check_progress([ended(1, DIED), *hung[1:]], attempt(4), None)


def test_ten_attempts_that_were_stopped_before_they_saved_anything_are_enough() -> None:
    stopped = [ended(number, DIED if number % 3 == 0 else ExitCode.RECOVER) for number in range(1, 11)]
    check_progress(stopped[:9], attempt(10), None)
    with pytest.raises(StuckError, match="the last 10 attempts ended without a newer checkpoint than step 0"):
        check_progress(stopped, attempt(11), None)
    check_progress([ended(1, ExitCode.RECOVER, durable=4), *stopped[1:]], attempt(11), None)


@pytest.mark.parametrize("second", [
    ended(2, DIED, durable=4),
    ended(2, None, preempted=True),
    ended(2, 137, preempted=True),
    ended(2, ExitCode.RECOVER),
    ended(2, ExitCode.BAD_CONFIG),
    ended(2, ExitCode.BROKEN),
    AttemptFiles(attempt=attempt(2)),
], ids=["progress", "taken", "killed when taken", "saved", "bad config", "broken", "vanished"])
def test_what_is_no_crash_of_this_document_breaks_the_row(second: AttemptFiles) -> None:
    check_progress([ended(1, DIED), second, ended(3, DIED), attempt_without_heartbeat(4)], attempt(5), None)


def test_crashes_of_the_benchmark_are_its_own() -> None:
    bench = [ended(number, DIED, document=Document.BENCH) for number in (3, 4)]
    check_progress([*crashes(2), *bench], attempt(5), None)
    check_progress([*crashes(2), *bench], attempt(5, Document.BENCH), None)


def attempt_without_heartbeat(number: int) -> AttemptFiles:
    return ended(number, DIED).model_copy(update={"heartbeat": None})


def test_a_heartbeat_is_not_needed_to_count_a_crash() -> None:
    with pytest.raises(StuckError):
        check_progress([attempt_without_heartbeat(number) for number in (1, 2, 3)], attempt(4), None)


def test_a_person_who_resumes_starts_the_count_anew() -> None:
    resumed = T0 + timedelta(hours=3, minutes=45)
    check_progress(crashes(3), attempt(4), resumed)
    check_progress(crashes(5), attempt(6), resumed)
    with pytest.raises(StuckError):
        check_progress(crashes(6), attempt(7), resumed)
