"""The thread of a node and the word of a controller: a real webhook server, a real store, no trainer."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from news_examples import attempt, beat, folder_with, minute
from test_learning import START, configured, evaluation
from webhook_server import WebhookServer, webhook_server

from trainer.config import TrainConfig
from trainer.contract import Outcome
from trainer.run_folder import AttemptFiles, RunFolder, RunOutcome
from trainer.tell import Teller, Watch, Webhook, tell_end

LOST = attempt(1, beat(120), preempted=True, reason="spot")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def hook() -> Iterator[WebhookServer]:
    with webhook_server() as found:
        yield found


def teller(folder: RunFolder, hook: WebhookServer, config: TrainConfig | None = None, **more: str) -> Teller:
    """As the node of the newest attempt starts it."""
    environ = {"LDLM_WEBHOOK_URL": hook.url, "LDLM_MAX_COST_USD": "1"} | more
    attempts = folder.attempts()
    watch = Watch(folder, attempts[-1].attempt, attempts, folder.events(), config or configured(), environ)
    return Teller(watch, folder, Webhook(environ), every_s=0.02)


def wait_until(is_true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def write_beat(folder: RunFolder, files: AttemptFiles) -> None:
    assert files.heartbeat
    folder.write(f"attempts/{files.attempt.number}/heartbeat.json", files.heartbeat)


def test_an_attempt_tells_of_the_machine_before_it_and_of_each_thing_when_it_happens_and_once(
        tmp_path: Path, hook: WebhookServer) -> None:
    folder = folder_with(tmp_path, LOST, attempt(2))
    found = teller(folder, hook)
    wait_until(lambda: hook.ids == ["run/preempted-1"])
    write_beat(folder, attempt(2, beat(120, resumed_from=120)))
    wait_until(lambda: hook.ids[1:] == ["run/recovered-2"])
    write_beat(folder, attempt(2, beat(180, resumed_from=120, usd="0.81")))
    wait_until(lambda: hook.ids[2:] == ["run/cap-80-percent"])
    folder.write("outcome.json", RunOutcome(outcome=Outcome.LIMIT, at=minute(9), step=180, reason="$1.00"))
    found.end(is_last=True)
    told = ["run/preempted-1", "run/recovered-2", "run/cap-80-percent", "run/limit-reached"]
    assert hook.ids == told
    assert hook.messages[2]["text"] == "run: 81% of the cap of $1.00 are spent ($0.8100, step 180)"
    teller(folder, hook).end(is_last=True)  # its node starts again, or another one does
    tell_end(folder, folder.read("outcome.json", RunOutcome), {"LDLM_WEBHOOK_URL": hook.url})
    assert hook.ids == told


def test_a_run_that_does_not_learn_is_told_when_its_evaluation_says_so(
        tmp_path: Path, hook: WebhookServer) -> None:
    folder = folder_with(tmp_path, attempt(1, beat(400)))
    found = teller(folder, hook, configured())
    good, bad = evaluation(748), evaluation(900, latent_variance=0.3)
    for number, row in enumerate([START, good, bad, evaluation(1000, latent_variance=0.2)]):
        text = json.dumps({"time": 0.0} | row) + "\n"
        folder.write_bytes(f"attempts/1/metrics/{number:06d}.jsonl", text.encode())
        scores = {name: value for name, value in row.items() if name.startswith("eval/")}
        write_beat(folder, attempt(1, beat(400, **scores)))
        if row is bad:
            wait_until(lambda: hook.ids == ["run/not-learning"])
    found.end(is_last=True)
    assert hook.ids == ["run/not-learning"]
    assert "it does not learn, it is collapsed at step 900: variance of z across texts is 0.30" in (
        hook.messages[0]["sentence"])


def test_what_did_not_arrive_is_sent_by_the_last_word_of_the_node(
        tmp_path: Path, hook: WebhookServer) -> None:
    hook.answers = [500, 500, 200]
    folder = folder_with(tmp_path, LOST, attempt(2))
    found = teller(folder, hook)
    wait_until(lambda: len(hook.messages) == 1)
    found.end(is_last=True)
    assert hook.ids == ["run/preempted-1"] * 3


def test_the_next_attempt_sends_what_the_last_could_not(tmp_path: Path, hook: WebhookServer) -> None:
    folder = folder_with(tmp_path, LOST, attempt(2))
    hook.answers = [503, 200]
    found = teller(folder, hook)
    wait_until(lambda: (tmp_path / "run/news/1/preempted-1/webhook.1.failed").exists())
    found.end(is_last=False)
    teller(folder, hook).end(is_last=True)
    assert hook.ids == ["run/preempted-1"] * 2


def test_a_webhook_that_is_silent_holds_no_node_up_that_goes_on(tmp_path: Path, hook: WebhookServer,
                                                                capfd: pytest.CaptureFixture[str]) -> None:
    hook.answers = ["silence"]
    found = teller(folder_with(tmp_path, LOST, attempt(2)), hook)
    wait_until(lambda: len(hook.messages) == 1)
    before = time.thread_time()
    found.end(is_last=False)  # returns while the request is under way
    assert time.thread_time() - before < 1 and not hook.is_over.is_set()
    hook.is_over.set()
    wait_until(lambda: not found._thread.is_alive())
    assert "does not answer" in capfd.readouterr().out
    teller(folder_with(tmp_path / "b", LOST, attempt(2)), hook, LDLM_WEBHOOK_URL="").end(is_last=True)
    assert len(hook.messages) == 1


@pytest.mark.parametrize("url", ["", "http://hooks.example.org/a-secret", "not a url a-secret"])
def test_without_a_usable_address_all_is_recorded_and_nothing_sent(
        url: str, tmp_path: Path, hook: WebhookServer, capfd: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path, LOST, attempt(2))
    teller(folder, hook, LDLM_WEBHOOK_URL=url).end(is_last=True)
    assert (tmp_path / "run/news/1/preempted-1.json").exists()
    said = capfd.readouterr().out
    assert "a-secret" not in said and ("warning: LDLM_WEBHOOK_URL: " in said) is bool(url)


def test_a_record_that_cannot_be_read_is_said_and_ends_nothing(
        tmp_path: Path, hook: WebhookServer, capfd: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path, LOST, attempt(2))
    found, said = teller(folder, hook), ""
    folder.write_bytes("attempts/2/heartbeat.json", b'{"at": "2026-')
    while "is not told now" not in said:
        said += capfd.readouterr().out
        time.sleep(0.01)
    write_beat(folder, attempt(2, beat(180, resumed_from=120)))
    found.end(is_last=True)
    assert hook.ids == ["run/preempted-1", "run/recovered-2"]
    assert "Traceback" not in said + capfd.readouterr().out


def controller(folder: RunFolder, hook: WebhookServer) -> "subprocess.CompletedProcess[str]":
    """What SkyPilot's server runs when it gives up waiting."""
    own = {"LDLM_WEBHOOK_URL": hook.url, "LDLM_RUN_ID": "run", "LDLM_STORE": folder.store.address}
    words = [sys.executable, "-m", "trainer.tell", "no_capacity", "no machine within 6 h"]
    return subprocess.run(words, cwd=ROOT, env=os.environ | own, text=True, capture_output=True, check=False)


def test_that_no_machine_is_to_be_had_is_told_by_the_controller_once_whoever_sees_it_again(
        tmp_path: Path, hook: WebhookServer) -> None:
    folder = folder_with(tmp_path, attempt(1, beat(120, usd="2.5")))
    first, again = controller(folder, hook), controller(folder, hook)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    folder.write("outcome.json", RunOutcome(outcome=Outcome.NO_CAPACITY, at=datetime.now(UTC), step=120,
                                            reason="as the launcher closes it later"))
    tell_end(folder, folder.read("outcome.json", RunOutcome), {"LDLM_WEBHOOK_URL": hook.url})
    (message,) = hook.messages
    assert message["kind"] == "no_capacity"
    assert message["text"] == ("run: it has ended for want of a machine: no machine within 6 h "
                               "($2.50, step 120)")
    assert "told 127.0.0.1: no-capacity" in first.stdout
    kept = [folder.store.get(found.key) for found in folder.store.objects()]
    assert not any(b"a-secret" in text for text in kept) and "a-secret" not in first.stdout + first.stderr


def test_a_run_that_is_started_again_tells_again(tmp_path: Path, hook: WebhookServer) -> None:
    folder = folder_with(tmp_path, attempt(1, beat(120)))
    controller(folder, hook)
    folder.add_event("resumed", minute(30))
    folder.write("attempts/2/attempt.json", attempt(2, at=31).attempt)
    write_beat(folder, attempt(2, beat(180, usd="0.9")))
    controller(folder, hook)
    assert hook.ids == ["run/no-capacity"] * 2
    assert Decimal(hook.messages[1]["spent_usd"]) == Decimal("0.9")
