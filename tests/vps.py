"""A small VPS that is this machine under another home, behind a real sshd, and a laptop that reaches it.

sshd gives every session the VPS's HOME, PATH and port. Everything else is what it would be elsewhere: ssh,
tar, Python, SkyPilot's API server.
"""

import getpass
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from cli_lab import LDLM, ROOT, environment
from sky_server_lab import end_all_of, free_port, lives_in

KEY = "a-key-of-vast-that-nobody-else-may-see"
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
_PATH = f"{Path(sys.executable).resolve().parent}:/usr/bin:/bin:/usr/sbin:/sbin"


class Vps:
    """Its home, and the port of its sshd."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        self.port, self.server_port = free_port(), free_port()
        self.variables = {"HOME": str(self.home), "PATH": f"{folder}/bin:{_PATH}", "NO_PROXY": "127.0.0.1",
                          "SKYPILOT_API_SERVER_LOCAL_PORT": str(self.server_port)}
        self.variables |= {name: text for name, text in os.environ.items() if name.startswith("PIP_")}
        self.sshd: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """As it is typed behind --ssh."""
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """As messages name it."""
        return f"ssh://{self.address}"

    @property
    def key_file(self) -> Path:
        """Where SkyPilot looks for Vast's key."""
        return self.home / ".config/vastai/vast_api_key"

    @property
    def state(self) -> dict[str, object]:
        """What a controller remembers of itself."""
        return dict(json.loads((self.home / ".ldlm/controller.json").read_text()))

    def boot(self, *, with_systemd: bool = False) -> None:
        """Let sshd listen, with what the variables are now.

        Args:
            with_systemd: A real user manager of systemd is there; logind, which would start it, is not.
        """
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd of Debian insists
        for name in ("host", "user"):
            if not (self.folder / name).exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name],
                               check=True)
        said = " ".join(f'"{name}={text}"' for name, text in self.variables.items())
        (self.folder / "sshd.conf").write_text("\n".join([
            f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {self.folder}/host", "PidFile none",
            f"AuthorizedKeysFile {self.folder}/user.pub", "StrictModes no", "UsePAM no",
            "PasswordAuthentication no", "PermitRootLogin yes", f"SetEnv {said}", ""]))
        log = (self.folder / "sshd.log").open("ab")
        command = [str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd.conf")]
        if with_systemd:  # which believes that it may run where it finds this folder
            command = ["unshare", "-m", "--propagation", "private", "sh", "-c", _WITH_SYSTEMD, "sh", *command]
        self.sshd = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | self.variables)
        while "listening on" not in (self.folder / "sshd.log").read_text():
            assert self.sshd.poll() is None, (self.folder / "sshd.log").read_text()
            time.sleep(0.05)

    def shut_down(self) -> None:
        """The network is gone: sshd and every connection with it."""
        assert self.sshd
        for process in [*psutil.Process(self.sshd.pid).children(), psutil.Process(self.sshd.pid)]:
            process.kill()
        self.sshd.wait()
        (self.folder / "sshd.log").unlink()

    def server(self) -> "psutil.Process | None":
        """The API server that listens there."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "sky.server.server" in words and f"--port={self.server_port}" in words:
                return process
        return None

    def processes(self) -> list[psutil.Process]:
        """All that live there."""
        return [process for process in psutil.process_iter() if lives_in(process, self.home)]

    def program(self, name: str, text: str) -> None:
        """Put a shell script first on its PATH."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def have_environment(self, checkout: Path) -> None:
        """An environment that says of itself that all of a checkout's lock files are installed in it.

        Its packages are those of the environment that runs this test; `controller up` then installs nothing.
        """
        there = self.home / "ldlm"
        there.mkdir()
        archive = subprocess.run(["git", "-C", checkout, "archive", "HEAD"], capture_output=True, check=True)
        subprocess.run(["tar", "-xf", "-", "-C", there], input=archive.stdout, check=True)
        stamp = subprocess.run([sys.executable, "-c", _STAMP], cwd=there, text=True, capture_output=True,
                               check=True)
        for path in there.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", there / ".venv"], check=True)
        (site,) = (there / ".venv").glob("lib/python*/site-packages")
        packages = [path for path in sys.path if path.endswith("site-packages")]
        (site / "ready.pth").write_text("\n".join([str(there), *packages]) + "\n")
        sky = there / ".venv/bin/sky"
        sky.write_text(f"#!{there}/.venv/bin/python\nfrom sky.client.cli.command import cli\ncli()\n")
        sky.chmod(0o755)
        (there / ".venv/ldlm-installed.json").write_text(stamp.stdout)


_WITH_SYSTEMD = """
mount -t tmpfs none /run/systemd && mkdir /run/systemd/system && (systemd --user &) && exec "$@"
"""
_STAMP = """
import json
from trainer.environment import ENVIRONMENTS
print(json.dumps({part.name: part.fingerprint() for part in ENVIRONMENTS["launcher"].always}))
"""


class Laptop:
    """A checkout with git, a home with a key of Vast, and an ssh whose config knows the VPS."""

    def __init__(self, folder: Path, vps: Vps) -> None:
        self.home, self.checkout = folder / "me", folder / "code"
        (self.home / ".config/vastai").mkdir(parents=True)
        (self.home / ".config/vastai/vast_api_key").write_text(KEY)
        (self.home / "bin").mkdir()
        # ssh looks for its config in the home of the account, whatever HOME says.
        (self.home / "ssh.conf").write_text(
            f"IdentityFile {vps.folder}/user\nUserKnownHostsFile {self.home}/known\n"
            "StrictHostKeyChecking accept-new\nIdentitiesOnly yes\n")
        (self.home / "bin/ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {self.home}/ssh.conf "$@"\n')
        (self.home / "bin/ssh").chmod(0o755)
        files = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True,
                               check=True)
        for name in files.stdout.split("\0"):
            if name and (ROOT / name).is_file():
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.checkout / name)
        self.git("init", "-q")
        self.commit()

    @property
    def settings(self) -> dict[str, str]:
        """Of ldlm; nothing where there are none."""
        path = self.home / "l/settings.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def ldlm(self, *words: str, **changes: str) -> "subprocess.CompletedProcess[str]":
        """What is typed there, without a terminal."""
        return subprocess.run([*LDLM, *words], cwd=self.checkout, env=self.env(**changes), text=True,
                              capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=1500)

    def up(self, vps: Vps, *more: str) -> "subprocess.CompletedProcess[str]":
        """`ldlm controller up`, to its end."""
        done = self.ldlm("controller", "up", "--ssh", vps.address, "--yes", *more)
        assert done.returncode == 0, done.stderr
        return done

    def refused(self, code: int, *words: str, **changes: str) -> str:
        """The one message with which a command is refused."""
        done = self.ldlm(*words, **changes)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr and done.stderr.count("error:") == 1
        return done.stderr[done.stderr.index("error:"):]

    def env(self, **changes: str) -> dict[str, str]:
        """Of what is typed there."""
        usual = {"HOME": str(self.home), "LDLM_HOME": str(self.home / "l"), "NO_PROXY": "127.0.0.1",
                 "PATH": f"{self.home}/bin:/usr/bin:/bin", "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        return environment(**usual | changes)

    def git(self, *words: str) -> str:
        """Of the checkout. Returns what git prints."""
        command = ["git", "-C", self.checkout, "-c", "user.name=me", "-c", "user.email=me@here", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self) -> str:
        """Of everything that there is. Returns its name."""
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "more")
        return self.git("rev-parse", "HEAD")


@contextmanager
def vps_and_laptop(folder: Path) -> Iterator[tuple[Vps, Laptop]]:
    """Both, for as long as a block runs; skips where there is no sshd."""
    if SSHD is None:
        pytest.skip("no sshd is here: apt-get install --no-install-recommends openssh-server")
    vps = Vps(folder / "vps")
    laptop = Laptop(folder, vps)
    vps.boot()
    try:
        yield vps, laptop
    finally:
        if vps.sshd and vps.sshd.poll() is None:
            vps.shut_down()
        for home in (vps.home, laptop.home):
            end_all_of(home)
