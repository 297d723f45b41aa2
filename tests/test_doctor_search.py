"""What the doctor says of Vast's search, by the bytes that were sent: code as it is, and broken code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_lab import files_below
from sky_server_lab import ROOT, checkout_in
from test_doctor import vast_at

pytest.importorskip("vastai")
pytest.importorskip("sky.server.plugins")

LOOK = """
import json
from launcher.doctor_search import look_at_search
(found,) = look_at_search()
print(json.dumps([found.what, str(found.verdict), found.detail, found.fix]))
"""


def line(home: Path, checkout: Path = ROOT, **env: str) -> list[str]:
    """What the doctor says there, in an empty home and without a key."""
    home.mkdir()
    kept = {name: text for name, text in os.environ.items() if name != "VAST_API_KEY"}
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=checkout, text=True, capture_output=True,
                          env=kept | {"HOME": str(home), "PYTHONPATH": str(checkout)} | env, check=True)
    assert files_below(home) == []
    found: list[str] = json.loads(done.stdout)
    return found


def test_every_filter_of_a_rental_is_seen_on_the_wire_without_a_key_and_without_asking_vast(
        tmp_path: Path) -> None:
    with vast_at(200, {"offers": []}) as (url, asked):
        found = line(tmp_path / "home", VAST_URL=url)
    assert found == ["Vast search", "ok", (
        "sent to a loopback, it says: compute_cap, cpu_ram, cuda_max_good, disk_space, gpu_name, gpu_ram, "
        "inet_down, inet_up, min_bid, num_gpus, reliability, rentable, type, verified"), ""]
    assert asked == []


def test_a_search_whose_filters_get_lost_on_the_way_is_a_problem_that_names_them(tmp_path: Path) -> None:
    checkout = checkout_in(tmp_path / "code")
    path = checkout / "launcher/market_search.py"
    as_skypilot_writes_it = """query='num_gpus=1 gpu_name="RTX 5090" reliability>="0.95"'"""
    path.write_text(path.read_text().replace("query=dict(query)", as_skypilot_writes_it))
    what, verdict, detail, fix = line(tmp_path / "home", checkout)
    assert (what, verdict, fix) == ("Vast search", "problem", "python3 -m trainer.environment launcher")
    lost = detail.partition("it does not say as meant: ")[2].split(", ")
    assert {"reliability", "cuda_max_good", "disk_space", "min_bid"} <= set(lost) and "gpu_name" not in lost


def test_without_vast_s_package_it_is_left_open(tmp_path: Path) -> None:
    checkout = checkout_in(tmp_path / "code")
    (checkout / "vastai.py").write_text("raise ImportError('no package of Vast')\n")
    assert line(tmp_path / "home", checkout)[1:] == [
        "not checked", "could not be tried: ImportError: no package of Vast",
        "python3 -m trainer.environment launcher"]
