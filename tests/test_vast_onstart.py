"""A machine that nobody uses gives itself back, by its own key; the script is run for real."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from local_http import serving

from launcher.vast_onstart import deadman, first_commands, without_mark
from trainer.live_price import ROW, LivePrice
from trainer.wrong_machine import say_wrong

OWN = {"CONTAINER_ID": "5070", "CONTAINER_API_KEY": "of-this-machine-alone"}
ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]


def _is_possible() -> bool:
    tools = all(shutil.which(name) for name in ("curl", "unshare"))
    return tools and subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _is_possible(), reason="no curl or no namespaces here")
whatever_speaks_http = pytest.mark.parametrize("tool", [
    "curl", "python3",
    pytest.param("wget", marks=pytest.mark.skipif(not shutil.which("wget"), reason="no wget here"))])
BARE = ("sh", "sleep", "cat", "tr", "rm")  # what the barest image has: no ps, no pgrep, no curl


class Api(BaseHTTPRequestHandler):
    """Keeps what it was asked; refuses what the test says."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.seen.append((self.command, self.path, self.headers["Authorization"], body))
        self.send_response(403 if self.command in self.server.refused else 200)
        says = b'{"instances": {"dph_base": 0.389}}' if self.command == "GET" else b""
        self.send_header("Content-Length", str(len(says)))
        self.end_headers()
        self.wfile.write(says)

    do_DELETE = do_PUT = do_GET = answer

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Any]:
    with serving(Api) as server:
        server.seen, server.refused = [], set()
        yield server


class Watch:
    """Starts the switch with one second to a look and two to its limit, among no processes but those given:
    other programs of ours on this machine would keep it quiet.

    Attributes:
        log: What it says.
    """

    def __init__(self, api: Any, home: Path) -> None:
        self.home, self.log, self.started = home, home / "log", list[subprocess.Popen[bytes]]()
        url = f"http://127.0.0.1:{api.server_port}"
        (home / "deadman").write_text(deadman(url, "train-1-head", look_s=1, limit_s=2))

    def __call__(self, *beside: str, tools: tuple[str, ...] = (*BARE, "curl"),
                 first: str = "exec {switch}") -> "subprocess.Popen[bytes]":
        """Start it. `beside`: in the background. `tools`: all that there are. `first`: process number 1."""
        bin_ = self.home / "bin"
        bin_.mkdir()
        for name in tools:
            found = sys.executable if name == "python3" else shutil.which(name)
            (bin_ / name).write_text(f'#!/bin/sh\nexec {found} "$@"\n')
            (bin_ / name).chmod(0o755)
        switch = f"{shutil.which('sh')} {self.home}/deadman > {self.log} 2>&1"
        line = " & ".join([*beside, first.format(switch=switch)])
        bash, unshare = str(shutil.which("bash")), str(shutil.which(ALONE[0]))
        environment = os.environ | OWN | {"HOME": str(self.home), "PATH": str(bin_)}
        self.started.append(subprocess.Popen([unshare, *ALONE[1:], bash, "-c", line], cwd=self.home,
                                             env=environment))
        return self.started[-1]


@pytest.fixture
def watch(api: Any, tmp_path: Path) -> Iterator[Watch]:
    watch = Watch(api, tmp_path)
    yield watch
    for process in watch.started:
        process.kill()
        process.wait()


def wait_until(condition: Any, seconds: float = 90) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.1)


@whatever_speaks_http
def test_an_idle_machine_asks_to_be_destroyed_with_its_own_key(api, watch, tool):
    watch(tools=(*BARE, tool))
    wait_until(lambda: api.seen)
    assert api.seen[0] == ("DELETE", "/api/v0/instances/5070/", "Bearer of-this-machine-alone", "")


@whatever_speaks_http
def test_where_its_bid_follows_the_market_it_asks_what_it_costs_with_its_own_key(api, watch, tool):
    url = f"http://127.0.0.1:{api.server_port}"
    script = deadman(url, "train-1-head", look_s=1, limit_s=60, bid_follows=True)
    (watch.home / "deadman").write_text(script.replace("% 60", "% 1"))
    watch(tools=(*BARE, tool, "mv"))
    row = watch.home / ROW
    wait_until(row.exists)
    assert api.seen[0] == ("GET", "/api/v0/instances/5070/", "Bearer of-this-machine-alone", "")
    assert row.stat().st_mode & 0o777 == 0o600
    (heard,) = LivePrice(Decimal("0.356"), watch.home).seen()
    assert heard.usd_per_hour == Decimal("0.389")
    api.refused = {"GET"}
    row.unlink()
    asked = len(api.seen)
    wait_until(lambda: len(api.seen) > asked + 1)
    assert not row.exists()


def test_where_its_bid_stays_it_asks_nothing():
    assert "ask GET" not in deadman("https://console.vast.ai", "train-1-head")


@whatever_speaks_http
def test_where_it_may_not_destroy_itself_it_stops_itself(api, watch, tool):
    api.refused = {"DELETE"}
    watch(tools=(*BARE, tool))
    wait_until(lambda: len(api.seen) > 1)
    verb, path, key, body = api.seen[1]
    assert (verb, path, key) == ("PUT", "/api/v0/instances/5070/", "Bearer of-this-machine-alone")
    assert json.loads(body) == {"state": "stopped"}


def test_while_a_program_of_ours_runs_it_does_nothing(api, watch, tmp_path):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer/node.py").write_text("import time\ntime.sleep(6)\n")
    watch(f"{sys.executable} -m trainer.node")
    time.sleep(5)
    assert api.seen == []
    wait_until(lambda: api.seen)


def test_a_node_has_its_machine_say_by_its_own_key_that_it_is_the_wrong_one(api, watch, tmp_path, capsys):
    (tmp_path / ".ldlm_deadman").touch()
    watch(f"exec -a '{sys.executable} -m trainer.node' sleep 60")
    say_wrong(tmp_path)
    verb, path, key, body = api.seen[0]
    assert (verb, path, key) == ("PUT", "/api/v0/instances/5070/", "Bearer of-this-machine-alone")
    label = json.loads(body)["label"]
    assert label == "train-1-head (wrong machine)" and without_mark(label) == "train-1-head"
    assert len(api.seen) == 1 and capsys.readouterr().out == ""


def test_where_the_machine_cannot_say_so_the_node_goes_on(api, watch, tmp_path, capsys):
    say_wrong(tmp_path)  # elsewhere than at Vast
    assert capsys.readouterr().out == "" and not (tmp_path / ".ldlm_wrong_machine").exists()
    (tmp_path / ".ldlm_deadman").touch()
    api.refused = {"PUT"}
    watch(f"exec -a '{sys.executable} -m trainer.node' sleep 60")
    say_wrong(tmp_path, patience_s=2)
    assert "could not say that it is the wrong one" in capsys.readouterr().out


def test_where_nothing_speaks_http_it_says_so_and_ends_the_machine(api, watch):
    machine = watch(tools=BARE, first="trap 'exit 7' TERM; {switch} & wait")
    assert machine.wait(timeout=90) == 7 and api.seen == []
    assert "cannot ask Vast, there is no curl, python3 or wget: powering off" in watch.log.read_text()


def test_a_machine_that_it_cannot_look_at_is_not_idle(api, watch):
    watch(tools=("sh", "sleep", "tr", "rm", "curl"))
    wait_until(lambda: watch.log.exists() and "cannot look into /proc" in watch.log.read_text())
    time.sleep(4)
    assert api.seen == []


@whatever_speaks_http
def test_the_key_is_in_no_process_list(api, watch, tmp_path, tool):
    api.refused = {"DELETE", "PUT"}  # it asks again and again
    watch(f"while sleep 0.01; do ps -ww -eo args= >> {tmp_path}/lists; done", tools=(*BARE, "ps", tool))
    lists, own_words = tmp_path / "lists", {"curl": "-fsS", "python3": "urlopen", "wget": "--method="}[tool]
    wait_until(lambda: lists.exists() and own_words in lists.read_text())  # a look may miss a short call
    assert OWN["CONTAINER_API_KEY"] not in lists.read_text()


def test_the_first_commands_let_skypilot_in_and_leave_the_switch_running(api, tmp_path):
    url, label = f"http://127.0.0.1:{api.server_port}", "train-1-0f3a9c-head"
    line = first_commands("ssh-ed25519 AAA it's me\n", url, label)
    subprocess.run(["bash", "-c", line], env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, check=True,
                   timeout=20)
    assert (tmp_path / ".ssh/authorized_keys").read_text() == "\nssh-ed25519 AAA it's me\n"
    assert (tmp_path / ".no_auto_tmux").exists()
    assert (tmp_path / ".ldlm_deadman").read_text() == deadman(url, label)
    found = subprocess.run(["pgrep", "-f", f"sh {tmp_path}/.ldlm_deadman"], text=True, capture_output=True,
                           check=True).stdout.split()
    for pid in found:
        os.kill(int(pid), 9)
    assert len(found) == 1
