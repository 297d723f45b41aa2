"""Makes the two environments of ldlm from their lock files: `python3 -m trainer.environment`.

`make` calls this for both, the set-up of a rented node for the trainer's. Standard library only: it
runs before anything is installed. pip is left its own settings (`PIP_*`, pip.conf): they decide where
packages come from, and with that whether torch is a CPU or a CUDA build. Where it has none, as on a rented
node, uv installs the same files in a fraction of the time; SkyPilot brings it to each of its nodes.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OLDEST_PYTHON = (3, 11)

UV = shutil.which("uv") or shutil.which("uv", path=os.path.expanduser("~/.local/bin"))  # SkyPilot's

if sys.version_info[:2] < OLDEST_PYTHON:  # here, because the next import needs it
    # Images of GCP and Azure may be older; the lock files were made with 3.11.
    if UV is not None:
        # Isolated: it would take .venv of this folder, which may be what is made anew.
        os.execv(UV, [UV, "run", "--no-project", "--isolated", "--python", "3.11",
                      "python", "-m", "trainer.environment", *sys.argv[1:]])
    sys.exit("error: ldlm needs Python 3.11 or newer, and {} is {}.{}\n"
             "  fix: install a newer Python and name it: make PYTHON=python3.12 ..."
             .format(sys.executable, *sys.version_info[:2]))

from trainer.contract import LdlmError  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
STAMP = "ldlm-installed.json"  # written last: without it nothing in the folder counts
LOCK = "ldlm-lock"
TAIL_LINES = 12
# Settings of pip that decide what is installed, and from where. uv does not read them.
PIP_SOURCES = ("index-url", "extra-index-url", "find-links", "no-index", "constraint", "cert", "proxy",
               "trusted-host")


class SetupError(LdlmError):
    """An environment cannot be made on this machine."""


@dataclass(frozen=True)
class Part:
    """One `pip install`: its arguments and the files of the checkout that they name."""

    pip_arguments: tuple[str, ...]
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How the stamp and the messages call it."""
        return self.files[0] if self.files else "ldlm"

    def fingerprint(self) -> str:
        """Changes when this part has to be installed anew. Raises OSError if a file is missing."""
        digest = hashlib.sha256(repr((str(ROOT), self.pip_arguments)).encode())
        for name in self.files:
            digest.update((ROOT / name).read_bytes())
        return digest.hexdigest()


def _locked(*names: str) -> Part:
    return Part(tuple(word for name in names for word in ("-r", name)), names)


@dataclass(frozen=True)
class Environment:
    """What belongs into one folder: always, for tests, on a machine with a GPU, to judge text.

    Attributes:
        first: What looks at a machine, before the rest is worth its download; to be had alone.
    """

    folder: Path
    always: tuple[Part, ...]
    tests: tuple[Part, ...]
    first: tuple[Part, ...] = ()
    gpu: tuple[Part, ...] = ()
    evaluation: tuple[Part, ...] = ()


_NODE_LOCKS = ("trainer/node.lock", "trainer/requirements.lock")  # the one names the other
_GPU_LOCKS = ("trainer/gpu.lock", "trainer/requirements.lock")
_EVALUATION = _locked("trainer/evaluation.lock")
ENVIRONMENTS = {
    "launcher": Environment(
        ROOT / ".venv",
        always=(_locked("launcher/requirements.lock"), Part(("--no-deps", "-e", "."))),
        tests=(_locked("tests/requirements.lock", "tests/launcher.lock"),),
    ),
    "trainer": Environment(
        ROOT / ".venv-train",
        always=(
            _locked("trainer/requirements.lock"),
            # Without dependencies: it asks for sentence-transformers, and only its files are used.
            Part(("--no-deps", "--require-hashes", "-r", "trainer/encoder.lock"), ("trainer/encoder.lock",)),
        ),
        tests=(_locked("tests/requirements.lock"), _EVALUATION, _locked("tests/trainer.lock")),
        first=(Part(("-r", _NODE_LOCKS[0]), _NODE_LOCKS),),
        gpu=(Part(("-r", _GPU_LOCKS[0], "-c", _GPU_LOCKS[1]), _GPU_LOCKS),),
        evaluation=(_EVALUATION,),
    ),
}


def ensure(environment: Environment, *, with_tests: bool = False, gpu: bool = False,
           with_evaluation: bool = False, only_first: bool = False) -> bool:
    """Bring an environment to what its lock files say; safe against a second process.

    What an interrupted call left behind, and what was made from other lock files, is made anew from
    nothing; test tools and GPU packages are added to what is there.

    Returns:
        True if anything was installed.

    Raises:
        SetupError: Python has no venv, or pip failed.
        OSError: The checkout cannot be written.
    """
    added = ((with_tests, environment.tests), (gpu, environment.gpu),
             (with_evaluation and not with_tests, environment.evaluation))  # tests bring it along
    parts = environment.always + tuple(part for is_wanted, some in added if is_wanted for part in some)
    if only_first:
        parts = environment.first
    if {part.name for part in parts} <= _current(environment.folder, parts).keys():
        return False
    if environment.folder.is_symlink():  # making it anew would empty what another checkout may use
        raise SetupError(f"it is a link to {environment.folder.resolve()}, which is not of this checkout",
                         place=environment.folder.name, fix=f"remove the link: rm {environment.folder}")
    environment.folder.mkdir(exist_ok=True)
    with _only_one(environment.folder) as lock:
        installed = _current(environment.folder, parts)
        missing = [part for part in parts if part.name not in installed]
        if missing:
            _install(environment.folder, missing, installed, lock)
    return bool(missing)


def _current(folder: Path, parts: Sequence[Part]) -> dict[str, str]:
    """What is installed, see `_read_stamp`; nothing where one of the parts has another lock file now."""
    installed = _read_stamp(folder)
    there = [part for part in parts if part.name in installed]
    return installed if all(installed[part.name] == part.fingerprint() for part in there) else {}


def _read_stamp(folder: Path) -> dict[str, str]:
    """Fingerprints of the installed parts by name; none if the venv's own Python has gone."""
    try:
        stamp = json.loads((folder / STAMP).read_bytes())
    except (OSError, ValueError):
        return {}
    return dict(stamp) if (folder / "bin/python").exists() else {}


@contextmanager
def _only_one(folder: Path) -> Iterator[int]:
    """Hold the folder's lock, an open file that child processes are to inherit."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another process is making {folder.name}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _install(folder: Path, parts: Sequence[Part], installed: dict[str, str], lock: int) -> None:
    """Add parts to what is installed; make the folder anew where nothing is."""
    if not installed:
        _make_venv(folder, lock)
    install = installer(folder / "bin/python")
    for part in parts:
        started = time.monotonic()
        _say(f"installing {part.name} into {folder.name} ...")
        _run([*install, *part.pip_arguments], folder, lock)
        _say(f"installed {part.name} in {time.monotonic() - started:.0f} s")
        installed[part.name] = part.fingerprint()
    unfinished = folder / f"{STAMP}.new"
    unfinished.write_text(json.dumps(installed, indent=1))
    unfinished.replace(folder / STAMP)


def installer(python: Path) -> list[str]:
    """The command that installs into the environment of a Python, to which the arguments of pip are added."""
    pip = [str(python), "-m", "pip"]
    settings = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout
    named = {line.partition("=")[0].rpartition(".")[2] for line in settings.splitlines()}
    if UV is None or named.intersection(PIP_SOURCES):
        return [*pip, "install"]
    return [UV, "pip", "install", "--python", str(python)]


def _make_venv(folder: Path, lock: int) -> None:
    """Make a bare venv in the folder, after removing all that is there but the lock."""
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        version = "{}.{}".format(*sys.version_info[:2])
        raise SetupError(f"{sys.executable} cannot make virtual environments: it has no ensurepip",
                         place=folder.name,
                         fix=f"on Debian and Ubuntu: apt install python{version}-venv (or python3-venv)")
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name != STAMP):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()
    _run([sys.executable, "-m", "venv", str(folder)], folder, lock)


def _run(command: Sequence[str], folder: Path, lock: int) -> None:
    # The child inherits the lock: if this process is killed, nobody else starts before pip has ended.
    done = subprocess.run(command, cwd=ROOT, pass_fds=(lock,), stdin=subprocess.DEVNULL, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0:
        tail = "".join(f"\n    {line}" for line in done.stdout.splitlines()[-TAIL_LINES:])
        raise SetupError(f"`{shlex.join(command)}` failed with exit code {done.returncode}:{tail}",
                         place=folder.name, fix=f"{cause_of(done.stdout)}, then repeat: {_this_call()}")


def cause_of(pip_output: str) -> str:
    """What to do about a failed install, by what pip or uv wrote. Texts of pip 23 to 26, uv 0.11."""
    output = pip_output.lower()
    if "no space left on device" in output:
        return "free some disk space (.venv needs 0.6 GB, .venv-train 1.6 GB, with CUDA 8 GB)"
    if "do not match the hashes" in output or "hash mismatch" in output:
        return "do not use this download: it is not the file that the lock file names. Check where pip " \
               "gets its packages from (pip config list)"
    if any(word in output for word in ("newconnectionerror", "name resolution", "network is unreachable",
                                       "timed out", "proxyerror", "connection refused", "dns error")):
        return "check the network, the proxy and where pip gets its packages from (pip config list)"
    if "no matching distribution found" in output or "there is no version of" in output:
        return "check that pip's sources (pip config list) have this version for your Python and processor"
    return "put right what pip names above"


def _this_call() -> str:
    return shlex.join([os.path.basename(sys.executable), "-m", "trainer.environment", *sys.argv[1:]])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one environment. Exit code 0 when it stands, 1 with a message when it does not."""
    parser = argparse.ArgumentParser(prog="python3 -m trainer.environment", description=main.__doc__)
    parser.add_argument("environment", nargs="?", choices=sorted(ENVIRONMENTS), default="trainer")
    parser.add_argument("--with-tests", action="store_true", help="add the tools that `make test` needs")
    parser.add_argument("--gpu", action="store_true", help="add the kernels that need a CUDA build of torch")
    parser.add_argument("--node", action="store_true",
                        help="only what looks at the machine, before the rest is worth its download")
    parser.add_argument("--with-evaluation", action="store_true",
                        help="add MAUVE, plots and HumanEval, for `ldlm evaluate` and `humaneval`")
    asked = parser.parse_args(arguments)
    if asked.with_evaluation and not ENVIRONMENTS[asked.environment].evaluation:
        parser.error("--with-evaluation is for the trainer's environment")
    if asked.gpu and not ENVIRONMENTS[asked.environment].gpu:
        parser.error("--gpu is for the trainer's environment")
    if asked.node and not ENVIRONMENTS[asked.environment].first:
        parser.error("--node is for the trainer's environment")
    try:
        ensure(ENVIRONMENTS[asked.environment], with_tests=asked.with_tests, gpu=asked.gpu,
               with_evaluation=asked.with_evaluation, only_first=asked.node)
    except (LdlmError, OSError) as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say(f"interrupted: the environment is unfinished; repeat: {_this_call()}")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
