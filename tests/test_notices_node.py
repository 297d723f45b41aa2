"""Real nodes and ranks whose cloud takes the machine back: what they save, and when they leave.

The machine really ends when its notice is over: everything on it is killed, so that only what ended before
has an exit code.
"""

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import psutil  # noqa: E402

from tests.notice_server import Aws, Azure, Garbage, Gcp, NoticeServer, serving  # noqa: E402
from tests.trainer_runs import ROOT, TrainerRun, kill_tree, tiny_config, write_text  # noqa: E402
from trainer.contract import ExitCode  # noqa: E402
from trainer.last_save import LastSave  # noqa: E402
from trainer.notices import cloud_named  # noqa: E402

ENDLESS = {"steps": 100_000, "evaluate_every_steps": 100_000}
SLOW_SAVE = f"{ROOT / 'tests' / 'slow_save'}:{ROOT}"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")


@pytest.fixture
def nodes() -> Iterator[list["subprocess.Popen[str]"]]:
    """Ended with the test, whatever became of it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for node in started:
        if node.poll() is None:
            kill_tree(node)


def new_run(text: Path, tmp_path: Path, *, every_steps: int = 100_000, **changes: object) -> TrainerRun:
    checkpoint = {"every_steps": every_steps, "keep": 2}
    return TrainerRun(tiny_config(text, **{**ENDLESS, "checkpoint": checkpoint, **changes}),
                      tmp_path / "store", num_ranks=1)


def ends_after(node: "subprocess.Popen[str]", notice_s: float) -> None:
    """The machine of a node is gone so many seconds from now."""
    def end() -> None:
        if node.poll() is None:
            for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
                process.kill()

    timer = threading.Timer(notice_s, end)
    timer.daemon = True
    timer.start()


def output_of(node: "subprocess.Popen[str]") -> str:
    output, _ = node.communicate(timeout=150)
    assert "Traceback" not in output, output
    return output


@pytest.mark.parametrize(("kind", "name"), [
    (Azure, "Azure"), (Gcp, "Google"), (Aws, "AWS")])
def test_a_machine_that_is_taken_back_has_saved_its_newest_step_before_it_is_gone(
        kind: type[NoticeServer], name: str, text: Path, tmp_path: Path, nodes) -> None:
    run = new_run(text, tmp_path)
    with serving(kind(first_answer_s=3.0)) as server:
        nodes.append(node := run.start(**server.environment))
        run.wait_for(node, attempt=1, step=3)
        server.take_back()
        ends_after(node, server.notice_s)
        output = output_of(node)

    assert node.returncode == ExitCode.RECOVER, output
    step = run.checkpoints()[0].step
    end = run.folder.attempt(1).end
    assert re.fullmatch(f"{name} takes this machine back at [0-9:]+ UTC; step {step} is durable", end.reason)
    assert step >= 3 and end.preempted and end.exit_code == ExitCode.RECOVER


def test_where_a_last_checkpoint_does_not_fit_it_is_said_as_soon_as_that_is_known_and_the_run_leaves_at_once(
        text: Path, tmp_path: Path, nodes) -> None:
    """Slurm gives twelve seconds between SIGTERM and SIGKILL here, of which five are for the record.
    The attempt after it knows that from its beginning."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.touch(0o755)
    program.write_text("#!/bin/sh\necho 'KillWait                = 12 sec'\n")
    run = new_run(text, tmp_path, checkpoint={"every_minutes": 0.1, "keep": 2})
    slurm = {"SKYPILOT_CLUSTER_INFO": '{"cloud": "Slurm"}', "PYTHONPATH": SLOW_SAVE, "TEST_SAVE_S": "8",
             "PATH": f"{program.parent}:/usr/bin:/bin"}
    nodes.append(node := run.start(**slurm))
    run.wait_for(node, attempt=1, durable=1)
    node.terminate()
    ends_after(node, 12)
    output = output_of(node)

    assert node.returncode == ExitCode.RECOVER, output
    reckoned = r"[0-9.]+ MiB at [0-9.]+ MiB/s: [0-9]+ s"
    said = (rf"Slurm gives 12 s of notice: a last checkpoint does not fit \({reckoned}\), and on a notice "
            "the run leaves without one\n")
    assert len(re.findall(said, output)) == 1, output
    end = run.folder.attempt(1).end
    left = rf"asked to stop, too soon for a last checkpoint \({reckoned}\); step (\d+) is durable"
    assert (found := re.fullmatch(left, end.reason)), end.reason
    assert int(found[1]) == run.checkpoints()[0].step
    assert not end.preempted and end.exit_code == ExitCode.RECOVER

    nodes.append(node := run.start(**slurm))
    run.wait_for(node, attempt=2, step=int(found[1]) + 1)
    node.terminate()  # long before it has saved itself
    output = output_of(node)

    assert len(re.findall(said, output)) == 1, output
    assert re.fullmatch(left, run.folder.attempt(2).end.reason)


def test_an_end_that_is_told_long_before_is_heard_early_enough_for_a_last_checkpoint(
        text: Path, tmp_path: Path, nodes) -> None:
    run = new_run(text, tmp_path, every_steps=4)
    server = Azure(first_answer_s=0.0, kind="Redeploy", notice_s=600.0)
    nodes.append(node := run.start())
    run.wait_for(node, attempt=1, durable=8)
    node.terminate()
    output_of(node)
    beat = run.folder.attempt(1).heartbeat
    slow = beat.model_copy(update={"pace": beat.pace.model_copy(update={"save_s": 200.0})})
    run.folder.write("attempts/1/heartbeat.json", slow)
    run = new_run(text, tmp_path)  # and from now on it does not save by itself
    with serving(server):
        nodes.append(node := run.start(**server.environment))
        run.wait_for(node, attempt=2, step=beat.step + 3)
        server.take_back()
        output = output_of(node)

    assert node.returncode == ExitCode.RECOVER, output
    step = run.checkpoints()[0].step
    assert re.fullmatch(f"Azure moves this machine at [0-9:]+ UTC; step {step} is durable",
                        run.folder.attempt(2).end.reason)
    assert "Azure gives 30 s of notice: a last checkpoint does not fit" in output


def test_a_save_that_nobody_could_foresee_to_be_too_slow_ends_in_time_for_the_record(
        text: Path, tmp_path: Path, nodes) -> None:
    run, server = new_run(text, tmp_path), Azure(first_answer_s=0.0, notice_s=14.0)
    with serving(server):
        nodes.append(node := run.start(**server.environment, PYTHONPATH=SLOW_SAVE, TEST_SAVE_S="60"))
        run.wait_for(node, attempt=1, step=3)
        server.take_back()
        ends_after(node, server.notice_s)
        output = output_of(node)

    assert node.returncode == ExitCode.RECOVER, output
    end = run.folder.attempt(1).end
    assert end.preempted and end.reason.startswith("Azure takes this machine back at ")
    assert end.reason.endswith("; 1 of 1 ranks ended without a last checkpoint")


def test_a_notice_to_one_node_ends_all_of_them_with_one_checkpoint(text: Path, tmp_path: Path, nodes) -> None:
    place = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1"}
    run = new_run(text, tmp_path)
    with serving(Azure(first_answer_s=0.0)) as quiet, serving(Azure(first_answer_s=0.0)) as server:
        for rank, own in enumerate((quiet, server)):
            nodes.append(run.start(SKYPILOT_NODE_RANK=str(rank), **place, **own.environment))
        run.wait_for(nodes[0], attempt=1, step=3)
        server.take_back()
        ends_after(nodes[1], server.notice_s)
        outputs = [output_of(node) for node in nodes]

    assert [node.returncode for node in nodes] == [ExitCode.RECOVER] * 2, "\n".join(outputs)
    (saved,) = run.checkpoints()
    assert saved.step >= 3 and saved.world_size == 2
    end = run.folder.attempt(1).end
    assert re.fullmatch(f"node 1: Azure takes this machine back at [0-9:]+ UTC; step {saved.step} is durable",
                        end.reason)
    assert end.preempted


def test_a_stop_while_the_newest_step_is_being_saved_does_not_save_it_twice(
        text: Path, tmp_path: Path, nodes) -> None:
    run = new_run(text, tmp_path, every_steps=1,
                  optimizer={"learning_rate": 1e-3, "warmup_steps": 2, "ema_decay": 0.9, "round_steps": 1})
    nodes.append(node := run.start(PYTHONPATH=SLOW_SAVE, TEST_SAVE_S="1"))
    run.wait_for(node, attempt=1, durable=1)
    node.terminate()
    output = output_of(node)

    assert node.returncode == ExitCode.RECOVER, output
    assert f"asked to stop; step {run.checkpoints()[0].step} is durable" in output


FITS = "notice: a last checkpoint fits"
FITS_NOT = "notice: a last checkpoint does not fit ({}), and on a notice the run leaves without one"


class Measured:
    """Stands for the saves of a run: what they have measured."""

    upload_bytes_per_s: float | None = None
    spared_bytes = 2**30

    def in_flight_bytes(self) -> float:
        return 0.0


@pytest.mark.parametrize(("cloud", "rates", "said"), [
    ("azure", [None, 200, 300, 90, 80, 200], [
        None, f"Azure gives 30 s of {FITS} (2.0 GiB at 200.0 MiB/s: 10 s)", None,
        None, f"Azure gives 30 s of {FITS_NOT.format('2.0 GiB at 80.0 MiB/s: 26 s')}",
        f"Azure gives 30 s of {FITS} (2.0 GiB at 200.0 MiB/s: 10 s)"]),
    ("vast", [None, 200], ["Vast gives no notice: what is not durable is lost with a machine", None]),
    ("local", [None, 200, 10], [
        None, None, f"the engine gives 120 s of {FITS_NOT.format('2.0 GiB at 10.0 MiB/s: 205 s')}"]),
    ("", [None, 1], [None, None]),
])
def test_whether_notices_are_worth_anything_is_said_when_it_is_known_and_when_it_changes(
        cloud: str, rates: list[float | None], said: list[str | None]) -> None:
    saves = Measured()
    last_save = LastSave(cloud_named(cloud), saves, lambda step: 3 * 2**30)
    news = []
    for rate in rates:
        saves.upload_bytes_per_s = rate and rate * 2**20
        news.append(last_save.news())
    assert news == said
    assert last_save.forecast().fits == (cloud == "azure")


def test_nobody_counts_on_a_last_checkpoint_before_a_save_of_the_run_was_measured() -> None:
    last_save = LastSave(cloud_named("azure"), Measured(), lambda step: 2**30)
    assert not last_save.forecast().fits


def test_where_the_cloud_s_service_is_absent_training_goes_on_with_one_line_about_it_at_most(
        text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, steps=12)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        code, output = run.finish(SKYPILOT_CLUSTER_INFO='{"cloud": "GCP"}',
                                  GCE_METADATA_HOST=f"127.0.0.1:{closed.getsockname()[1]}")

    assert code == ExitCode.FINISHED, output
    assert "Traceback" not in output and output.count("does not say when it takes this machine back") <= 1


def test_where_something_else_answers_training_goes_on(text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, steps=12)
    with serving(Garbage()) as server:
        code, output = run.finish(SKYPILOT_CLUSTER_INFO='{"cloud": "Azure"}',
                                  AZURE_POD_IDENTITY_AUTHORITY_HOST=f"127.0.0.1:{server.server_port}")
        assert len(server.asked) >= 3

    assert code == ExitCode.FINISHED, output
    assert "Traceback" not in output and "asked to stop" not in output
