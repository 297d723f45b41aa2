"""trainer/environment.py, run as `make` runs it, in small checkouts of its own.

Lock files name a package that exists only as a wheel made here, so that no test needs a network.
"""

import ast
import base64
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from trainer.environment import ENVIRONMENTS, cause_of

CHECKOUT = Path(__file__).parents[1]
LOCKS = ["launcher/requirements.lock", "trainer/requirements.lock", "tests/requirements.lock",
         "tests/launcher.lock", "trainer/evaluation.lock", "tests/trainer.lock"]


def pins(lock: str) -> dict[str, str]:
    """Version by normalised name of the packages in one of the project's lock files."""
    lines = [line for line in (CHECKOUT / lock).read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9A-Za-z.]+)", line) for line in lines]
    assert all(found), f"{lock} holds something other than name==version"
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def write_wheel(folder: Path, name: str, version: str) -> Path:
    """Make the smallest wheel that pip installs: one module that holds its version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_record_hash(text)},{len(text)}" for path, text in files.items()]
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]))
    return wheel


def _record_hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


class Checkout:
    """A checkout with the real environment.py and lock files that name the wheels `tiny` and `frozen`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels = root / "wheels"
        for folder in ("wheels", "trainer", "tests"):
            (root / folder).mkdir()
        for name in ("__init__.py", "contract.py", "environment.py"):
            (root / "trainer" / name).write_bytes((CHECKOUT / "trainer" / name).read_bytes())
        for version in ("1.0", "2.0"):
            write_wheel(self.wheels, "tiny", version)
        frozen = hashlib.sha256(write_wheel(self.wheels, "frozen", "1.0").read_bytes()).hexdigest()
        write_wheel(self.wheels, "testtool", "1.0")
        write_wheel(self.wheels, "light", "1.0")
        self.lock("trainer/node.lock", "light==1.0")
        self.lock("trainer/requirements.lock", "tiny==1.0")
        self.lock("trainer/encoder.lock", f"frozen==1.0 --hash=sha256:{frozen}")
        self.lock("tests/requirements.lock", "testtool==1.0")
        write_wheel(self.wheels, "plots", "1.0")
        self.lock("trainer/evaluation.lock", "plots==1.0")
        self.lock("tests/trainer.lock", "testtool==1.0")

    def lock(self, name: str, line: str) -> None:
        (self.root / name).write_text(f"{line}\n")

    def start(self, *arguments: str, before: str = "pass", **settings: str) -> subprocess.Popen[str]:
        """Start `python -m trainer.environment` where pip knows the wheels by its environment only."""
        return self._start(arguments, before,
                           {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)} | settings)

    def start_with_uv(self, before: str = "pass", **settings: str) -> subprocess.Popen[str]:
        """The same on a machine as a cloud rents it out: uv is there, and pip has no settings."""
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return self._start(["--with-tests"], before, {"PATH": path, "UV_OFFLINE": "1",
                                                      "UV_FIND_LINKS": str(self.wheels)} | settings)

    def _start(self, arguments: Sequence[str], before: str, settings: Mapping[str, str]
               ) -> subprocess.Popen[str]:
        code = f"import runpy, sys; {before}; runpy.run_module('trainer.environment', run_name='__main__')"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
        return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=self.root, text=True,
                                env=kept | {"PIP_CONFIG_FILE": os.devnull} | settings,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def make(self, *arguments: str, before: str = "pass", **settings: str) -> tuple[int, str]:
        """Exit code and all output of one call."""
        process = self.start(*arguments, before=before, **settings)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def version_of(self, module: str) -> str | None:
        """Version of a module in the environment, None if it cannot be imported."""
        code = f"import {module}; print({module}.version)"
        python = self.root / ".venv-train/bin/python"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    def installer_of(self, distribution: str) -> str:
        """The program that has installed it, by its own word."""
        (word,) = self.root.glob(f".venv-train/lib/*/site-packages/{distribution}-*.dist-info/INSTALLER")
        return word.read_text().strip()

    def installed_at(self) -> int:
        """Changes whenever something was installed."""
        return (self.root / ".venv-train/ldlm-installed.json").stat().st_mtime_ns


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_an_environment_is_made_once_grows_by_test_tools_and_is_made_anew_for_another_lock(
        checkout: Checkout) -> None:
    code, output = checkout.make()
    assert code == 0, output
    assert (checkout.version_of("tiny"), checkout.version_of("frozen")) == ("1.0", "1.0")
    assert checkout.version_of("testtool") is None

    made = checkout.installed_at()
    assert checkout.make() == (0, "")
    assert checkout.installed_at() == made

    leftover = checkout.root / ".venv-train/leftover"
    leftover.touch()
    code, output = checkout.make("--with-tests")
    assert code == 0 and "installing tests/requirements.lock" in output
    assert "trainer/requirements" not in output
    assert checkout.version_of("testtool") == "1.0" and leftover.exists()
    checkout.lock("tests/requirements.lock", "testtool==9.0")  # which nobody asks for
    assert checkout.make() == (0, "")

    checkout.lock("trainer/requirements.lock", "tiny==2.0")
    code, output = checkout.make()
    assert code == 0, output
    assert checkout.version_of("tiny") == "2.0"
    assert checkout.version_of("testtool") is None and not leftover.exists()


def test_a_rented_node_installs_the_same_with_uv_and_whoever_has_settings_for_pip_with_pip(
        checkout: Checkout) -> None:
    process = checkout.start_with_uv()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert (checkout.version_of("tiny"), checkout.version_of("frozen")) == ("1.0", "1.0")
    assert [checkout.installer_of(name) for name in ("tiny", "frozen", "testtool")] == ["uv"] * 3
    assert checkout.make("--with-tests") == (0, "")

    checkout.lock("trainer/requirements.lock", "tiny==2.0")
    code, output = checkout.make()
    assert code == 0, output
    assert (checkout.version_of("tiny"), checkout.installer_of("tiny")) == ("2.0", "pip")


def test_on_a_node_whose_python_is_too_old_uv_finds_another(checkout: Checkout) -> None:
    process = checkout.start_with_uv("sys.version_info = (3, 8, 10, 'final', 0)", UV_PYTHON=sys.executable,
                                     UV_PYTHON_DOWNLOADS="never")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and checkout.version_of("tiny") == "1.0", output
    # What such a Python has to read first.
    for name in ("environment.py", "deadman.py", "metadata.py", "__init__.py"):
        ast.parse((CHECKOUT / "trainer" / name).read_text(), feature_version=(3, 8))


def test_a_node_with_another_card_than_the_plan_pays_for_is_not_given_torch(checkout: Checkout) -> None:
    """Set-up as SkyPilot runs it: the text of the template, on a machine whose driver is a script."""
    shutil.copytree(CHECKOUT / "trainer", checkout.root / "trainer", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.lock", "__pycache__"))
    checkout.lock("trainer/gpu.lock", "plots==1.0")
    bin_folder = checkout.root / "bin"
    bin_folder.mkdir()
    (bin_folder / "python3").symlink_to(sys.executable)
    driver = bin_folder / "nvidia-smi"
    set_up = yaml.safe_load((CHECKOUT / "sky/train.yaml").read_text())["setup"]
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(checkout.root), "LDLM_GPU": "RTX5090:1",
                   "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout.wheels),
                   "PYTHONPATH": sysconfig.get_path("purelib")}  # in the place of what light stands for

    def set_up_with(card: str, version: str = "580.86.10") -> str:
        driver.write_text(f"#!/bin/sh\necho '{card}, 32607, 32100, {version}'\n")
        driver.chmod(0o755)
        done = subprocess.run(["bash", "-c", set_up], cwd=checkout.root, env=environment, text=True,
                              capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = set_up_with("NVIDIA GeForce RTX 3060")
    assert "the plan pays for RTX5090:1, this machine has NVIDIA GeForce RTX 3060" in told
    assert (checkout.version_of("light"), checkout.version_of("tiny")) == ("1.0", None)
    told = set_up_with("NVIDIA GeForce RTX 5090", "570.86.10")
    assert "has driver 570.86.10, torch 2.13.0 of CUDA 13.0 takes 580 or newer" in told
    assert (checkout.version_of("light"), checkout.version_of("tiny")) == ("1.0", None)
    assert "installed trainer/gpu.lock" in set_up_with("NVIDIA GeForce RTX 5090")
    assert [checkout.version_of(name) for name in ("light", "tiny", "plots")] == ["1.0", "1.0", "1.0"]


def test_what_a_node_is_given_first_is_all_that_it_needs_to_refuse_its_machine() -> None:
    """Its program is imported where nothing can be but the packages of node.lock and what these need."""
    lines = (CHECKOUT / "trainer/node.lock").read_text().splitlines()
    names = {line for line in lines if not line.startswith(("#", "-"))}
    code = f"""
import re, sys
from importlib import metadata
given, wanted = set(), {names!r}
while wanted:
    given.add(name := wanted.pop())
    needs = [one for one in metadata.requires(name) or () if ";" not in one]
    wanted |= {{re.match("[A-Za-z0-9_-]+", one)[0] for one in needs}}
given = {{name.lower().replace("_", "-") for name in given}}
owners = metadata.packages_distributions()
owners.pop("trainer", None)  # ours, and that of others
class Only:
    def find_spec(self, name, path=None, target=None):
        mine = {{one.lower().replace("_", "-") for one in owners.get(name.partition(".")[0], given)}}
        if not mine & given:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Only())
import trainer.first_look, trainer.node
from trainer.store import open_store
open_store("s3://bucket/ldlm")
print("ok")
"""
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=os.environ | keys, text=True,
                          capture_output=True, check=False)
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.parametrize(("line", "settings", "fix"), [
    ("tiny==3.0", {}, "check that pip's sources (pip config list) have this version"),
    ("tiny==1.0 --hash=sha256:" + "0" * 64, {"UV_REQUIRE_HASHES": "1"}, "do not use this download"),
    ("tiny==1.0", {"UV_OFFLINE": "0", "UV_FIND_LINKS": "", "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
                   "UV_HTTP_RETRIES": "0"}, "check the network"),
])
def test_what_uv_cannot_install_is_told_with_a_fix(checkout: Checkout, line: str, settings: dict[str, str],
                                                   fix: str) -> None:
    checkout.lock("trainer/requirements.lock", line)
    process = checkout.start_with_uv(**settings)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and f"fix: {fix}" in output, output


def test_tools_for_evaluation_are_added_to_the_trainers_environment_alone(checkout: Checkout) -> None:
    assert checkout.make()[0] == 0 and checkout.version_of("plots") is None
    code, output = checkout.make("--with-evaluation")
    assert code == 0 and "trainer/requirements" not in output
    assert checkout.version_of("plots") == "1.0"
    assert checkout.make("--with-evaluation") == (0, "")
    code, output = checkout.make("launcher", "--with-evaluation")
    assert code == 2 and "--with-evaluation is for the trainer's environment" in output


def test_an_install_that_was_killed_is_repeated_once_its_pip_has_ended(checkout: Checkout) -> None:
    slow = checkout.root / "slow"
    slow.mkdir()
    # Every pip in the new environment waits a moment first, as a long download would.
    (slow / "sitecustomize.py").write_text(
        "import sys, time\nif sys.orig_argv[1:4] == ['-m', 'pip', 'install']:\n"
        f"    open({str(checkout.root / 'pip-runs')!r}, 'w').close()\n    time.sleep(2)\n")
    first = checkout.start(PYTHONPATH=str(slow))
    _wait_until((checkout.root / "pip-runs").exists)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (checkout.root / ".venv-train/ldlm-installed.json").exists()

    code, output = checkout.make()
    assert code == 0, output
    assert "another process is making .venv-train: waiting" in output
    assert checkout.version_of("tiny") == "1.0"


def test_the_second_of_two_at_once_waits_and_installs_nothing(checkout: Checkout) -> None:
    processes = [checkout.start(), checkout.start()]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("installing trainer/requirements.lock" in output for output in outputs) == 1
    assert checkout.version_of("tiny") == "1.0"


def test_a_file_that_is_not_the_one_in_the_lock_is_refused(checkout: Checkout) -> None:
    checkout.lock("trainer/encoder.lock", f"frozen==1.0 --hash=sha256:{'0' * 64}")
    code, output = checkout.make()
    assert code == 1
    assert "do not use this download" in output and "Traceback" not in output
    assert checkout.version_of("frozen") is None


def test_a_package_that_cannot_be_had_is_said_with_the_end_of_pips_words_and_what_to_repeat(
        checkout: Checkout) -> None:
    checkout.lock("trainer/requirements.lock", "tiny==3.0")
    code, output = checkout.make("--with-tests")
    assert code == 1
    assert "error: .venv-train: `" in output and "pip install -r trainer/requirements.lock` failed" in output
    assert "No matching distribution found for tiny==3.0" in output
    assert "fix: check that pip's sources" in output
    assert output.rstrip().endswith("-m trainer.environment --with-tests")


def test_without_a_network_the_message_says_so(checkout: Checkout) -> None:
    with_index = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_RETRIES": "1",
                  "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    code, output = checkout.make(**with_index)
    assert code == 1
    assert "fix: check the network" in output and "Traceback" not in output


def test_a_full_disk_is_named() -> None:
    # The words of a real pip 23.0 on a full file system.
    assert "free some disk space" in cause_of(
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device")


@pytest.mark.parametrize(("before", "problem", "fix"), [
    ("sys.modules['ensurepip'] = None", "has no ensurepip",
     f"apt install python3.{sys.version_info.minor}-venv"),
    ("sys.version_info = (3, 10, 12, 'final', 0)", "needs Python 3.11 or newer", "make PYTHON=python3.12"),
])
def test_a_python_that_will_not_do_is_told_with_the_fix(
        checkout: Checkout, before: str, problem: str, fix: str) -> None:
    code, output = checkout.make(before=before, PATH="/usr/bin:/bin", HOME=str(checkout.root))
    assert code == 1
    assert problem in output and fix in output and "Traceback" not in output


def test_a_folder_that_cannot_be_written_is_told_without_a_traceback(checkout: Checkout) -> None:
    (checkout.root / ".venv-train").write_text("a file is in the way")
    code, output = checkout.make()
    assert code == 1
    assert "error:" in output and ".venv-train" in output and "Traceback" not in output


def test_an_environment_of_another_checkout_behind_a_link_is_left_as_it_is(
        checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert checkout.make()[0] == 0
    other = Checkout(tmp_path_factory.mktemp("other"))
    (other.root / ".venv-train").symlink_to(checkout.root / ".venv-train")
    code, output = other.make()
    assert code == 1 and f"fix: remove the link: rm {other.root}/.venv-train" in output
    assert checkout.version_of("tiny") == "1.0" and checkout.make() == (0, "")


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_name_one_exact_version_each_and_nothing_of_one_machine(lock: str) -> None:
    names = pins(lock)
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))]


@pytest.mark.parametrize(("extra", "lock"), [
    ("launch", "launcher/requirements.lock"), ("train", "trainer/requirements.lock"),
    ("test", "tests/requirements.lock"), ("check", "tests/launcher.lock"),
    ("evaluate", "trainer/evaluation.lock"), ("reference", "tests/trainer.lock"),
])
def test_every_package_of_an_extra_is_in_its_lock(extra: str, lock: str) -> None:
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    locked = pins(lock)
    for requirement in extras[extra]:
        match = re.match(r"([\w.-]+)(?:\[\w+\])?(?:==(.+))?$", requirement)
        assert match, requirement
        name, version = match[1].lower(), match[2]
        assert name in locked and version in (None, locked[name]), f"run make lock: {requirement}"


@pytest.mark.parametrize(("environment", "locks"), [
    ("launcher", [LOCKS[0], *LOCKS[2:4]]), ("trainer", [*LOCKS[1:3], *LOCKS[4:]])])
def test_lock_files_of_one_environment_agree(environment: str, locks: list[str]) -> None:
    named = {file for part in ENVIRONMENTS[environment].always + ENVIRONMENTS[environment].tests
             for file in part.files}
    assert set(locks) <= named
    together: dict[str, str] = {}
    for lock in locks:
        for name, version in pins(lock).items():
            assert together.setdefault(name, version) == version, f"{name} in {lock}"


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
