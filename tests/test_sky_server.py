"""What a real API server of SkyPilot says of itself, and what is refused because of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_lab import RECIPE, ROOT, files_below, ldlm
from sky_server_lab import checkout_in, end_all_of, free_port, running_sky_server, variables

pytest.importorskip("sky.jobs.state")

# What `ldlm launch` asks before it records anything.
CHECK = """
import sys
from launcher.engines import check_server
try: check_server(sys.argv[1:])
except Exception as error: print(error)
"""


# What `ldlm launch` does once it is approved.
LAUNCH = """
import sys
from launcher import commands
proposal = commands.propose(sys.argv[1], commands.PlanOptions(infra="vast", store=sys.argv[2]))
try: commands.submit(proposal, None)
except Exception as error: print(error)
"""


# Whether a server is there: before something of ours has started it, and then.
START = """
import sys
from launcher.engines import sky_engine
from launcher.server_health import server_health
from trainer.store import open_store
print(server_health().error is None)
sky_engine(open_store(sys.argv[1])).ask("run-1")
print(server_health().error is None)
"""


class Lab:
    """A home with `ldlm init` done or not, and a server that may run in it."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()

    def env(self) -> dict[str, str]:
        return os.environ | variables(self.home, self.port) | {"LDLM_HOME": str(self.home / ".ldlm")}

    def refusal(self, *clouds: str, checkout: Path = ROOT) -> str:
        """What stands in the way of renting at these clouds; nothing if nothing does."""
        return self.run(CHECK, *clouds, checkout=checkout)

    def run(self, program: str, *args: str, checkout: Path = ROOT) -> str:
        done = subprocess.run([sys.executable, "-c", program, *args], cwd=checkout, text=True,
                              env=self.env() | {"PYTHONPATH": str(checkout)}, capture_output=True, check=True)
        return done.stdout

    def reasons(self) -> str:
        """What a dry run on Vast says that a launch would be refused for, in one line."""
        words = ("launch", RECIPE, "--infra", "vast", "--store", f"file://{self.home}/store", "--dry-run")
        done = ldlm(*words, env=self.env())
        assert done.returncode == 0 and done.stdout.startswith("name: "), done.stderr
        return " ".join(done.stderr.partition("a launch would be refused now:")[2].split())

    def doctor(self) -> dict[str, str]:
        """What the doctor says of a home with a key of a cloud that cannot be told to keep it."""
        done = ldlm("doctor", "--infra", "vast", "--json", env=self.env())
        return {line["what"]: f"{line['verdict']}: {line['detail']}"
                for line in json.loads(done.stdout)["findings"]}

    def write(self, name: str, text: str) -> None:
        (self.home / ".sky").mkdir(exist_ok=True)
        (self.home / ".sky" / name).write_text(text)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("sky"))


def test_one_server_through_its_life(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = lab.refusal("vast")
    assert f"http://127.0.0.1:{lab.port}: SkyPilot's API server is not well (unhealthy)" in silent
    assert "fix: start it: .venv/bin/sky api start" in silent
    with running_sky_server(lab.home, lab.port) as url:
        bare = lab.run(LAUNCH, RECIPE, f"file://{lab.home}/store")
        assert files_below(lab.home / "store") == []  # no run was recorded
        assert f"{url}: SkyPilot's API server would copy keys onto rented machines: " in bare
        assert "no remote_identity: NO_UPLOAD for vast, azure, gcp, aws, oci, nebius" in bare
        assert "fix: ldlm init, then .venv/bin/sky api stop; .venv/bin/sky api start" in bare
        told = lab.reasons()
        assert f"- {url}: SkyPilot's API server would copy keys onto rented machines: " in told
        assert f"- {url}: SkyPilot's API server has not loaded ldlm's plugin" in told
        assert ldlm("init", "--yes", env=lab.env()).returncode == 0
        # Its config it reads anew for every request; where jobs are supervised, only when it starts.
        assert "would rent a machine to supervise the run, which has no keys" in lab.refusal("azure")
    with running_sky_server(lab.home, lab.port) as url:
        assert lab.refusal("vast") == "" and "API server" not in lab.reasons()
        pulled = checkout_in(lab.home / "pulled")
        (pulled / "launcher/vast_search.py").open("a").write("# newer\n")
        stale = lab.refusal("vast", checkout=pulled)
        assert f"{url}: SkyPilot's API server still runs another version of ldlm's plugin" in stale
        assert "fix: .venv/bin/sky api stop; .venv/bin/sky api start" in stale
        assert lab.refusal("slurm", checkout=pulled) == ""
        said = ldlm("init", "--yes", cwd=pulled, env=lab.env() | {"PYTHONPATH": str(pulled)}).stdout
        assert said.startswith("everything is set up already: nothing was changed\nSkyPilot's API server ")
        assert said.endswith("\n  .venv/bin/sky api stop; .venv/bin/sky api start\n")
        assert "restart it" not in ldlm("init", "--yes", env=lab.env()).stdout
        (lab.home / ".lambda_cloud").mkdir()
        (lab.home / ".lambda_cloud" / "lambda_keys").write_text("key")
        lines = lab.doctor()
        assert lines["API server"] == f"ok: http://127.0.0.1:{lab.port}, on this machine"
        assert lines["controller"] == "ok: this machine: while it sleeps or is off, no run is recovered"
        assert lines["keys"] == "ok: NO_UPLOAD: keys of clouds stay off rented machines"
        assert lines["supervision"].startswith("ok: ") and lines["plugin"].startswith("ok: ldlm ")
        assert lines["Vast search"].startswith("ok: sent to a loopback, it says: compute_cap, cpu")
        assert lines["other keys"].endswith("whatever its config says: ~/.lambda_cloud/lambda_keys")
        assert lab.refusal("azure") == (
            f"{url}: SkyPilot's API server would copy keys onto rented machines, whatever its config says: "
            "~/.lambda_cloud/lambda_keys\n  fix: move these files out of your home while you rent, or rent "
            "through a controller, which has no others: ldlm controller up\n")
        assert lab.refusal("slurm") == ""
        monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", url)
        lines = lab.doctor()
        assert lines["API server"] == f"ok: {url}, which is said to be elsewhere"
        assert lines["controller"] == f"ok: {url}, of your own; its price is in no bill"
        assert lines["other keys"].endswith("whatever its config says: ~/.lambda_cloud/lambda_keys")
        refused = lab.refusal("azure")  # its home is not this one, as far as is known here
        assert refused.endswith("whatever its config says: ~/.lambda_cloud/lambda_keys\n  fix: move these "
                                "files out of its home on its machine while you rent\n")
        (lab.home / ".lambda_cloud" / "lambda_keys").unlink()
        assert lab.refusal("azure") == ""
        monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT")
        lab.write("project.yaml", "vast: {remote_identity: LOCAL_CREDENTIALS}\n")
        monkeypatch.setenv("SKYPILOT_PROJECT_CONFIG", str(lab.home / ".sky" / "project.yaml"))
        assert "remote_identity of vast is another for a region, a workspace" in lab.refusal("vast")


def test_a_server_that_a_command_has_started_is_there_for_the_rest_of_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    try:
        assert lab.run(START, f"file://{tmp_path}/store").split() == ["False", "True"]
    finally:
        end_all_of(tmp_path)
