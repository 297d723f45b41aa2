"""What is said to be missing for a cloud: each piece, with the line that gets it."""

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.engine import missing

ROOT = Path(__file__).parents[1]

# Files that make a provider's SDK and SkyPilot look installed, as far as import machinery can tell.
SDK = {"vast": "vastai_sdk/__init__.py", "azure": "azure/mgmt/compute/__init__.py",
       "gcp": "googleapiclient/__init__.py"}
SKYPILOT = ("sky/__init__.py", "sky/task.py")
CREDENTIALS = {"vast": ".config/vastai/vast_api_key", "azure": ".azure/msal_token_cache.json",
               "gcp": ".config/gcloud/application_default_credentials.json"}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def complaint(folder: Path, infra: str, **env: str) -> str:
    """What `missing` says first in a Python that has only our checkout and the packages in `folder`."""
    program = ("import sys; sys.path[:0] = sys.argv[2:]\n"
               "from launcher.engine import missing\n"
               "for error in [*missing(sys.argv[1])][:1]: print(error)")
    # -S leaves site-packages out; the checkout, with its folder sky/, stays importable.
    command = [sys.executable, "-S", "-c", program, infra, str(ROOT), str(folder / "packages")]
    return subprocess.run(command, env={"HOME": str(folder / "home"), **env}, capture_output=True, text=True,
                          check=True).stdout


def test_local_needs_nothing() -> None:
    assert list(missing("local")) == []


@pytest.mark.parametrize("infra", ["vast", "azure", "gcp/us-central1"])
def test_without_the_extra_its_pip_line_is_given_though_sky_is_a_folder(tmp_path: Path, infra: str) -> None:
    said = complaint(tmp_path, infra)
    assert (ROOT / "sky").is_dir()
    assert "SkyPilot and the " in said and "not installed" in said
    fix = "make .venv" if infra == "vast" else f".venv/bin/pip install -e '.[{infra.partition('/')[0]}]'"
    assert said.endswith(f"fix: {fix}\n")


@pytest.mark.parametrize("cloud", sorted(SDK))
def test_with_skypilot_only_the_sdk_is_missing(tmp_path: Path, cloud: str) -> None:
    touch(tmp_path / "packages", *SKYPILOT)
    said = complaint(tmp_path, cloud)
    assert said.startswith(f"--infra {cloud}: the ")
    assert "SDK (Python module" in said


@pytest.mark.parametrize("cloud", sorted(SDK))
def test_with_the_packages_the_credentials_are_missing(tmp_path: Path, cloud: str) -> None:
    touch(tmp_path / "packages", *SKYPILOT, SDK[cloud])
    said = complaint(tmp_path, cloud)
    assert "credentials: nothing at ~/" in said
    assert "fix: " in said


@pytest.mark.parametrize("cloud", sorted(SDK))
def test_with_everything_there_is_nothing_to_say(tmp_path: Path, cloud: str) -> None:
    touch(tmp_path / "packages", *SKYPILOT, SDK[cloud])
    touch(tmp_path / "home", CREDENTIALS[cloud])
    assert complaint(tmp_path, cloud) == ""


def test_a_vast_key_in_the_environment_does_not_count_since_skypilot_reads_the_file(tmp_path: Path) -> None:
    touch(tmp_path / "packages", *SKYPILOT, SDK["vast"])
    assert "no Vast.ai credentials" in complaint(tmp_path, "vast", VAST_API_KEY="k")


def test_an_unknown_cloud_is_refused_with_those_that_are_known() -> None:
    (error,) = missing("fluid/x")
    assert "no engine for 'fluid/x'" in error.problem
    assert "local, or one of azure, gcp, slurm, vast" in error.fix


def test_slurm_needs_its_package_and_its_login_node_unless_the_api_server_is_elsewhere(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT", raising=False)
    assert any(word in str(next(missing("slurm/mine"))) for word in ("hostlist", "slurm/config"))
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "http://127.0.0.1:1")
    assert list(missing("slurm/mine")) == []
