"""A machine of GCP or Azure that nobody uses asks its cloud to delete it: real processes, a network of their
own with the cloud's services at their real address."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--net", "--fork", "--mount-proc", "--kill-child"]
ADDRESS = "ip link set lo up && ip addr add 169.254.169.254/32 dev lo"  # of both clouds' metadata services
IN_GCP = "/compute/v1/projects/4711/zones/us-central1-a/instances/train-3-ab12-head"
IN_AZURE = ("/subscriptions/0a/resourceGroups/train-3-ab12-eastus/providers/Microsoft.Compute/"
            "virtualMachines/train-3-ab12-9f-0")
VERSION = "?api-version=2024-07-01"
# Looks every 0.1 s, with half a second to its limit; the API is where the fake is.
WATCH = """
from trainer.deadman import CLOUDS, Switch, watch
switch = Switch(CLOUDS[{cloud!r}]._replace(api="http://169.254.169.254"), power_off=("touch", {off!r}))
watch(switch, 0.1, 0.5)
"""


def _is_possible() -> bool:
    tools = all(shutil.which(name) for name in ("ip", "unshare"))
    return tools and subprocess.run([*ALONE, "bash", "-c", ADDRESS], capture_output=True,
                                    check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not _is_possible(), reason="no iproute2 or no namespaces here")


class Machine:
    """A rented machine: processes and a network that are its own, with the cloud's services in it."""

    def __init__(self, folder: Path, start: Callable[[list[str]], "subprocess.Popen[str]"]) -> None:
        self._folder, self._start = folder, start

    def run(self, cloud: str, *commands: str, refused: str = "") -> "subprocess.Popen[str]":
        """Run commands beside each other, the last one in front."""
        fake = f"{sys.executable} {ROOT}/tests/fake_metadata.py {cloud} {self._folder}/asked {refused}"
        ready = "until (: < /dev/tcp/169.254.169.254/80) 2> /dev/null; do sleep 0.05; done"
        return self._start([*ALONE, "bash", "-c",
                            f"{ADDRESS} && {{ {fake} & }} && {ready} && {' & '.join(commands)}"])

    def watch(self, cloud: str) -> str:
        """The command that starts the switch with short times."""
        script = self._folder / "watch.py"
        script.write_text(WATCH.format(cloud=cloud, off=str(self._folder / "is-off")))
        return f"{sys.executable} {script}"

    @property
    def asked(self) -> list[list[str]]:
        """What the cloud's API was asked, in order, without what is asked again."""
        try:
            lines = (self._folder / "asked").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in dict.fromkeys(lines)]

    @property
    def is_off(self) -> bool:
        return (self._folder / "is-off").exists()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    started = []

    def start(command: list[str]) -> "subprocess.Popen[str]":
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return started[-1]

    yield Machine(tmp_path, start)
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@needs_namespaces
@pytest.mark.parametrize(("cloud", "path"), [("gcp", IN_GCP), ("azure", IN_AZURE + VERSION)])
def test_an_idle_machine_asks_its_cloud_to_delete_it_with_its_own_identity(machine: Machine, cloud: str,
                                                                          path: str) -> None:
    machine.run(cloud, machine.watch(cloud))
    wait_until(lambda: machine.asked)
    assert machine.asked == [["DELETE", path, "granted"]] and not machine.is_off


@needs_namespaces
def test_a_machine_of_azure_that_is_locked_against_deletion_is_deallocated(machine: Machine) -> None:
    machine.run("azure", machine.watch("azure"), refused="DELETE")
    wait_until(lambda: len(machine.asked) > 1)
    assert machine.asked == [["DELETE", IN_AZURE + VERSION, "refused"],
                             ["POST", f"{IN_AZURE}/deallocate{VERSION}", "granted"]]
    assert not machine.is_off  # a machine of Azure that is off is billed


@needs_namespaces
def test_a_machine_of_gcp_that_may_not_delete_itself_powers_itself_off(machine: Machine) -> None:
    machine.run("gcp", machine.watch("gcp"), refused="DELETE")
    wait_until(lambda: machine.is_off)
    assert machine.asked == [["DELETE", IN_GCP, "refused"]]


@needs_namespaces
def test_while_a_program_of_ours_runs_it_asks_for_nothing(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer/node.py").write_text("import time\ntime.sleep(3)\nopen('has-ended', 'w')\n")
    node = f"(cd {tmp_path} && PYTHONPATH= {sys.executable} -m trainer.node)"
    machine.run("gcp", node, f"sleep 0.3; {machine.watch('gcp')}")
    wait_until(lambda: machine.asked or (tmp_path / "has-ended").exists())
    assert machine.asked == []
    wait_until(lambda: machine.asked)


@needs_namespaces
def test_a_set_up_starts_one_switch_says_so_and_goes_on(machine: Machine, tmp_path: Path) -> None:
    info = "SKYPILOT_CLUSTER_INFO='" + json.dumps({"cluster_name": "train-3", "cloud": "GCP"}) + "'"
    setup = f"{info} {sys.executable} -m trainer.deadman"
    done = machine.run("gcp", f"{setup} && {setup} && sleep 0.5 && ps -eo args=")
    said = done.communicate(timeout=60)[0].splitlines()
    line = "without a program of ours for 30 minutes this machine asks its cloud to delete train-3-ab12-head"
    assert said[:2] == [line, line]
    assert sum(one.endswith("-m trainer.deadman") for one in said[2:]) == 1
    assert (tmp_path / ".ldlm-deadman.log").read_text() == ""


@pytest.mark.parametrize("cloud", [None, "Vast", "Slurm"])
def test_where_nothing_is_rented_or_the_cloud_has_another_switch_none_is_started(cloud: str | None,
                                                                                tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path)}
    if cloud:
        environment["SKYPILOT_CLUSTER_INFO"] = json.dumps({"cloud": cloud})
    done = subprocess.run([sys.executable, "-m", "trainer.deadman"], cwd=ROOT, env=environment, text=True,
                          capture_output=True, check=True, timeout=60)
    assert done.stdout + done.stderr == "" and list(tmp_path.iterdir()) == []


def test_the_switch_survives_what_skypilot_does_to_a_job_that_it_ends(tmp_path: Path) -> None:
    """SkyPilot's own program runs the job, and its own clean-up ends all that the job has left."""
    pytest.importorskip("sky")
    (tmp_path / "switch.py").write_text(
        "import time\nfrom pathlib import Path\nfrom trainer.deadman import detached\n"
        f"detached(Path({str(tmp_path / 'switch')!r}), lambda: (print('here', flush=True), time.sleep(300)))")
    job = f"{sys.executable} {tmp_path}/switch.py; touch {tmp_path}/set-up; sleep 299.5"
    runner = subprocess.Popen(
        [sys.executable, "-c", "import sys; from sky.skylet import log_lib; "
         f"log_lib.run_with_log(['bash', '-c', {job!r}], {str(tmp_path / 'log')!r})"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_until(lambda: (tmp_path / "set-up").exists(), 120)
    time.sleep(2.5)  # SkyPilot's clean-up has seen the job's processes at least twice
    family = psutil.Process(runner.pid).children(recursive=True)
    assert any("299.5" in one.cmdline() for one in family)
    (left,) = [one for one in psutil.process_iter() if f"{tmp_path}/switch.py" in _words(one)
               and one.status() != psutil.STATUS_ZOMBIE]
    runner.kill()
    runner.wait()
    psutil.wait_procs(family, timeout=40)
    assert not any(one.is_running() and "299.5" in _words(one) for one in family)
    assert left.is_running() and (tmp_path / "switch.log").read_text() == "here\n"
    left.kill()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_it_runs_on_the_old_python_that_a_machine_may_have() -> None:
    ast.parse((ROOT / "trainer/deadman.py").read_text(), feature_version=(3, 8))
