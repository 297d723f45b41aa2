"""The command line as a person meets it: real processes, pipes, a terminal of 80 columns, goldens."""

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml
from ldlm_forks import Forks

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
RECIPE = str(GOLDEN / "example-recipe.yaml")
LDLM = [sys.executable, "-c", "from launcher.__main__ import main; main()"]
FAKE_NODE = f"exec {sys.executable} {ROOT / 'tests' / 'fake_node.py'}"
TIMEOUT_S = 120.0  # a server of SkyPilot took 30 s to start on a busy machine


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, with a terminal and a machine that are the same everywhere."""
    dropped = ("LDLM_STORE", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "PATH": "/usr/bin:/bin", **changes}


def ldlm(*args: str, cwd: Path = ROOT,
         env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `ldlm` without a terminal: a fork where that is the same, and sooner there."""
    env = env or environment()
    forked = _forks().run(args, cwd, env, TIMEOUT_S)
    return forked or subprocess.run([*LDLM, *args], cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                                    capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@cache
def _forks() -> Forks:
    return Forks(environment())


def refused(code: int, *args: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """What `ldlm` says when it refuses: one message, the documented code, nothing else."""
    done = ldlm(*args, cwd=cwd, env=env)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    assert done.stderr.count("fix:") >= 1
    return done.stderr


def check_golden(name: str, text: str) -> None:
    """Compare a whole screen with its golden; LDLM_WRITE_GOLDENS=1 writes it anew."""
    path = GOLDEN / name
    if os.environ.get("LDLM_WRITE_GOLDENS"):
        path.write_text(text)
    assert text == path.read_text()


def without_names(text: str, *known: tuple[str, str]) -> str:
    """A screen with run ids, moments, digests and the given texts replaced by fixed words."""
    for found, word in known:
        text = text.replace(found, word)
    text = re.sub(r"--plan [0-9a-f]{12}\b", "--plan DIGEST", text)
    text = re.sub(r"\b([a-z-]+)-\d{4}-\d{4}-[0-9a-f]{4}\b", r"\1-RUN", text)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "MOMENT UTC", text)


def files_below(folder: Path) -> list[str]:
    """Every file and folder below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def without_quotes(home: Path) -> list[str]:
    """The same of a home, but for the plans that were shown, which are kept there."""
    return [name for name in files_below(home) if name.partition("/")[0] != "quotes"]


class Checkout:
    """The few files of a checkout that a launch needs, with nodes that only play theirs."""

    def __init__(self, folder: Path, train: str, bench: str = "exit 0") -> None:
        self.folder = folder / "checkout"
        for part in ("launcher", "trainer"):
            shutil.copytree(ROOT / part, self.folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        (self.folder / "sky").mkdir()
        for document, run in (("train", train), ("bench", bench)):
            template = yaml.safe_load((ROOT / "sky" / f"{document}.yaml").read_text())
            template = {**template, "run": run}
            del template["setup"]
            (self.folder / "sky" / f"{document}.yaml").write_text(yaml.safe_dump(template, sort_keys=False))
        (self.folder / "recipes").mkdir()
        shutil.copy(RECIPE, self.folder / "recipes" / "example.yaml")

    def slow_down(self, module: str, seconds: float) -> None:
        """Have a module of the launcher take its time to start."""
        path = self.folder / "launcher" / f"{module}.py"
        path.write_text(f"import time; time.sleep({seconds})\n" + path.read_text())

    def ldlm(self, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run this checkout's `ldlm` without a terminal."""
        return ldlm(*args, cwd=self.folder, env=env)


class Terminal:
    """`ldlm` on a terminal of its own, 80 columns wide."""

    def __init__(self, *args: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None,
                 command: Sequence[str] = LDLM) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [*command, *args], cwd=cwd, env=env or environment(), stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.text = ""

    def wait_for(self, text: str, times: int = 1) -> None:
        """Read until a text has appeared so many times."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.plain().count(text) < times:
            assert time.monotonic() < deadline, f"waited in vain for {text!r} in:\n{self.text}"
            assert self._read(), f"ended without {text!r}:\n{self.text}"

    def type(self, keys: str) -> None:
        """Type on its keyboard; `\\x03` is Ctrl-C."""
        os.write(self._master, keys.encode())

    def wait(self) -> int:
        """Read to the end. Returns the exit code."""
        while self._read():
            pass
        os.close(self._master)
        return self.process.wait(TIMEOUT_S)

    def plain(self) -> str:
        """What was shown, without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text).replace("\r\n", "\n")

    def _read(self) -> bool:
        """False at the end. Ends the process when it is silent for too long."""
        if not select.select([self._master], [], [], TIMEOUT_S)[0]:
            self.process.kill()
            raise AssertionError(f"silent for {TIMEOUT_S:g} s after:\n{self.text}")
        try:
            chunk = os.read(self._master, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self.text += chunk.decode(errors="replace")
        return bool(chunk)
