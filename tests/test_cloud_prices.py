"""Disk, address and network on Azure and GCP: counted on the node, in the ledger and in the plan alike.

The oracle is a provider that keeps its own books: prices as they are published, a meter that goes by the
minute, bytes by the counter of each machine. It shares no code with what it judges, and no table of prices.
"""

import random
import socket
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from launch_examples import NOW, example_plan, example_recipe, example_task

from launcher.attempt_cost import Category
from launcher.cloud_prices import address_usd_per_hour, disk_usd_per_hour, egress_usd_per_gb
from launcher.engine import EnginePhase, EngineState
from launcher.offers import Offer
from launcher.priced_offers import PricedOffer
from launcher.report import cost_report
from launcher.run_record import RunRecord, look_at
from launcher.running_costs import running_costs
from trainer import own_bill
from trainer.at_most import standing_of
from trainer.contract import ConfigError, Document, Env
from trainer.run_folder import Attempt, AttemptEnd, AttemptFiles, RunFolder, Traffic
from trainer.spent import spent_usd
from trainer.store import open_store

MINUTE = timedelta(minutes=1)
MACHINE = {"gcp": "a2-highgpu-1g", "azure": "Standard_NC24ads_A100_v4"}


def offer_of(infra: str, gib: int = 100, *, spot: bool = True, machine: str | None = "",
             nodes: int = 1) -> Offer:
    """One that is listed as a machine of that type; an empty one is ordinary, None is not listed."""
    cloud, _, region = infra.partition("/")
    listed = None if machine is None else PricedOffer(
        cloud=cloud, region=region or "anywhere", gpu="A100", num_gpus=1, terms="spot", seen_at=NOW,
        price_usd_per_hour=Decimal(2), source="a list", instance_type=machine or MACHINE[cloud])
    return example_plan("azure").offers[Document.TRAIN].model_copy(update={
        "infra": infra, "disk_gib": gib, "spot": spot, "listed": listed, "num_nodes": nodes})


@pytest.mark.parametrize(("infra", "gib", "machine", "usd_a_month"), [
    ("gcp/us-central1", 100, "", "10.00"),  # $0.10 a GiB of pd-balanced
    ("gcp/us-central1", 100, "g4-standard-48", "17.00"),  # Hyperdisk alone: as the SSD
    ("gcp/us-central1", 100, None, "17.00"),  # a machine that nobody knows
    ("gcp/us-east4", 100, "", "15.00"), ("gcp", 100, "", "15.00"),  # elsewhere, and anywhere: half more
    ("azure/eastus", 100, "", "19.71"), ("azure/eastus", 128, "", "19.71"),  # P10
    ("azure/eastus", 129, "", "38.02"), ("azure/eastus", 1025, "", "259.05"),  # P15, P40
    ("azure/brazilsouth", 100, "", "29.565"), ("azure/eastus", 8192, "", "991.14")])
def test_a_disk_costs_what_its_cloud_lists(
        infra: str, gib: int, machine: str | None, usd_a_month: str) -> None:
    each = disk_usd_per_hour(offer_of(infra, gib, machine=machine))
    assert each * 730 == pytest.approx(Decimal(usd_a_month))
    assert disk_usd_per_hour(offer_of(infra, gib, machine=machine, nodes=3)) == pytest.approx(3 * each)


def test_an_address_costs_half_on_spot_of_google_alone() -> None:
    assert [address_usd_per_hour(offer_of(cloud, spot=spot, nodes=2)) * 1000 for cloud in ("gcp", "azure")
            for spot in (True, False)] == [5, 10, 10, 10]


@pytest.mark.parametrize(("infra", "store", "usd_per_gib", "usd_per_gb"), [
    ("gcp/us-east4", "s3://box/ldlm", "0.12", None),
    ("gcp/us-east4", "gs://box/ldlm", "0.12", None),  # a bucket may be anywhere
    ("gcp/us-east4", "gs://box/ldlm?region=us-east1", "0.12", None),
    ("gcp/us-east4/us-east4-a", "gs://box/ldlm?region=US-EAST4", "0", None),
    ("gcp/us-east4", "s3://box/ldlm?region=us-east4", "0.12", None),
    ("gcp/us-east4", "s3://box/ldlm?region=australia-southeast1", "0.19", None),
    ("gcp", "gs://box/ldlm?region=us-east4", "0.19", None),  # the machine may be anywhere
    ("gcp/us-east4", None, "0.12", None),
    ("azure/westus3", "az://acct/box?region=eastus", None, "0.087"),
    ("azure/eastus", "az://acct/box?region=eastus", None, "0"),
    ("azure/swedencentral", "gs://box/ldlm", None, "0.087"),
    ("azure/australiaeast", "gs://box/ldlm", None, "0.12"), ("azure/japaneast", None, None, "0.12"),
    ("azure/brazilsouth", "az://acct/box", None, "0.181"), ("azure", "az://acct/box", None, "0.181")])
def test_what_leaves_a_machine_is_free_only_where_it_is_known_to_stay_in_its_region(
        infra: str, store: str | None, usd_per_gib: str | None, usd_per_gb: str | None) -> None:
    gb = Fraction(usd_per_gb) if usd_per_gb else Fraction(usd_per_gib or 0) * 10**9 / 2**30
    assert float(egress_usd_per_gb(infra, store)) == pytest.approx(float(gb), rel=1e-12)


class Books:
    """A provider's, by the minute.

    Attributes:
        disk, network: Dollars so far; an address is network.
    """

    def __init__(self, disk_a_month: str, address_an_hour: str, usd_per_byte: Fraction) -> None:
        self._disk, self._address, self._byte = Fraction(disk_a_month) / 730 / 60, Fraction(
            address_an_hour) / 60, usd_per_byte
        self.disk = self.network = Fraction(0)

    def minutes(self, number: int, sent: int) -> None:
        for _ in range(number):
            self.disk += self._disk
            self.network += self._address
        self.network += sent * self._byte


def histories(seed: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Machines: the minutes before the first attempt of each, then minutes and bytes of its attempts."""
    chance = random.Random(seed)
    return [(chance.randint(1, 9), [(chance.randint(1, 400), chance.randint(0, 30 * 10**9))
                                    for _ in range(chance.randint(1, 3))])
            for _ in range(chance.randint(1, 4))]


def play(seed: int, envs: dict[str, str], folder: RunFolder, theirs: Books, monkeypatch: pytest.MonkeyPatch
         ) -> list[AttemptFiles]:
    """One machine after the other, as its own programs write it and its provider meters it."""
    now = NOW
    for number, (before, attempts) in enumerate(histories(seed)):
        booted, counter = now + 7 * MINUTE, 0  # these without a machine
        monkeypatch.setattr(socket, "gethostname", lambda host=f"host-{number}": host)
        now = booted + before * MINUTE
        theirs.minutes(before, 0)
        for index, (minutes, sent) in enumerate(attempts):
            # A boot comes out a little differently each time that it is computed.
            wobble = timedelta(seconds=random.Random(seed + index).uniform(-2, 2)) * bool(index)
            monkeypatch.setattr(own_bill, "booted_at", lambda environ, at=booted + wobble: at)
            own = folder.claim_attempt(
                Document.TRAIN, billed_from=booted if index == 0 else now, offer="o", host=f"host-{number}",
                price_usd_per_hour=Decimal(2), cloud="gcp", terms=own_bill.terms_of_run(folder, envs))
            now, counter = now + minutes * MINUTE, counter + sent
            theirs.minutes(minutes, sent)
            folder.write(f"attempts/{own.number}/end.json", AttemptEnd(
                at=now, exit_code=1, preempted=False, reason="", traffic=Traffic(sent_bytes=counter)))
    return folder.attempts()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("infra", "books"), [
    # 100 GiB of a spot machine that nobody has listed; uploads to S3.
    ("gcp/us-central1", ("17", "0.0025", Fraction("0.12") / 2**30)),
    ("azure", ("29.565", "0.005", Fraction("0.181") / 10**9))])
def test_guard_and_ledger_come_to_what_the_provider_bills(
        seed: int, infra: str, books: tuple[str, str, Fraction], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    envs, theirs = example_task(infra).document(Document.TRAIN)["envs"], Books(*books)
    found = play(seed, envs, RunFolder(open_store(str(tmp_path)), "one"), theirs, monkeypatch)

    now = found[-1].end.at
    hours_usd = 2 * sum(((one.end.at - one.attempt.billed_from) / timedelta(hours=1) for one in found), 0.0)
    record = RunRecord("one", "u", "a", None, found, (), None, None)
    ledger = cost_report(look_at(record, EngineState(EnginePhase.ENDED), now)).by_category()
    everything = pytest.approx(float(theirs.disk + theirs.network) + hours_usd, abs=1e-5)
    assert float(ledger[Category.DISK]) == pytest.approx(float(theirs.disk), abs=1e-5)
    assert float(ledger[Category.NETWORK]) == pytest.approx(float(theirs.network), abs=1e-5)
    assert float(sum(ledger.values())) == everything
    assert float(spent_usd(found, now)) == everything
    # The guard takes each machine to be given back 90 seconds late; $2.06 an hour with its disk and address.
    late_usd = float(standing_of(found, (), now).spent_usd) - float(spent_usd(found, now))
    assert 0 <= late_usd <= 2.06 * 90 / 3600 * len(histories(seed))


def test_the_guard_goes_on_at_the_price_of_all_that_goes_on_and_sees_bytes_before_they_are_written() -> None:
    terms = own_bill.ListPrices(disk_usd_per_hour=Decimal("0.06"), address_usd_per_hour=Decimal("0.04"),
                                sent_usd_per_gb=Decimal("0.5")).since(NOW)
    own = Attempt(number=1, document=Document.TRAIN, billed_from=NOW, price_usd_per_hour=Decimal(2), host="h",
                  offer="o", cloud="gcp", terms=terms)
    standing = standing_of([AttemptFiles(attempt=own)], (), NOW + 60 * MINUTE,
                           Traffic(received_bytes=10**12, sent_bytes=4 * 10**9))
    assert (standing.spent_usd, standing.usd_per_hour) == (Decimal("4.10"), Decimal("2.10"))


def test_a_machine_by_a_list_does_not_hide_what_a_contract_tells_of_those_before_it() -> None:
    """At Vast one never began (7), one ran for an hour; the run goes on at GCP, whose task tells of none."""
    told = own_bill.RentalTerms(rented_at=NOW, disk_usd_per_hour=Decimal("0.10"),
                                earlier=((NOW - 90 * MINUTE, Decimal(7)),))
    listed = own_bill.RentalTerms(rented_at=NOW + 60 * MINUTE, by_list=True,
                                  disk_usd_per_hour=Decimal("0.20"))
    run = [AttemptFiles(attempt=Attempt(number=number, document=Document.TRAIN, billed_from=terms.rented_at,
                                        price_usd_per_hour=Decimal(1), offer="o", host=f"h{number}",
                                        cloud=cloud, terms=terms), end=end)
           for number, cloud, terms, end in (
               (1, "vast", told, AttemptEnd(at=NOW + 60 * MINUTE, exit_code=1, preempted=False, reason="")),
               (2, "gcp", listed, None))]
    now = NOW + 120 * MINUTE
    assert spent_usd(run, now) == standing_of(run, (), now).spent_usd == Decimal("9.30")


@pytest.mark.parametrize("text", ["{", '{"disk_usd_per_hour": "NaN"}', '{"disk_usd_per_hour": "-1", '
                                  '"address_usd_per_hour": "0", "sent_usd_per_gb": "0"}'])
def test_list_prices_that_say_no_amount_are_refused_and_where_nobody_bills_them_not_read(
        text: str, tmp_path: Path) -> None:
    folder = RunFolder(open_store(str(tmp_path)), "one")
    envs = {Env.LIST_PRICES: text, "SKYPILOT_CLUSTER_INFO": '{"cloud": "gcp"}'}
    with pytest.raises(ConfigError, match="list prices cannot be read"):
        own_bill.terms_of_run(folder, envs)
    assert own_bill.terms_of_run(folder, {Env.LIST_PRICES: text}) is None  # at home
    assert own_bill.terms_of_run(folder, {**envs, Env.LIST_PRICES: ""}) is None


@pytest.mark.parametrize("infra", ["gcp/us-central1", "azure"])
def test_the_plan_adds_what_the_node_will_count(infra: str) -> None:
    plan, store = example_plan(infra), example_recipe().store
    envs = example_task(infra).document(Document.TRAIN)["envs"]
    told = own_bill.ListPrices.model_validate_json(envs[Env.LIST_PRICES])
    costs = running_costs(plan.offers[Document.TRAIN], store, plan.sizes, plan.saves, plan.start, None)
    assert float(costs.held_usd_per_hour) == pytest.approx(
        float(told.disk_usd_per_hour + told.address_usd_per_hour), abs=1e-7)
    assert float(costs.save_usd) == pytest.approx(
        plan.saves.num_bytes / 1e9 * (float(told.sent_usd_per_gb) + 0.0003), rel=1e-6)
    assert float(envs[Env.MAX_COST]) == plan.max_cost_usd and plan.uncounted_usd == 0


def test_a_plan_says_what_an_unsaid_region_of_the_store_costs() -> None:
    def said(store: str) -> list[str]:
        plan = example_plan("gcp/us-central1", f"store={store}")
        return [text for text in plan.warnings if "region" in text]
    assert said("gs://box/ldlm?region=us-central1") == said("gs://box/ldlm?region=us-east1") == []
    assert said("s3://box/ldlm") == []
    assert said("gs://box/ldlm") == [
        "the store's URL does not say in which region it is, so that uploads count $0.112 a GB, as if they "
        "left gcp; if it is that of the machines, say so: gs://box/ldlm?region=REGION"]
