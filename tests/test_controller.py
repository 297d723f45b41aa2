"""`ldlm controller` over a real ssh, onto "a VPS" that is this machine under another home (tests/vps.py).

Real are ssh, tar, the checkout that travels, SkyPilot's API server there and the tunnel to it. The packages
of its environment are those of this test. The lab installs them, and has who looks after the server.
"""

import json
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cli_lab import RECIPE, Terminal, files_below
from vps import KEY, Laptop, Vps, vps_and_laptop

pytest.importorskip("sky.jobs.state")


@pytest.fixture
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vps, Laptop]]:
    with vps_and_laptop(tmp_path_factory.mktemp("c")) as found:
        yield found


def masters(laptop: Laptop) -> list[psutil.Process]:
    """The ssh that holds the connection, and with it the tunnel."""
    found = {process: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
    return [process for process, words in found.items()
            if "-M" in words and any(str(laptop.home / "l/ssh") in word for word in words)]


def test_a_controller_through_its_life(places: tuple[Vps, Laptop]) -> None:
    vps, laptop = places
    vps.have_environment(laptop.checkout)
    commit = laptop.git("rev-parse", "HEAD")

    first = laptop.up(vps, "--usd-per-hour", "0.008")
    assert "keys       ~/.config/vastai/vast_api_key: it rents machines with them" in first.stdout
    assert (f"changed: the code: commit {commit[:7]}; keys: ~/.config/vastai/vast_api_key; "
            "SkyPilot's config and plugins; its API server, started") in first.stdout
    assert KEY not in first.stdout + first.stderr
    assert laptop.settings == {"api_server": vps.url, "controller_usd_per_hour": "0.008"}
    assert vps.key_file.read_text() == KEY and stat.S_IMODE(vps.key_file.stat().st_mode) == 0o600
    assert "remote_identity: NO_UPLOAD" in (vps.home / ".sky/config.yaml").read_text()
    assert "launcher.sky_plugin.LdlmPlugin" in (vps.home / ".sky/plugins.yaml").read_text()
    listening = {(found.laddr.ip, found.laddr.port) for found in psutil.net_connections("tcp")
                 if found.status == psutil.CONN_LISTEN}
    assert [ip for ip, port in listening if port == vps.server_port] == ["127.0.0.1"]

    # A second time changes nothing, not even the process, and the price need not be said again.
    server = vps.server()
    again = laptop.up(vps)
    assert "nothing had to be changed" in again.stdout and vps.server() == server

    status = json.loads(laptop.ldlm("controller", "status", "--json").stdout)
    assert {name: status[name] for name in ("where", "is_alive", "version", "commit", "usd_per_day")} == {
        "where": vps.url, "is_alive": True, "version": "0.14.1", "commit": commit, "usd_per_day": "0.192"}
    lines = {line["what"]: line for line in json.loads(
        laptop.ldlm("doctor", "--infra", "vast", "--json").stdout)["findings"]}
    assert lines["controller"]["verdict"] == "ok" and "$0.008/h" in lines["controller"]["detail"]
    assert [lines[name]["verdict"] for name in ("API server", "keys", "supervision", "plugin")] == ["ok"] * 4

    # The tunnel dies, as when the laptop sleeps, and the next command has one again.
    (master,) = masters(laptop)
    master.kill()
    psutil.wait_procs([master])
    assert json.loads(laptop.ldlm("controller", "status", "--json").stdout)["url"] == status["url"]
    vps.shut_down()
    said = laptop.refused(5, "controller", "status")
    assert said.startswith(f"error: {vps.url}: ssh does not get there: ") and "Connection refused" in said
    assert f"fix: get there by hand first: ssh -p {vps.port} " in said
    gone = laptop.refused(5, "controller", "down")
    assert "if that machine is no more: ldlm init --api-server none" in gone
    vps.boot()
    assert json.loads(laptop.ldlm("controller", "status", "--json").stdout)["is_alive"]
    assert vps.server() == server  # nothing of that has reached it

    # A newer commit goes there, the keys are those of now, and the server is another.
    (laptop.checkout / "NEWS").write_text("news\n")
    newer = laptop.commit()
    (laptop.home / ".config/vastai/vast_api_key").write_text(f"{KEY}-2")
    assert f"and here is {newer[:7]}: ldlm controller up" in laptop.ldlm("controller", "status").stdout
    updated = laptop.up(vps, "--usd-per-hour", "0.01")
    assert f"which has {commit[:7]}; its API server is restarted" in " ".join(updated.stdout.split())
    assert (vps.home / "ldlm/NEWS").read_text() == "news\n" and (vps.home / "ldlm/.venv").exists()
    assert vps.key_file.read_text() == f"{KEY}-2" and vps.server() not in (None, server)
    assert laptop.settings["controller_usd_per_hour"] == "0.01"
    assert vps.state["since"] == status["since"]

    # Its price stands in the plan, and the warning that this machine must stay awake does not.
    plan = laptop.ldlm("plan", RECIPE, "--infra", "vast").stdout
    assert "controller   elsewhere, always on, $0.0100/h" in plan and "while this machine sleeps" not in plan

    down = laptop.ldlm("controller", "down", "--yes")
    assert "ended; removed there: ~/.config/vastai/vast_api_key" in down.stdout, down.stderr
    assert vps.server() is None and not vps.key_file.exists()
    assert not (vps.home / ".ldlm/controller.json").exists()
    assert laptop.settings == {} and masters(laptop) == []
    assert "no controller" in laptop.refused(1, "controller", "down", "--yes")


@pytest.mark.parametrize(("variable", "sign"), [
    ("VAST_CONTAINERLABEL", "$VAST_CONTAINERLABEL"), ("CONTAINER_ID", "$CONTAINER_ID"),
    (None, ".vast_containerlabel")])
def test_a_machine_of_vast_is_refused_and_nothing_is_left_there(
        places: tuple[Vps, Laptop], variable: str | None, sign: str) -> None:
    vps, laptop = places
    if variable:
        vps.shut_down()
        vps.variables[variable] = "C.4711"
        vps.boot()
    else:
        (vps.home / ".vast_containerlabel").write_text("C.4711")
    before = files_below(vps.home)
    said = laptop.refused(5, "controller", "up", "--ssh", vps.address, "--usd-per-hour", "1", "--yes")
    assert "it is a machine of Vast (" in said and sign in said and "add --force" in said
    assert files_below(vps.home) == before and laptop.settings == {}


def test_an_old_python_is_refused_with_the_package_to_install(places: tuple[Vps, Laptop]) -> None:
    vps, laptop = places
    vps.shut_down()
    vps.variables["PATH"] = f"{vps.folder}/bin"
    for name in ("sh", "uname", "hostname", "df", "awk", "ls", "cat", "grep", "env", "tr", "tar", "rsync",
                 "ssh"):
        vps.program(name, f'exec {shutil.which(name)} "$@"')
    vps.program("python3", "echo 3.9 1")
    vps.boot()
    said = laptop.refused(5, "controller", "up", "--ssh", vps.address, "--usd-per-hour", "1", "--yes")
    assert "its Python is 3.9, and 3.11 or newer with venv is needed" in said
    assert f"fix: ssh -p {vps.port} " in said and "sudo apt install python3.11 python3.11-venv" in said
    assert files_below(vps.home) == []


def test_where_ssh_does_not_get_there_or_is_not_here_it_is_said(places: tuple[Vps, Laptop]) -> None:
    vps, laptop = places
    words = ("controller", "up", "--ssh", vps.address, "--usd-per-hour", "1", "--yes")
    (laptop.home / "ssh.conf").write_text("StrictHostKeyChecking yes\nUserKnownHostsFile /dev/null\n")
    assert "ssh does not get there: Host key verification failed." in laptop.refused(5, *words)
    vps.shut_down()
    assert "Connection refused" in laptop.refused(5, *words)
    git = Path(str(shutil.which("git")))
    (laptop.home / "no-ssh").mkdir()
    (laptop.home / "no-ssh/git").symlink_to(git)
    said = laptop.refused(5, *words, PATH=str(laptop.home / "no-ssh"))
    assert "ssh is not installed here" in said and "apt install openssh-client" in said
    assert laptop.settings == {}


def test_no_at_the_question_and_a_price_that_is_none_change_nothing(places: tuple[Vps, Laptop]) -> None:
    vps, laptop = places
    words = ("controller", "up", "--ssh", vps.address)
    assert "--usd-per-hour: is needed" in laptop.refused(2, *words, "--yes")
    assert "'much' is no price" in laptop.refused(2, *words, "--usd-per-hour", "much", "--yes")
    said = laptop.refused(1, *words, "--usd-per-hour", "1")
    assert "nobody is here to answer, so nothing was done" in said
    (laptop.home / ".config/vastai/vast_api_key").unlink()
    said = laptop.refused(5, *words, "--usd-per-hour", "1", "--yes")
    assert "no keys of azure or gcp or vast are here" in said
    assert files_below(vps.home) == [] and laptop.settings == {}


def up_until(words: str, vps: Vps, laptop: Laptop) -> Terminal:
    """A terminal in which a first `up` has come so far."""
    vps.have_environment(laptop.checkout)
    screen = Terminal("controller", "up", "--ssh", vps.address, "--usd-per-hour", "1", "--yes",
                      cwd=laptop.checkout, env=laptop.env())
    screen.wait_for(words)
    return screen


def test_ctrl_c_in_the_middle_takes_back_what_was_begun(places: tuple[Vps, Laptop]) -> None:
    vps, laptop = places
    screen = up_until("starting its API server", vps, laptop)
    assert vps.key_file.exists()
    screen.type("\x03")
    assert screen.wait() == 130
    assert "interrupted: nothing of it is left running there" in screen.plain()
    assert vps.processes() == [] and not vps.key_file.exists() and laptop.settings == {}
    assert not (vps.home / ".ldlm/controller.json").exists()
    assert "there is no controller" in laptop.refused(1, "controller", "down", "--yes")


def test_a_laptop_that_vanishes_in_the_middle_leaves_nothing_either(places: tuple[Vps, Laptop]) -> None:
    vps, laptop = places
    screen = up_until("making its environment", vps, laptop)
    there = [process for process in psutil.process_iter(["cmdline"]) if vps_program(process, vps)]
    os.killpg(screen.process.pid, signal.SIGKILL)
    for process in masters(laptop):
        process.kill()
    assert there and psutil.wait_procs(there, timeout=60)[1] == []
    assert vps.processes() == [] and not vps.key_file.exists()
    assert not (vps.home / ".ldlm/controller.json").exists()


def vps_program(process: psutil.Process, vps: Vps) -> bool:
    """Whether that is `controller_host.py` at work there."""
    try:
        return ("launcher.controller_host" in (process.info["cmdline"] or [])
                and process.environ().get("HOME") == str(vps.home) and process.cmdline()[0] != "sh")
    except psutil.Error:
        return False
