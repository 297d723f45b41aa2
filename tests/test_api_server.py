"""An API server of SkyPilot that somebody names: whether it lives, who asks it, and how one leaves it again.

Servers here are small ones of the test that speak HTTP, or nothing at all.
"""

import base64
import json
import re
import shlex
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cli_lab import environment, files_below, ldlm, refused
from local_http import serving
from sky_server_lab import free_port

VARIABLE = "SKYPILOT_API_SERVER_ENDPOINT"
WELL = {"status": "healthy", "version": "0.14.1"}


class User:
    """Somebody with a home of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.own = {"HOME": str(home), "LDLM_HOME": str(home / ".ldlm"),
                    "SKYPILOT_API_SERVER_LOCAL_PORT": str(free_port())}

    def env(self, server: str | None = None) -> dict[str, str]:
        kept = environment(**self.own)
        kept.pop(VARIABLE, None)
        return kept | ({VARIABLE: server} if server else {})

    def ldlm(self, *words: str, server: str | None = None) -> str:
        """What a command says that ends well."""
        done = ldlm(*words, env=self.env(server))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self, server: str | None = None) -> dict[str, object]:
        return dict(json.loads(self.ldlm("controller", "status", "--json", server=server)))

    def refused(self, code: int, *words: str, server: str | None = None) -> str:
        return refused(code, *words, env=self.env(server))

    def settle(self, server: str) -> None:
        self.ldlm("init", "--yes", "--api-server", server)


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@contextmanager
def answering(body: object, password: str | None = None) -> Iterator[str]:
    """A server that says one thing to whoever knows the password."""
    wanted = password and f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(200 if self.headers["Authorization"] == wanted else 401)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words: object) -> None:
            pass

    with serving(Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """An address that takes connections and never answers: its URL, and those that came."""
    came: list[socket.socket] = []

    def take(listener: socket.socket) -> None:
        while True:
            try:
                came.append(listener.accept()[0])
            except OSError:  # closed
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=take, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", came
        listener.shutdown(socket.SHUT_RDWR)
    for one in came:
        one.close()


def test_status_says_whether_a_server_lives_that_is_given_by_its_url(user: User) -> None:
    with answering(WELL) as url:
        user.settle(url)
        assert user.status() == {"where": url, "is_alive": True, "version": "0.14.1"}
        shown = user.ldlm("controller", "status")
        assert f"API server   {url}\n" in shown and "alive        yes, SkyPilot 0.14.1\n" in shown
    assert user.status() == {"where": url, "is_alive": False, "version": None}
    shown = user.ldlm("controller", "status")
    assert "alive        NO, SkyPilot's API server does not answer (Connection refused)" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_without_any_it_is_said_that_a_launch_starts_one(user: User) -> None:
    assert user.status() == {"where": None, "is_alive": False, "version": None}
    shown = user.ldlm("controller", "status")
    assert "no; a launch starts it" in shown and "one of yours: ldlm controller up --ssh HOST" in shown
    assert files_below(user.home) == []


def test_the_environment_wins_over_the_settings_here_too(user: User) -> None:
    user.settle("http://127.0.0.1:9")
    with answering(WELL) as url:
        assert user.status(url) == {"where": url, "is_alive": True, "version": "0.14.1"}
        shown = user.ldlm("controller", "status", server=url)
    assert f"named by     {VARIABLE}\n" in shown
    assert "not asked    http://127.0.0.1:9, of the settings\n" in shown


@pytest.mark.parametrize("words", [("up", "--ssh", "me@sky.invalid", "--usd-per-hour", "1"), ("down",)])
def test_nothing_is_done_to_a_controller_while_the_environment_names_another_server(
        user: User, words: tuple[str, ...]) -> None:
    (user.home / ".ldlm").mkdir()
    (user.home / ".ldlm/settings.json").write_text('{"api_server": "ssh://me@sky.invalid"}')
    said = user.refused(1, "controller", *words, server="http://me:secret@127.0.0.1:9")
    assert f"{VARIABLE} names http://me:...@127.0.0.1:9, and wins over the settings" in said
    assert f"fix: unset {VARIABLE}" in said and "secret" not in said


def test_what_stands_in_the_way_of_a_controller_is_out_of_it_after_its_fix(user: User) -> None:
    user.settle("http://127.0.0.1:9")
    up = ("controller", "up", "--ssh", "me@sky.invalid", "--usd-per-hour", "1", "--yes")
    for words in (up, ("controller", "down")):
        said = user.refused(1, *words)
        assert "SkyPilot's API server is http://127.0.0.1:9" in said and "controller down" not in said
        command = re.search(r"ldlm (init --api-server none)", said)
        assert command and "controller up" not in said
    user.ldlm(*shlex.split(command[1]), "--yes")
    assert "no keys of azure or gcp or vast are here" in user.refused(5, *up)
    assert "fix: set one up: ldlm controller up" in user.refused(1, "controller", "down")


def test_a_server_that_wants_a_password_gets_the_one_of_its_url_and_nobody_else_does(user: User) -> None:
    with answering(WELL, password="secret") as url:
        host = url.removeprefix("http://")
        assert user.status(f"http://me:secret@{host}") == {
            "where": f"http://me:...@{host}", "is_alive": True, "version": "0.14.1"}
        shown = user.ldlm("controller", "status", server=url)
    assert "does not answer (HTTP 401)" in " ".join(shown.split()) and "sky api login" in shown


@pytest.mark.parametrize(("body", "words"), [
    ("<html>Sign in</html>", "does not answer (Expecting value"), ([], "it says nothing of its health"),
    ({"status": "needs_auth"}, "is not well (needs_auth)")])
def test_what_answers_and_is_no_server_in_order_is_told(user: User, body: object, words: str) -> None:
    with answering(body) as url:
        shown = " ".join(user.ldlm("controller", "status", server=url).split())
    assert words in shown and "or sign in: .venv/bin/sky api login" in shown


@pytest.mark.parametrize("words", [
    ("doctor", "--infra", "vast"), ("sweep",), ("plan", "smoke", "--infra", "vast"),
    ("controller", "status")])
def test_a_command_asks_a_silent_server_once(user: User, words: tuple[str, ...]) -> None:
    with silent() as (url, came):
        done = ldlm(*words, env=user.env(url))
        said = " ".join((done.stdout + done.stderr).split())
        assert "SkyPilot's API server does not answer (timed out)" in said, said
        assert len(came) == 1
