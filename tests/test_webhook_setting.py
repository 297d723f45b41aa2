"""`ldlm init --webhook`, `ldlm doctor`, and a run that tells of itself: the address is shown nowhere."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_lab import FAKE_NODE, LDLM, ROOT, Checkout, Terminal, environment, ldlm
from webhook_server import WebhookServer, webhook_server

from launcher.engine_folder import engine_home
from launcher.webhook_setting import webhook_envs

URL = "https://hooks.example.org/services/a-secret"


@pytest.fixture
def hook() -> Iterator[WebhookServer]:
    with webhook_server() as found:
        yield found


def init(typed: str) -> "subprocess.CompletedProcess[str]":
    """Named through a pipe, as a script does it."""
    return subprocess.run([*LDLM, "init", "--webhook"], cwd=ROOT, env=environment(), input=typed, text=True,
                          capture_output=True, check=False)


def kept() -> Path:
    return Path(os.environ["LDLM_HOME"], "webhook")


def test_an_address_that_is_piped_is_kept_for_its_user_alone_and_of_it_only_the_host_is_shown() -> None:
    done = init(f"{URL}\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("hooks.example.org is told of every run that is started or resumed from now on\n"
                           "a message for a try: ldlm doctor --webhook\n")
    assert kept().stat().st_mode & 0o777 == 0o600
    assert webhook_envs({}) == {"LDLM_WEBHOOK_URL": URL}
    assert webhook_envs({"LDLM_WEBHOOK_URL": "https://h/x"}) == {"LDLM_WEBHOOK_URL": "https://h/x"}
    assert init("none\n").stdout == "no webhook is told of runs from now on\n"
    assert not kept().exists() and webhook_envs({}) == {}


def test_on_a_terminal_what_is_typed_is_not_shown() -> None:
    screen = Terminal("init", "--webhook")
    screen.wait_for("which is not shown")
    screen.type(f"{URL}\r")
    assert screen.wait() == 0
    assert "hooks.example.org is told" in screen.plain() and "a-secret" not in screen.plain()
    assert webhook_envs({}) == {"LDLM_WEBHOOK_URL": URL}


@pytest.mark.parametrize(("typed", "words"), [
    ("", "it is no URL"), ("a-secret", "it is no URL"),
    ("http://hooks.example.org/a-secret", "must begin with https")])
def test_what_cannot_be_used_is_refused_without_being_shown_and_changes_nothing(
        typed: str, words: str) -> None:
    kept().write_text(URL)
    done = init(typed)
    assert done.returncode == 2
    assert words in done.stderr and "fix:" in done.stderr and "a-secret" not in done.stderr + done.stdout
    assert webhook_envs({}) == {"LDLM_WEBHOOK_URL": URL}


def doctor(*args: str, **env: str) -> dict[str, str]:
    """What it finds of the webhook, as JSON tells it."""
    done = ldlm("doctor", "--infra", "local", "--json", *args, env=environment(**env))
    assert "a-secret" not in done.stdout + done.stderr
    (found,) = [line for line in json.loads(done.stdout)["findings"] if line["what"] == "webhook"]
    return dict(found)


def test_doctor_sends_a_message_only_when_it_is_asked_to(hook: WebhookServer) -> None:
    assert doctor()["verdict"] == "not checked" and doctor("--webhook")["verdict"] == "problem"
    named = {"LDLM_WEBHOOK_URL": hook.url}
    assert doctor(**named)["detail"] == "127.0.0.1 is told; a message for a try: ldlm doctor --webhook"
    assert hook.messages == []
    assert doctor("--webhook", **named)["detail"] == "127.0.0.1 has taken a message"
    assert [message["kind"] for message in hook.messages] == ["test"]
    hook.answers = [404]
    found = doctor("--webhook", **named)
    assert (found["verdict"], found["detail"]) == ("problem", "webhook at 127.0.0.1: it answers HTTP 404")
    assert doctor(LDLM_WEBHOOK_URL="http://h/a-secret")["verdict"] == "problem"


def test_a_run_here_tells_of_an_end_that_its_node_could_not_tell_and_keeps_the_address_to_itself(
        tmp_path: Path, hook: WebhookServer) -> None:
    hook.answers = [500, 200]
    init(hook.url)
    train = f"tr '\\0' '\\n' </proc/$PPID/cmdline >$LDLM_STORE_FOLDER/seen; {FAKE_NODE} beat:100,100 exit:78"
    checkout = Checkout(tmp_path, train)
    done = checkout.ldlm("launch", "example", "--run-id", "r1", "--yes", "--store", str(tmp_path / "store"),
                         env=environment(LDLM_STORE_FOLDER=str(tmp_path)))
    assert done.returncode == 5, done.stderr
    give_up = time.monotonic() + 60
    while len(hook.messages) < 2 and time.monotonic() < give_up:
        time.sleep(0.05)
    assert hook.ids == ["r1/failed"] * 2  # after HTTP 500
    assert hook.messages[1]["sentence"].startswith("its recipe, its text or its image is wrong: ")
    secret = hook.url.rpartition("/")[2].encode()
    assert b"launcher.supervisor" in (tmp_path / "seen").read_bytes()
    for folder in (tmp_path, engine_home()):
        for path in folder.rglob("*"):
            assert path.is_dir() or secret not in path.read_bytes(), path
    assert secret.decode() not in done.stdout + done.stderr
