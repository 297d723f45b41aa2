"""A node that cannot reach its run's store: what it waits for, and what is the machine's fault."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from s3_server import KEYS

from tests.trainer_runs import tiny_config
from trainer import node, rented, store
from trainer.contract import ExitCode
from trainer.wrong_machine import say_wrong

SAYS = "<Error><Code>{}</Code><Message>so it is</Message></Error>"
KEYS_REFUSED = (403, SAYS.format("InvalidAccessKeyId"))
NO_BUCKET = (404, SAYS.format("NoSuchBucket"))
SILENT = (503, SAYS.format("SlowDown"))
SKEWED = (403, SAYS.format("RequestTimeTooSkewed"))  # this machine's clock, by a quarter of an hour


class Server:
    """An S3 that answers every request in the same way; `asked` counts them."""

    def __init__(self) -> None:
        self.answers = [KEYS_REFUSED]  # one after the other; the last one for good
        self.asked = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                code, body = server.answers.pop(0) if server.answers[1:] else server.answers[0]
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_PUT = do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The store of a run whose node starts here, in a managed job, with a home of its own."""
    found = Server()
    config = tiny_config(tmp_path / "prose.txt")
    for name, value in {
            **KEYS, "HOME": str(tmp_path), "SKYPILOT_MANAGED_JOB_ID": "1", "LDLM_RUN_ID": "run",
            "LDLM_STORE": f"s3://runs/x?endpoint=http://127.0.0.1:{found.http.server_port}&region=us-east-1",
            "LDLM_RANKS_PER_NODE": "1", "LDLM_TRAIN_CONFIG": config.model_dump_json()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "_MAX_RETRIES", 0)
    monkeypatch.setattr(rented, "_ASK_AGAIN_S", 0.05)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[list[str]]:
    """That of a machine of Vast: passes on what a node has to say, and notes it."""
    (tmp_path / ".ldlm_deadman").touch()
    told, note, over = list[str](), tmp_path / ".ldlm_wrong_machine", threading.Event()

    def answer() -> None:
        while not over.wait(0.01):
            if note.exists():
                told.append("wrong machine")
                note.unlink()

    thread = threading.Thread(target=answer)
    thread.start()
    yield told
    over.set()
    thread.join()


@pytest.mark.parametrize("answer", [SILENT, SKEWED], ids=["silent", "a clock"])
def test_a_machine_of_vast_that_never_reaches_the_store_says_so_and_another_is_asked_for(
        server: Server, switch: list[str], answer: tuple[int, str], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = [answer]
    monkeypatch.setattr(rented, "_STORE_S", 0.5)
    assert node.main(["train"]) == ExitCode.RECOVER
    assert switch == ["wrong machine"] and server.asked > 2
    assert "error: s3://runs/x/run/recipe.json: cannot read: " in capsys.readouterr().err


def test_where_nobody_would_count_such_machines_the_run_ends(server: Server,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [SILENT]
    monkeypatch.setattr(rented, "_STORE_S", 0.2)
    assert node.main(["train"]) == 1


@pytest.mark.parametrize("answer", [KEYS_REFUSED, NO_BUCKET], ids=["keys", "bucket"])
def test_keys_that_are_refused_and_a_missing_bucket_are_no_machine_s_fault_and_end_it_at_once(
        server: Server, switch: list[str], answer: tuple[int, str]) -> None:
    server.answers = [answer]
    began = time.monotonic()
    assert node.main(["train"]) == 1
    assert switch == [] and time.monotonic() - began < rented._STORE_S


def test_a_store_that_is_silent_for_a_while_is_waited_for(server: Server, switch: list[str],
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = [SILENT, SILENT, SILENT, KEYS_REFUSED]
    assert node.main(["train"]) == 1
    said = capsys.readouterr()
    assert said.out.count("the store does not answer, trying again") == 3
    assert "InvalidAccessKeyId" in said.err and switch == []


def test_a_node_that_is_to_stop_does_not_wait_for_its_store(server: Server, switch: list[str]) -> None:
    server.answers = [SILENT]
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert node.main(["train"]) == ExitCode.RECOVER
    assert switch == []


def test_at_home_the_engine_judges_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [SILENT]
    monkeypatch.setenv("LDLM_ATTEMPT", "1")
    assert node.main(["train"]) == 1
    assert server.asked == 1


def test_a_switch_that_does_not_pass_it_on_has_said_nothing(tmp_path: Path) -> None:
    assert not say_wrong(tmp_path)
    (tmp_path / ".ldlm_deadman").touch()
    assert not say_wrong(tmp_path, patience_s=0.1)
