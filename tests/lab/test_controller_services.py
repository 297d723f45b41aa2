"""Who looks after a controller's API server: a real user manager of systemd, or the line that cron is given.

The packages of its environment are those of this test.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
from vps import Laptop, Vps, vps_and_laptop

pytestmark = pytest.mark.lab


@pytest.fixture
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vps, Laptop]]:
    with vps_and_laptop(tmp_path_factory.mktemp("c")) as found:
        yield found


def test_systemd_looks_after_the_server(places: tuple[Vps, Laptop]) -> None:
    vps, laptop = places
    if os.geteuid() != 0 or not shutil.which("systemd"):
        pytest.skip("systemd runs beside this machine's own only for root: apt-get install systemd")
    vps.have_environment(laptop.checkout)
    vps.program("loginctl", f'echo "$@" >> {vps.folder}/asked')  # logind is no part of what is tested
    vps.variables["XDG_RUNTIME_DIR"] = str(vps.folder / "run")
    (vps.folder / "run").mkdir(mode=0o700)
    vps.shut_down()
    vps.boot(with_systemd=True)
    said = laptop.up(vps, "--usd-per-hour", "0.1")
    assert "a user unit of systemd with linger" in " ".join(said.stdout.split())
    assert (vps.folder / "asked").read_text() == "enable-linger\n"

    server = vps.server()
    assert server is not None
    server.kill()
    psutil.wait_procs([server])
    give_up = time.monotonic() + 300
    while not json.loads(laptop.ldlm("controller", "status", "--json").stdout)["is_alive"]:
        assert time.monotonic() < give_up, "systemd did not start it again"
    assert vps.server() not in (None, server)

    assert laptop.ldlm("controller", "down", "--yes").returncode == 0
    assert vps.server() is None and not list((vps.home / ".config/systemd/user").rglob("ldlm*"))


def test_cron_looks_after_the_server_and_keys_that_the_machine_had_before_stay(
        places: tuple[Vps, Laptop]) -> None:
    vps, laptop = places
    vps.have_environment(laptop.checkout)
    vps.key_file.parent.mkdir(parents=True)
    vps.key_file.write_text("its own")
    table = vps.folder / "crontab"
    table.write_text("0 1 * * * theirs\n")
    vps.program("crontab", f'if [ "$1" = -l ]; then cat {table}; else cat > {table}; fi')
    shutil.copy(str(shutil.which("sleep")), vps.folder / "cron")  # what the daemon is called
    with subprocess.Popen([vps.folder / "cron", "1000"]) as cron:
        try:
            said = laptop.up(vps, "--usd-per-hour", "0")
        finally:
            cron.kill()
    assert "looked after by cron every 5 minutes" in " ".join(said.stdout.split())
    assert "vast_api_key there is another than here and not of ldlm, so it stays" in said.stderr
    theirs, ours = table.read_text().splitlines()
    assert theirs == "0 1 * * * theirs" and ours.startswith("*/5 * * * * ")

    server = vps.server()
    assert server is not None
    server.kill()
    psutil.wait_procs([server])
    refusal = laptop.refused(5, "controller", "down", "--yes")
    assert "whether it has runs cannot be told" in refusal and "--force" in refusal
    assert "NO, its API server does not answer" in laptop.ldlm("controller", "status").stdout
    # As cron does it: by sh, in the home, with next to nothing in the environment.
    subprocess.run(["sh", "-c", ours.removeprefix("*/5 * * * * ")], check=True, cwd=vps.home,
                   env={"HOME": str(vps.home), "PATH": "/usr/bin:/bin"})
    assert vps.server() not in (None, server)

    assert laptop.ldlm("controller", "down", "--yes").returncode == 0
    assert table.read_text() == "0 1 * * * theirs\n" and vps.server() is None
    assert vps.key_file.read_text() == "its own"
