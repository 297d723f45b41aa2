"""Nodes of the task that prepares a text, all on this machine: the same bytes, whatever happens to them."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import psutil  # noqa: E402
import yaml  # noqa: E402
from data_examples import documents, files_in, prepared, text_bytes, write_text  # noqa: E402

from launcher.errors import EngineError  # noqa: E402
from launcher.local_nodes import run_nodes  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
# Stands in for the Python of a node: units of 500 bytes, a tokenizer that loads at once, and slow if wanted.
NODE = """#!{python}
import os, pickle, signal, sys, time
sys.path.insert(0, {root!r})
from trainer import prepare, prepare_command, prepare_units, text_sources
if __name__ == "__main__":
    rank = os.environ["SKYPILOT_NODE_RANK"]
    with open("node-" + rank, "a") as file:
        file.write(str(os.getpid()) + "\\n")
    if rank == os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    text_sources._SMALLEST_UNIT = 500
    prepare_command._load_tokenizer = lambda *_: pickle.load(open("tokenizer", "rb"))
    real = prepare_units.write_record
    def slow(*args, **more):
        time.sleep(float(os.environ.get("SLOW", "0")))
        real(*args, **more)
    prepare_units.write_record = slow
    sys.exit(prepare.main(sys.argv[3:]))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    python = folder / ".venv-train" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(NODE.format(python=sys.executable, root=str(ROOT)))
    python.chmod(0o755)
    (folder / "tokenizer").write_bytes(pickle.dumps(text_bytes()))
    write_text(tmp_path / "a.txt", documents(100))
    return folder


def document(checkout: Path, num_nodes: int, **envs: str) -> dict[str, Any]:
    """The document as it would be rendered, with a set-up that a test can bear."""
    found = yaml.safe_load((ROOT / "sky" / "prepare.yaml").read_text())
    return found | {"workdir": str(checkout), "num_nodes": num_nodes, "setup": "echo ready | tee -a set-up",
                    "envs": {"LDLM_STORE": "", "LDLM_SOURCE": str(checkout.parent / "a.txt"),
                             "LDLM_TOKENIZER": "bytes", "LDLM_REVISION": "",
                             "LDLM_OUT": str(checkout.parent / "out"), "LDLM_TEXT_KEY": "text",
                             "LDLM_HELDOUT": "0.2", "LDLM_PROCESSES": "1", **envs}}


def expected_files(checkout: Path) -> dict[str, bytes]:
    """What one process makes."""
    prepared(checkout.parent / "a.txt", checkout.parent / "one")
    return files_in(checkout.parent / "one")


def pids(checkout: Path) -> list[int]:
    return [int(line) for path in checkout.glob("node-*") for line in path.read_text().split()]


def test_a_node_folds_its_lines_for_its_name(checkout):
    for number in range(8):
        (checkout.parent / "many" / f"passed-over-{number}.pdf").parent.mkdir(exist_ok=True)
        (checkout.parent / "many" / f"passed-over-{number}.pdf").write_text("x")
    write_text(checkout.parent / "many" / "a.txt", documents(30))
    said: list[str] = []
    run_nodes(document(checkout, 1, LDLM_SOURCE=str(checkout.parent / "many")), said.append)
    folded = [line for line in said if "passed" in line]
    assert len(folded) > 1 and 60 < max(map(len, folded)) <= 80


def wait_for_parts(checkout: Path, number: int) -> None:
    give_up = time.monotonic() + 60
    while len(list((checkout.parent / "out" / "parts").glob("*.json"))) < number:
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_any_number_of_nodes_makes_the_bytes_that_one_process_makes(checkout, num_nodes):
    said: list[str] = []
    run_nodes(document(checkout, num_nodes), said.append)
    expected = expected_files(checkout)
    assert len([name for name in expected if name.startswith("parts/")]) > 5
    assert files_in(checkout.parent / "out") == expected
    assert said[0] == "set-up: ready" and (checkout / "set-up").read_text() == "ready\n"
    assert {line.partition(":")[0] for line in said[1:]} == {f"node {rank}" for rank in range(num_nodes)}
    assert len(pids(checkout)) == num_nodes
    assert max(len(line) for line in said if "file://" not in line) <= 80


STARTER = "import json, sys; from launcher.local_nodes import run_nodes; " \
          "run_nodes(json.loads(sys.argv[1]), lambda line: print(line, flush=True))"


def start(checkout: Path, num_nodes: int, **envs: str) -> "subprocess.Popen[str]":
    task = json.dumps(document(checkout, num_nodes, **envs))
    return subprocess.Popen([sys.executable, "-c", STARTER, task], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_node_that_is_killed_is_named_and_goes_on(checkout):
    process = start(checkout, 3, SLOW="0.2")
    wait_for_parts(checkout, 3)
    os.kill(int((checkout / "node-1").read_text()), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "node 1 of 3 was killed by signal 9; starting it again, 1 of 2 times" in said
    assert files_in(checkout.parent / "out") == expected_files(checkout)


def test_a_node_that_never_lives_ends_all_and_the_same_call_goes_on_later(checkout):
    said: list[str] = []
    with pytest.raises(EngineError, match="node 1 of 3 was killed by signal 9") as caught:
        run_nodes(document(checkout, 3, DIES="1", SLOW="5"), said.append)
    assert "the same command goes on" in (caught.value.fix or "")
    assert [line for line in said if "again" in line][-1].endswith("2 of 2 times")
    assert len((checkout / "node-1").read_text().split()) == 3
    assert not any(psutil.pid_exists(pid) for pid in pids(checkout))
    run_nodes(document(checkout, 2), said.append)
    assert files_in(checkout.parent / "out") == expected_files(checkout)


def test_ctrl_c_ends_all_nodes_and_the_same_call_goes_on(checkout):
    process = start(checkout, 3, SLOW="0.6")
    wait_for_parts(checkout, 3)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    for rank in range(3):
        assert f"node {rank}: interrupted; " in said, said
    assert not any(psutil.pid_exists(pid) for pid in pids(checkout))
    out = checkout.parent / "out"
    kept = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert not (out / "manifest.json").exists()
    run_nodes(document(checkout, 2), lambda line: None)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert files_in(out) == expected_files(checkout)


def test_nodes_end_when_the_command_is_killed(checkout):
    process = start(checkout, 2, SLOW="1")
    wait_for_parts(checkout, 1)
    process.kill()
    process.communicate()
    give_up = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids(checkout)):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_what_a_node_says_of_a_failure_comes_before_the_end_of_all(checkout):
    said: list[str] = []
    with pytest.raises(EngineError, match=r"node \d of 2 ended with exit code 3"):
        run_nodes(document(checkout, 2, LDLM_SOURCE="/no/such/text.txt"), said.append)
    assert any("error: /no/such/text.txt: the source cannot be read" in line for line in said)


def test_a_set_up_that_fails_starts_no_node(checkout):
    broken = document(checkout, 2) | {"setup": "echo no disk; exit 4"}
    said: list[str] = []
    with pytest.raises(EngineError, match="set-up ended with exit code 4"):
        run_nodes(broken, said.append)
    assert said == ["set-up: no disk"] and pids(checkout) == []
