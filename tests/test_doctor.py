"""`ldlm doctor`: real stores, a server in Vast's place for Vast's own SDK, stand-ins for clouds' commands."""

import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path

import pytest
from cli_lab import RECIPE, Terminal, check_golden, environment, files_below, ldlm
from launch_examples import example_plan
from local_http import serving
from s3_server import KEYS, S3Server, running_s3_server

from launcher import doctor, doctor_here
from launcher.doctor_clouds import look_at_azure_quota, look_at_credit, look_at_gcp_quota, look_at_renting
from launcher.doctor_here import look_at_disk, look_at_store, look_at_wandb
from launcher.findings import Finding, Verdict
from launcher.offers import Offer
from trainer.contract import Document
from trainer.store import open_store

KEY = "a-key-that-nobody-may-see"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home, empty, with nothing in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SKYPILOT_API_SERVER_ENDPOINT", "LDLM_STORE", "VAST_API_KEY", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def one(findings: Iterator[Finding]) -> Finding:
    (found,) = findings
    return found


# --- The screen


def test_the_screen_fits_80_columns_and_folds_nothing_that_is_typed(
        capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show([
        Finding("disk", Verdict.OK, "64.3 GiB free at /home/you/.ldlm"),
        Finding("store", Verdict.PROBLEM, "s3://bucket/ldlm: cannot write: AccessDenied: this key may read "
                "and list, and nothing else", "check that the key is right and may do this"),
        Finding("Azure quota", Verdict.NOT_CHECKED, "az is not installed here",
                "az vm list-usage --location eastus --output json")])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    check_golden("screen-doctor.txt", said)


def test_json_says_the_same_and_whether_all_is_ready() -> None:
    good, bad = Finding("disk", Verdict.OK, "64 GiB"), Finding("store", Verdict.PROBLEM, "no", "mend it")
    assert doctor.as_json([good]) == {"ready": True, "findings": [
        {"what": "disk", "verdict": "ok", "detail": "64 GiB", "fix": None}]}
    assert doctor.as_json([good, bad])["ready"] is False


def test_on_this_machine_alone_neither_skypilot_nor_a_cloud_is_looked_at(home: Path) -> None:
    (home / "store").mkdir()
    done = ldlm("doctor", "--infra", "local", "--store", str(home / "store"), "--json")
    assert done.returncode == 0, done.stderr
    found = {line["what"]: line["verdict"] for line in json.loads(done.stdout)["findings"]}
    assert found == {"disk": "ok", "store": "ok", "clock": "ok", "W&B": "not checked",
                     "webhook": "not checked"}
    assert files_below(home / "store") == []


def test_a_problem_of_what_is_asked_for_ends_it_with_the_engine_s_code(home: Path) -> None:
    done = ldlm("doctor", RECIPE, "--infra", "vast", "--store", str(home / "runs"))
    assert done.returncode == 5
    assert f"file://{home}/runsisonthismachine,and" in "".join(done.stdout.split())  # folded
    assert "do: ldlm init --store s3://BUCKET/PREFIX" in done.stdout
    assert "Azure" not in done.stdout and "GCP" not in done.stdout
    assert done.stderr.count("error:") == 1
    assert "problems found" in done.stderr and "fix: do what stands beneath each" in done.stderr
    assert not (home / "runs").exists()


@pytest.mark.parametrize(("args", "code", "words"), [
    (("--infra", "mars"), 2, "'mars' is no infrastructure that ldlm knows"),
    (("--infra", "k8s/mine"), 5, "there is no engine for 'k8s/mine'"),
    (("exampel",), 3, "there is no such recipe"),
    (("--store", "ftp://x", "--infra", "local"), 5, "1 problem found")])
def test_what_cannot_be_looked_at_is_told(home: Path, args: tuple[str, ...], code: int, words: str) -> None:
    done = ldlm("doctor", *args)
    assert done.returncode == code
    assert words in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_ends_it_though_a_store_never_answers(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        screen = Terminal("doctor", "--infra", "local", "--store", f"s3://b?endpoint={endpoint}&region=x",
                          env=environment(**KEYS))
        silent.accept()
        screen.type("\x03")
        assert screen.wait() == 130


# --- Disk, store, clock, W&B


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch, running_s3_server() as server:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        server.make_bucket("runs")
        yield server


def test_a_bucket_is_used_in_every_way_and_left_as_it_was(s3: S3Server) -> None:
    store, clock = look_at_store(s3.url("runs", "ldlm"), is_rented=True)
    assert store == Finding("store", Verdict.OK, "s3://runs/ldlm: written, read, listed, deleted")
    assert clock.verdict is Verdict.OK and "s of the store's" in clock.detail
    assert open_store(s3.url("runs")).objects() == []


def test_keys_that_may_not_write_are_a_problem_of_the_store(s3: S3Server) -> None:
    s3.trust_nobody()
    try:
        done = ldlm("doctor", "--infra", "local", "--store", s3.url("runs"))
    finally:
        s3.trust_everybody()
    assert done.returncode == 5
    assert "problem      store" in done.stdout and "do: " in done.stdout


@pytest.mark.parametrize(("ahead_s", "verdict", "words"), [
    (0.4, Verdict.OK, "within 1 s"), (-60, Verdict.OK, "within 60 s"),
    (90, Verdict.PROBLEM, "90 s ahead of the store's"), (-3600, Verdict.PROBLEM, "3600 s behind")])
def test_a_clock_is_judged_as_nodes_judge_theirs(ahead_s: float, verdict: Verdict, words: str) -> None:
    found = doctor_here._clock(ahead_s)
    assert found.verdict is verdict and words in found.detail
    assert bool(found.fix) is (verdict is Verdict.PROBLEM)


def test_without_a_store_only_who_rents_has_a_problem() -> None:
    assert one(look_at_store(None, is_rented=True)).verdict is Verdict.PROBLEM
    assert one(look_at_store(None, is_rented=False)).verdict is Verdict.NOT_CHECKED


def test_a_full_disk_and_a_home_that_cannot_be_written_are_told(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDLM_HOME", str(tmp_path / "deep" / "home"))
    assert one(look_at_disk()).verdict is Verdict.OK
    monkeypatch.setattr(doctor_here, "_LEAST_FREE", 2**60)
    assert "GiB free" in one(look_at_disk()).detail and one(look_at_disk()).verdict is Verdict.PROBLEM


@pytest.mark.parametrize(("mode", "key", "verdict"), [
    ("auto", "", Verdict.NOT_CHECKED), ("auto", KEY, Verdict.OK), ("online", "", Verdict.PROBLEM),
    ("online", KEY, Verdict.OK), ("off", "", Verdict.OK), ("offline", "", Verdict.OK)])
def test_wandb_wants_a_key_only_where_the_recipe_does(monkeypatch, mode: str, key: str,
                                                      verdict: Verdict) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    found = one(look_at_wandb(mode))
    assert found.verdict is verdict and KEY not in f"{found}"


# --- Vast


@contextmanager
def vast_at(status: int, answer: object) -> Iterator[tuple[str, list[str]]]:
    """A server in Vast's place: its URL, and the keys and paths that it was asked with."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.headers['Authorization']} {self.path}")
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    with serving(Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}", asked


def credit_line(home: Path, url: str) -> dict[str, str]:
    """The line about credit, from a process: the SDK reads VAST_URL when it is imported."""
    pytest.importorskip("vastai")
    (home / ".config" / "vastai").mkdir(parents=True)
    (home / ".config" / "vastai" / "vast_api_key").write_text(KEY)
    done = ldlm("doctor", RECIPE, "--infra", "vast", "--store", "s3://bucket", "--json",
                env=environment(VAST_URL=url, NO_PROXY="127.0.0.1", AWS_EC2_METADATA_DISABLED="true"))
    assert KEY not in done.stdout + done.stderr
    return next(line for line in json.loads(done.stdout)["findings"] if line["what"] == "Vast credit")


@pytest.mark.parametrize(("credit", "verdict"), [(900.5, "ok"), (0.01, "problem"), (-3, "problem")])
def test_vast_s_credit_stands_beside_what_the_plan_may_take(home: Path, credit: float, verdict: str) -> None:
    with vast_at(200, {"credit": credit, "balance": 0, "api_key": KEY}) as (url, asked):
        line = credit_line(home, url)
    assert line["verdict"] == verdict
    assert f"{abs(credit):.2f} prepaid, example may take $" in line["detail"]
    assert asked == [f"Bearer {KEY} /api/v0/users/current"]


@pytest.mark.parametrize(("status", "verdict", "words"), [
    (401, "problem", "does not take the key (HTTP 401)"), (500, "not checked", "did not say (HTTP 500)"),
    (200, "not checked", "did not say (KeyError)")])
def test_a_key_that_vast_refuses_is_told_and_not_shown(home: Path, status: int, verdict: str,
                                                       words: str) -> None:
    with vast_at(status, {"error": KEY}) as (url, _):
        line = credit_line(home, url)
    assert line["verdict"] == verdict and words in line["detail"]


def test_without_vast_s_package_credit_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vastai", None)
    assert one(look_at_credit(None)).verdict is Verdict.NOT_CHECKED


# --- Quota


def stand_in(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """A program in the place of a cloud's own."""
    folder = home / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho \"$@\" >> {folder}/asked\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def azure(limit: int, used: int) -> str:
    usage = [{"currentValue": "3", "limit": "10", "name": {"value": "cores"}},
             {"currentValue": str(used), "limit": str(limit), "name": {"value": "lowPriorityCores"}}]
    return f"echo '{json.dumps(usage)}'"


def offer(infra: str, gpu: str, num_gpus: int, num_nodes: int = 1) -> Offer:
    planned = example_plan("azure").offers[Document.TRAIN]
    return planned.model_copy(update={"infra": infra, "gpu": gpu, "num_gpus": num_gpus,
                                      "num_nodes": num_nodes, "spot": True})


def test_a_cloud_that_a_run_would_only_fall_back_to_is_looked_at_and_may_be_missing(home: Path) -> None:
    places = ('[{infra: azure, gpu: "H100:1", price_usd_per_hour: 7}, '
              '{infra: gcp, gpu: "H100:1", price_usd_per_hour: 11}]')
    recipe = home / "two.yaml"
    text = re.sub(r"hardware:.*?\n\n", "", Path(RECIPE).read_text(), flags=re.DOTALL)
    text = text.replace("max_cost_usd: 1.00", "max_cost_usd: 99")
    recipe.write_text(f"{text}\nhardware: {{train: {places}, bench: {places}}}\n")
    done = ldlm("doctor", str(recipe), "--store", str(home / "runs"), "--json")
    verdicts = {found["what"]: found["verdict"] for found in json.loads(done.stdout)["findings"]}
    assert (verdicts["Azure"], verdicts["GCP"]) == ("problem", "not checked"), done.stdout + done.stderr
    assert "Vast" not in verdicts


@pytest.mark.parametrize(("limit", "used", "wanted", "verdict", "words"), [
    (20, 0, None, Verdict.PROBLEM, "20 of 20 spot vCPUs are free in eastus; one H100 takes 40"),
    (40, 0, None, Verdict.OK, "40 of 40 spot vCPUs are free in eastus; 40 are needed"),
    (100, 70, ("H100", 1), Verdict.PROBLEM, "30 of 100 spot vCPUs are free in eastus; H100:1 takes 40"),
    (100, 0, ("A100-80GB", 2, 3), Verdict.PROBLEM, "3x A100-80GB:2 takes 144"),
    (0, 0, ("T4", 1), Verdict.OK, "0 of 0 spot vCPUs are free in eastus")])
def test_azure_s_spot_pool_is_compared_with_the_machine(home: Path, monkeypatch, limit, used, wanted, verdict,
                                                        words) -> None:
    stand_in(home, monkeypatch, "az", azure(limit, used))
    found = one(look_at_azure_quota(offer("azure", *wanted) if wanted else None, "eastus"))
    assert found.verdict is verdict and words in found.detail
    assert (home / "bin" / "asked").read_text() == "vm list-usage --location eastus --output json\n"


def test_gcp_s_quota_is_that_of_the_plan_s_cards(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quotas = {"quotas": [{"limit": 96.0, "metric": "CPUS", "usage": 28.0},
                         {"limit": 2.0, "metric": "PREEMPTIBLE_NVIDIA_A100_80GB_GPUS", "usage": 1.0},
                         {"limit": 0.0, "metric": "PREEMPTIBLE_NVIDIA_H100_GPUS", "usage": 0.0}]}
    stand_in(home, monkeypatch, "gcloud", f"echo '{json.dumps(quotas)}'")

    def line(*gpu: object) -> Finding:
        return one(look_at_gcp_quota(offer("gcp", *gpu) if gpu else None, "us-central1"))

    assert line("A100-80GB", 1).verdict is Verdict.OK
    assert line("A100-80GB", 2).detail == (
        "1 PREEMPTIBLE_NVIDIA_A100_80GB_GPUS are free in us-central1, 2 needed")
    assert line("A100-80GB", 2).verdict is line("H100", 1).verdict is Verdict.PROBLEM
    assert line("RTXPRO6000", 1).verdict is Verdict.NOT_CHECKED
    assert line().detail == "spot in us-central1: 1 A100_80GB_GPUS"
    assert "regions describe us-central1 --format json(quotas)" in (home / "bin" / "asked").read_text()


@pytest.mark.parametrize(("script", "region", "words"), [
    ("exit 1", "eastus", "az failed (CalledProcessError)"),
    ("echo torn {", "eastus", "az failed (JSONDecodeError)"),
    ("echo '[]'", "eastus", "eastus names no lowPriorityCores"), ("exit 1", None, "no region is named"),
    (None, "eastus", "az is not installed here"), ("sleep 60", "eastus", "az took longer than")])
def test_a_cloud_that_cannot_be_asked_is_left_open_with_what_to_type(home: Path, monkeypatch, script, region,
                                                                     words) -> None:
    monkeypatch.setattr("launcher.doctor_clouds._TIMEOUT_S", 2 if script != "sleep 60" else 0.3)
    monkeypatch.setenv("PATH", "/nowhere")
    if script:
        stand_in(home, monkeypatch, "az", script)
    found = one(look_at_azure_quota(None, region))
    assert found.verdict is Verdict.NOT_CHECKED and words in found.detail
    assert found.fix == ("add --infra azure/REGION" if region is None else
                         "az vm list-usage --location eastus --output json")


def test_who_is_signed_in_without_the_package_is_told_and_who_has_nothing_is_not_blamed(home: Path) -> None:
    (home / ".azure").mkdir()
    (home / ".azure" / "msal_token_cache.json").write_text("{}")
    done = ldlm("doctor", "--store", str(home / "none"), "--json")
    found = {line["what"]: line for line in json.loads(done.stdout)["findings"]}
    if find_spec("azure") is None:
        assert found["Azure"]["verdict"] == "problem" and "'.[azure]'" in found["Azure"]["fix"]
    assert found["GCP"]["verdict"] == found["Vast"]["verdict"] == "not checked"
    assert "GCP quota" not in found and "Azure quota" in found




@pytest.mark.parametrize(("store", "key", "verdicts"), [
    ("s3://bucket/ldlm", "", [Verdict.PROBLEM]), ("s3://bucket/ldlm", ".config/vastai/vast_api_key", []),
    ("s3://bucket/ldlm", ".azure/azureProfile.json", []), ("file:///runs", "", [])])
def test_who_keeps_runs_in_a_bucket_and_can_rent_nowhere_has_a_problem(
        home: Path, store: str, key: str, verdicts: list[Verdict]) -> None:
    if key:
        (home / key).parent.mkdir(parents=True)
        (home / key).write_text("key")
    assert [finding.verdict for finding in look_at_renting(store)] == verdicts
