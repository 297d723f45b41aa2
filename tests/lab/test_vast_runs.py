"""Whole runs on machines that are taken away: the real CLI, SkyPilot, provisioner, trainer and an S3 server;
the fake of Vast rents out namespaces and sends the bill that ours has to equal.
"""

import json
import re
import shlex
import subprocess
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from launcher.vast_onstart import deadman
from tests.lab.runs import (
    LAB,
    ROOT,
    durable,
    has_ended,
    ldlm,
    record_of,
    wait_for,
)
from tests.lab.vast_client import FakeVast
from tests.lab.vast_host import processes_in
from tests.lab.vast_offers import LIAR_OFFER
from trainer.contract import ExitCode, Outcome
from trainer.store import open_store

pytestmark = pytest.mark.lab
CENT = Decimal("0.01")
# Files that would let somebody on a rented machine spend the user's money.
CREDENTIALS = (".config/vastai", ".vast_api_key", ".aws", ".azure", ".config/gcloud", ".sky/.sky_key")


def launch(store: str, run_id: str, *more: str) -> None:
    done = ldlm("launch", str(ROOT / "tests/lab/vast.yaml"), "--allow-dirty", "--infra", "vast",
                "--store", store,
                "--run-id", run_id, "--yes", "--detach", *more)
    assert done.returncode == 0, done.stderr


def losses(store: str, run_id: str, attempt: int) -> dict[int, float]:
    """The loss of every logged step that one attempt has left."""
    opened, found = open_store(store), {}
    for chunk in opened.objects(f"{run_id}/attempts/{attempt}/metrics"):
        for line in opened.get(chunk.key).decode().splitlines():
            row = json.loads(line)
            if "loss/total" in row or "loss/diffusion" in row:
                found[row["step"]] = row.get("loss/total", row.get("loss/diffusion"))
    return found


def ssh(address: str, command: str) -> str:
    """What a command prints on an instance, with the key by which SkyPilot enters it."""
    (key,) = (LAB / "sky/.sky/clients").glob("*/ssh/sky-key")
    return in_the_lab(f"ssh -i {key} -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null "
                      f"-oLogLevel=ERROR root@{address} {shlex.quote(command)}")


def in_the_lab(command: str) -> str:
    """What a command prints in the environment of the lab's SkyPilot."""
    return subprocess.run(["bash", "-c", f". {LAB}/env.sh && cd && {command}"], text=True,
                          capture_output=True, check=True, timeout=300).stdout


def ends(store: str, run_id: str) -> list[tuple[str, int | None, bool, bool]]:
    """Of every attempt: document, exit code, preempted, wrong machine."""
    return [(files.attempt.document, files.end.exit_code, files.end.preempted, files.end.wrong_machine)
            for files in record_of(store, run_id).attempts if files.end]


class Bills:
    """What the fake charges for instances that are rented from now on."""

    def __init__(self, vast: FakeVast) -> None:
        self._vast, self._before = vast, set(vast.bill())

    def rows(self) -> list[dict[str, Any]]:
        return [bill for number, bill in self._vast.bill().items() if number not in self._before]

    def assert_equal(self, store: str, run_id: str) -> None:
        """When all is given back, ours, made of what nodes and SkyPilot's server saw, is the provider's."""
        wait_for(lambda: not self._vast.instances(), "the machines to be given back")
        done = ldlm("cost", run_id, "--store", store, "--json")
        ours = json.loads(done.stdout)
        theirs = sum((Decimal(row["total_usd"]) for row in self.rows()), Decimal(0))
        print(ldlm("cost", run_id, "--store", store).stdout, json.dumps(self.rows(), indent=1), sep="\n")
        assert abs(Decimal(ours["spent_usd"]) - theirs) < CENT, (ours, theirs)


def process_space(instance: dict[str, Any]) -> str:
    """The namespace in which all processes of an instance live."""
    return ssh(instance["ssh_host"], "readlink /proc/self/ns/pid").strip()


def test_a_wrong_card_and_a_lost_bid_cost_minutes_and_the_bill_is_the_provider_s(
        store: str, vast: FakeVast) -> None:
    """The first host has another card than it says, the second is outbid in the middle of training."""
    bills, run_id = Bills(vast), "vast-outbid"
    vast.show_liar(True)
    launch(store, run_id)
    wait_for(lambda: durable(store, run_id) >= 30, "a checkpoint")
    (told,) = [event for event in record_of(store, run_id).events if event.kind == "wrong_machine"]
    assert "RTX 3060" in told.detail["problem"]
    labels = [body["label"] for asked in vast.requests("PUT", "/api/v0/instances/")
              if "label" in (body := asked["body"])]
    assert labels[-1].startswith("train-") and labels[-1].endswith("-head (wrong machine)")

    (second,) = vast.instances()
    on_it = ssh(second["ssh_host"], f"cd /root; ls -d {' '.join(CREDENTIALS)} 2>/dev/null; "
                                    "env; cat .onstart.sh")
    assert not [name for name in CREDENTIALS if f"{name}\n" in on_it]
    assert vast.key not in on_it
    assert ssh(second["ssh_host"], f"grep -rlF {vast.key} /root /tmp /etc 2>/dev/null || true") == ""
    processes = process_space(second)
    assert processes_in(processes)
    vast.outbid(second["id"])
    assert processes_in(processes) == []  # or what follows could be the old one's work
    saved = durable(store, run_id)
    wait_for(lambda: has_ended(store, run_id), "the end")

    record = record_of(store, run_id)
    assert record.outcome is not None and record.outcome.outcome is Outcome.FINISHED
    assert record.outcome.step == 240 and record.bench is not None
    assert ends(store, run_id) == [("train", ExitCode.RECOVER, False, True), ("train", None, True, False),
                                   ("train", 0, False, False), ("bench", 0, False, False)]
    beat = record.attempts[2].heartbeat
    assert beat is not None and saved <= beat.resumed_from_step <= saved + 30
    again, before = losses(store, run_id, 3), losses(store, run_id, 2)
    assert min(again) == beat.resumed_from_step + 10 and max(again) == 240
    assert all(again[step] == pytest.approx(before[step], rel=1e-3) for step in set(again) & set(before))

    rented = vast.requests("PUT", "/api/v0/asks/")[-4:]
    offers = [int(found["path"].split("/")[4]) for found in rented]
    assert offers[0] == LIAR_OFFER and len(set(offers)) == 4
    assert [found["body"]["price"] for found in rented] == [1.60, 1.60, 1.60, 0.30]
    search = vast.requests("POST", "/api/v0/bundles/")[-1]["body"]
    assert search["gpu_name"] == {"eq": "RTX 5090"} and search["min_bid"] == {"lte": 0.3}
    assert search["reliability"] == {"gte": 0.95} and search["cuda_max_good"] == {"gte": 13.0}
    bills.assert_equal(store, run_id)


def test_a_run_whose_first_choice_is_not_to_be_had_pays_the_price_of_its_second(
        store: str, vast: FakeVast) -> None:
    """The cluster has no A100: SkyPilot goes on to Vast, and the node finds out that it is there."""
    bills, run_id = Bills(vast), "vast-second"
    own = "infra: slurm/ldlm, price_usd_per_hour: 2, gpu: 'A100-80GB:{}'"
    train = f"{{{own.format(2)}}}, {{infra: vast, gpu: 'H100:2', bid_usd_per_hour: 1.60, disk_gib: 40}}"
    bench = f"{{{own.format(1)}}}, {{infra: vast, gpu: 'RTX5090:1', bid_usd_per_hour: 0.30, disk_gib: 40}}"
    done = ldlm("launch", str(ROOT / "tests/lab/vast.yaml"), "--allow-dirty", "--store", store,
                "--run-id", run_id, "--yes", "--set", f"hardware.train=[{train}]", "--set",
                f"hardware.bench=[{bench}]", "--detach")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: has_ended(store, run_id), "the end")

    attempts = [files.attempt for files in record_of(store, run_id).attempts]
    assert [(one.document, one.offer, one.price_usd_per_hour) for one in attempts] == [
        ("train", "H100:2 on vast (interruptible)", Decimal("1.6")),
        ("bench", "RTX5090:1 on vast (interruptible)", Decimal("0.3"))]
    bills.assert_equal(store, run_id)


def test_a_host_that_vanishes_without_a_trace_costs_the_steps_since_the_last_checkpoint(
        store: str, vast: FakeVast) -> None:
    """Its benchmark then stands on the cluster, whose node is here: one run over two clouds."""
    bills, run_id = Bills(vast), "vast-vanish"
    done = ldlm("launch", str(ROOT / "tests/lab/vast.yaml"), "--allow-dirty", "--store", store, "--run-id",
                run_id, "--yes", "--detach", "--set",
                "hardware.bench=[{infra: slurm/ldlm, cpu_ranks: 1, price_usd_per_hour: 0}]")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: durable(store, run_id) >= 30, "a checkpoint")
    (first,) = vast.instances()
    processes = process_space(first)
    vast.vanish(first["id"])
    assert processes_in(processes) == []
    wait_for(lambda: has_ended(store, run_id), "the end")
    assert ends(store, run_id) == [("train", None, True, False), ("train", 0, False, False),
                                   ("bench", 0, False, False)]
    assert record_of(store, run_id).attempts[-1].attempt.cloud == "slurm"
    bills.assert_equal(store, run_id)


def test_a_run_is_found_again_after_the_api_server_was_restarted(store: str, vast: FakeVast) -> None:
    bills, run_id = Bills(vast), "vast-restart"
    launch(store, run_id)
    wait_for(lambda: durable(store, run_id) >= 30, "a checkpoint")
    (machine,) = vast.instances()
    processes = processes_in(process_space(machine))
    in_the_lab("sky api stop && sky api start")
    assert set(processes) & set(processes_in(process_space(machine)))  # nobody has begun them again
    wait_for(lambda: has_ended(store, run_id), "the end")
    assert ends(store, run_id) == [("train", 0, False, False), ("bench", 0, False, False)]
    record = record_of(store, run_id)
    assert record.outcome is not None and record.outcome.outcome is Outcome.FINISHED
    assert record.bench is not None
    bills.assert_equal(store, run_id)


def test_a_benchmark_without_a_machine_ends_the_run_in_its_time_and_is_made_when_there_is_one(
        store: str, vast: FakeVast) -> None:
    bills, run_id, cards = Bills(vast), "vast-no-5090", (5101, 5102)
    launch(store, run_id, "--set", "limits.bench_wait_hours=0.02")
    wait_for(lambda: durable(store, run_id) >= 30, "a checkpoint")
    for machine_id in cards:
        vast.price(machine_id, min_bid="9.99")
    wait_for(lambda: has_ended(store, run_id), "the end")
    record = record_of(store, run_id)
    assert record.outcome is not None and record.outcome.outcome is Outcome.FINISHED
    assert record.bench_end is not None and record.bench_end.outcome is Outcome.NO_CAPACITY
    assert f"ldlm bench {run_id}" in " ".join(ldlm("status", run_id, "--store", store).stdout.split())

    bench = ("bench", run_id, "--store", store, "--yes", "--detach")
    refused = ldlm(*bench)
    assert refused.returncode == 4 and "2 would from $9.99/h on" in " ".join(refused.stderr.split())
    assert vast.instances() == []
    vast.price(cards[0], min_bid="0.23")
    done = ldlm(*bench)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: has_ended(store, run_id), "the benchmark")
    record = record_of(store, run_id)
    assert record.bench is not None and record.bench_end is None
    bills.assert_equal(store, run_id)


def test_an_image_that_nobody_can_pull_ends_the_run_after_two_machines(store: str, vast: FakeVast) -> None:
    bills, run_id = Bills(vast), "vast-no-image"
    launch(store, run_id, "--set", "hardware.train.0.image=an/image:no-such-tag")
    wait_for(lambda: has_ended(store, run_id), "the end")
    record = record_of(store, run_id)
    assert record.outcome is not None and record.outcome.outcome is Outcome.BAD_CONFIG
    # Two suffice; until the watch looks, SkyPilot may have tried the next.
    said = re.match(r"([23]) machines could not pull the image an/image:no-such-tag: ", record.outcome.reason)
    assert said and len(bills.rows()) == int(said[1]), record.outcome.reason
    assert {row["machine_id"] for row in bills.rows()} >= {4102, 4103}
    bills.assert_equal(store, run_id)


def test_a_machine_that_nobody_uses_ends_itself_with_nobody_s_help(vast: FakeVast) -> None:
    offer = vast.offers(gpu_name={"eq": "RTX 5090"})[0]
    script = deadman(vast.url, "unused", look_s=1, limit_s=4)
    vast.rent(offer["id"], disk=10, onstart=f"(setsid bash -c {shlex.quote(script)} > /dev/null 2>&1 &)")
    vast.wait_for("running")
    wait_for(lambda: not vast.instances(), "the machine to give itself back")


def test_sweep_gives_back_what_no_run_needs_and_touches_nothing_else(store: str, vast: FakeVast) -> None:
    lost, other = (vast.rent(offer["id"], disk=10, label=label) for offer, label in zip(
        vast.offers(gpu_name={"eq": "RTX 5090"}), ("train-99-0f3a9c-head", "my-notebook"), strict=True))
    assert "a run of another server may be on it" in ldlm("sweep", "--yes").stderr
    with (LAB / "sky/.sky/ldlm_rentals.jsonl").open("a") as log:  # as if this server had rented it
        now = datetime.now(UTC).isoformat()
        print(json.dumps({"instance_id": str(lost), "machine_id": 1, "terms": {"disk_gb": 10},
                          "prices": [{"at": now, "usd_per_hour": "0.5"}], "rented_at": now}), file=log)
    (shown,) = json.loads(ldlm("sweep", "--json").stdout)
    assert (shown["instance_id"], shown["run_id"]) == (str(lost), None)
    refused = ldlm("sweep")
    assert refused.returncode == 1 and "nobody is here to answer" in refused.stderr
    assert {row["id"] for row in vast.instances()} == {lost, other}
    done = ldlm("sweep", "--yes")
    assert done.returncode == 0 and "gave back 1 machine, $" in done.stdout, done.stderr
    assert [row["id"] for row in vast.instances()] == [other]
    assert "no machine is without a run" in ldlm("sweep").stdout
