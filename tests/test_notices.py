"""What a machine hears of its end: each cloud's protocol against a server of it, and what follows from it."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.notice_server import Aws, Azure, Garbage, Gcp, NoticeServer, serving
from trainer.contract import attempt_file
from trainer.notices import (
    ASKED,
    AwsAction,
    AzureEvents,
    Cloud,
    GoogleFlag,
    Notice,
    SlurmTime,
    cloud_named,
    final_save_fits,
    watch,
)
from trainer.run_folder import Heartbeat, Phases, RunFolder, SavePace
from trainer.stop_request import SaveTime
from trainer.store import local_store_url, open_store

SOURCES = {Azure: AzureEvents, Gcp: GoogleFlag, Aws: AwsAction}
MIB = 2**20


@pytest.fixture
def serve() -> Iterator[Callable[[NoticeServer], str]]:
    """Starts a server; gives where it is."""
    with ExitStack() as stack:
        yield lambda server: f"127.0.0.1:{stack.enter_context(serving(server)).server_port}"


def left_s(notice: Notice | None) -> float:
    assert notice and notice.left_s is not None
    return notice.left_s


@pytest.mark.parametrize(("kind", "name", "notice_s"), [
    (Azure, "azure", 30), (Gcp, "gcp", 30), (Aws, "aws", 120)])
def test_each_cloud_says_nothing_then_that_it_takes_the_machine_back_and_when(
        kind, name, notice_s, serve, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = kind(first_answer_s=0.0)
    ask = SOURCES[kind](serve(server))
    assert ask() is None
    server.take_back()
    notice = ask()
    assert notice.is_taken and notice_s - 3 < left_s(notice) <= notice_s
    assert cloud_named(name).notice_s == notice_s
    assert notice.why.startswith(f"{cloud_named(name).name} takes this machine back at ")


def test_a_clock_that_is_wrong_by_more_than_the_notice_does_not_matter(serve) -> None:
    for kind, notice_s in ((Azure, 30), (Aws, 120)):
        for ahead_s in (-600.0, 600.0):
            server = kind(first_answer_s=0.0, ahead_s=ahead_s)
            server.take_back()
            assert notice_s - 3 < left_s(SOURCES[kind](serve(server))()) <= notice_s


def test_azure_switches_its_service_on_at_the_first_question_which_takes_longer_than_others(
        serve, monkeypatch) -> None:
    monkeypatch.setattr("trainer.notices.ANSWER_S", 0.2)
    server = Azure(first_answer_s=1.0)
    ask = AzureEvents(serve(server))
    assert ask() is None and ask() is None
    assert len(server.asked) == 2


def test_azure_s_events_that_are_of_another_machine_or_a_pause_are_no_end_and_the_first_end_counts(
        serve) -> None:
    server = Azure(first_answer_s=0.0)
    soon, in_days = server.now() + timedelta(seconds=30), server.now() + timedelta(days=3)
    others = (server.event("Preempt", soon, "train-1", "train-01"), server.event("Freeze", soon, "train-0"))
    server.other_events = others
    ask = AzureEvents(serve(server))
    assert ask() is None
    server.other_events = (*others, server.event("Redeploy", in_days, "train-0"))
    assert left_s(ask()) > 2 * 86400
    server.take_back()
    assert 27 < left_s(ask()) <= 30


@pytest.mark.parametrize(("event", "words"), [("Reboot", "restarts"), ("Redeploy", "moves"),
                                              ("Terminate", "deletes")])
def test_azure_s_other_events_end_a_machine_too_and_what_has_begun_leaves_no_time(
        serve, event, words) -> None:
    server = Azure(first_answer_s=0.0, kind=event, notice_s=-1.0, resources=("other", "TRAIN-0"))
    server.take_back()
    notice = AzureEvents(serve(server))()
    assert notice.why.startswith(f"Azure {words} this machine at ") and left_s(notice) <= 0


def test_google_is_asked_once_and_answers_when_the_flag_changes(serve) -> None:
    server = Gcp()
    ask, heard = GoogleFlag(serve(server)), []
    assert ask() is None
    waiting = threading.Thread(target=lambda: heard.append(ask()))
    waiting.start()
    while len(server.asked) < 2:
        time.sleep(0.01)
    assert "wait_for_change=true" in server.asked[1] and not heard
    server.take_back()
    waiting.join()
    assert heard[0].is_taken and len(server.asked) == 2


def test_a_flag_of_google_that_changed_between_two_questions_is_not_missed(serve) -> None:
    server = Gcp()
    ask = GoogleFlag(serve(server))
    assert ask() is None
    server.take_back()
    assert ask().is_taken


def test_aws_gets_a_new_token_when_the_old_one_has_expired(serve) -> None:
    server = Aws(token_s=0.0)
    ask = AwsAction(serve(server))
    with pytest.raises(OSError, match="401"):
        ask()
    server.token_s = 60.0
    assert ask() is None and ask() is None
    assert [one.split()[0] for one in server.asked] == ["PUT", "GET", "PUT", "GET", "GET"]


def test_slurm_s_end_of_time_is_known_from_the_beginning_and_nobody_s_fault(tmp_path, monkeypatch) -> None:
    now = time.time()
    assert SlurmTime({})() is None and SlurmTime({"SLURM_JOB_END_TIME": "Unknown"})() is None
    notice = SlurmTime({"SLURM_JOB_END_TIME": str(int(now + 60))})()
    assert not notice.is_taken and 57 < left_s(notice) <= 60 and "Slurm ends this job at " in notice.why

    monkeypatch.setenv("PATH", str(tmp_path))
    assert cloud_named("slurm").notice_s == 30  # its default
    program = tmp_path / "scontrol"
    program.write_text("#!/bin/sh\necho 'KeepAliveTime           = SYSTEM_DEFAULT'\n"
                       "echo 'KillWait                = 45 sec'\n")
    program.chmod(0o755)
    assert cloud_named("slurm").notice_s == 45


# -- an end that is known long before -------------------------------------------------------------------


def heard_at_s(save_s: float, *lefts_s: float | None) -> float:
    """What is left when a machine's end is heard whose source gives these answers, None: it knows of none."""
    answers = iter([left and Notice("ends", time.monotonic() + left) for left in lefts_s])
    heard: list[Notice] = []
    watch(Cloud("A cloud", 30, 0.0), lambda: next(answers), heard.append, save_s=lambda: save_s)
    return round(left_s(heard[0]), -1)


def test_an_end_known_long_before_is_heard_when_a_last_checkpoint_needs_the_time() -> None:
    """It may have to wait for the one under way, and state that is not rounded is larger."""
    assert heard_at_s(0, 7200, 1000, 610, 600, 310, 120) == 120  # no save was measured
    assert heard_at_s(20, 7200, 1000, 610, 600, 310, 120) == 120
    assert heard_at_s(100, 7200, 1000, 610, 600, 310, 300, 120) == 300
    assert heard_at_s(200, None, 600, 310, 120) == 600  # Azure told of it when training was under way
    assert heard_at_s(200, 60) == 60


def test_who_begins_with_little_more_time_than_a_last_checkpoint_needs_trains_nearly_to_the_end() -> None:
    """Each attempt would leave soon after it has begun, and keep less than by its other checkpoints."""
    assert heard_at_s(1000, 3600, 3000, 2000, 310, 120) == 120


# -- nobody, or nonsense -----------------------------------------------------------------------------


def test_what_is_no_answer_is_no_notice_and_is_said_once(serve, capsys) -> None:
    """Garbage from every source, then from nobody at all; the tenth question is the last."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        for source in (AzureEvents, GoogleFlag, AwsAction):
            for host in (serve(Garbage()), nobody):
                ask, waits = source(host), []

                def wait(seconds: float, waits: list[float] = waits) -> None:
                    waits.append(seconds)
                    if len(waits) == 10:
                        raise StopIteration

                with pytest.raises(StopIteration):
                    watch(Cloud("A cloud", 30, 1.0), ask, lambda notice: pytest.fail(str(notice)), wait)
                said = capsys.readouterr().out
                assert said.count("\n") == 1, said
                assert said.startswith("warning: A cloud does not say when it takes this machine back (")
                assert waits[:3] == [2, 4, 8] and max(waits) == 15


def test_a_service_that_is_away_for_a_moment_is_not_worth_a_word(capsys) -> None:
    answers = iter([OSError("503"), OSError("503"), None, OSError("503"), ASKED])

    def ask() -> Notice | None:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    heard: list[Notice] = []
    watch(Cloud("A cloud", 30, 0.001), ask, heard.append)
    assert heard == [ASKED] and capsys.readouterr().out == ""


# -- what follows ------------------------------------------------------------------------------------


def test_the_cloud_s_word_is_the_reason_and_the_first_end_counts() -> None:
    cloud, signal = Notice("Google takes it", 130.0, is_taken=True), Notice("asked to stop", 129.0)
    for first, second in ((cloud, signal), (signal, cloud)):
        assert second.with_earlier(first) == ("Google takes it", 129.0, True)
    assert signal.with_earlier(ASKED) == ASKED.with_earlier(signal) == signal
    assert ASKED.with_earlier(None) == ASKED and ASKED.left_s is None


def test_a_notice_travels_between_the_processes_of_a_node(tmp_path: Path) -> None:
    assert Notice.find(tmp_path) is None
    for notice in (ASKED, Notice("Azure takes it", 0.1 + 0.2, is_taken=True)):
        notice.write(tmp_path)
        assert Notice.find(tmp_path) == notice
    assert [path.name for path in tmp_path.iterdir()] == ["notice.json"]


def test_torchrun_ends_its_ranks_before_the_machine_ends() -> None:
    clouds = [cloud_named(name) for name in ("azure", "gcp", "aws", "slurm", "local", "vast", "lambda", "")]
    assert [cloud.shutdown_timeout_s for cloud in clouds] == [25, 25, 115, 25, 115, 100, 100, 100]


@pytest.mark.parametrize(("num_bytes", "rate", "left", "fits", "words"), [
    (2400 * MIB, 100 * MIB, 30, True, "2.3 GiB at 100.0 MiB/s: 24 s"),
    (2600 * MIB, 100 * MIB, 30, False, "2.5 GiB at 100.0 MiB/s: 26 s"),
    (MIB, 100 * MIB, 3, False, "1.0 MiB at 100.0 MiB/s: 0 s"),  # the record of the end needs that
    (MIB, 100 * MIB, -3, False, "1.0 MiB at 100.0 MiB/s: 0 s"),
    (0, 100 * MIB, 3, True, "0.0 MiB"),
    (2600 * MIB, None, 30, True, "2.5 GiB"),
    (2600 * MIB, 100 * MIB, None, True, "2.5 GiB"),
])
def test_a_last_checkpoint_is_tried_where_it_fits_or_where_that_is_not_known(
        num_bytes, rate, left, fits, words) -> None:
    assert final_save_fits(num_bytes, rate, left) == (fits, words)


def test_a_machine_without_skypilot_is_of_no_cloud_and_nobody_is_asked() -> None:
    assert cloud_named("") == Cloud("") and cloud_named("").source is None
    assert json.loads(Azure().environment["SKYPILOT_CLUSTER_INFO"])["cloud"].lower() == "azure"


def test_how_long_a_save_takes_is_read_from_heartbeats_and_holds_where_the_store_is_away(
        tmp_path: Path) -> None:
    folder, now_s = RunFolder(open_store(local_store_url(tmp_path)), "run"), [0.0]
    save_s = SaveTime(folder, lambda: now_s[0])
    assert save_s() == 0
    for number, pace in ((1, 30.0), (2, 40.0), (3, None)):
        folder.write(attempt_file(number, "heartbeat.json"), Heartbeat(
            at=datetime.now(UTC), step=1, total_steps=2, resumed_from_step=0, durable_step=1,
            durable_train_s=0, durable_evaluate_s=0, phases=Phases(), tokens_per_s=0, spent_usd=Decimal(0),
            pace=pace and SavePace(interval_s=60, lost_s=90, num_bytes=1, save_s=pace, stall_s=0)))
    assert save_s() == 0  # it has just asked
    now_s[0] = 60.0
    assert save_s() == 40
    (tmp_path / "run").rename(tmp_path / "away")
    (tmp_path / "run").touch()  # nothing can be read below a file
    now_s[0] = 120.0
    assert save_s() == 40
