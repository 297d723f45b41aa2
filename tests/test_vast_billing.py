"""The bill of the lab's fake of Vast, with amounts that were worked out by hand from Vast's rules."""

import json
from decimal import Decimal

import pytest

from tests.lab.vast_billing import Account, Rates, Status

RATES = Rates(storage_usd_per_gb_month=Decimal("0.36"), up_usd_per_gb=Decimal("0.02"),
              down_usd_per_gb=Decimal("0.01"))


class Clock:
    """Unix seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = Decimal(1_000_000)

    def __call__(self) -> Decimal:
        return self.now

    def passes(self, seconds: str | int) -> None:
        self.now += Decimal(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def account(clock: Clock, price: str = "3.60", disk_gb: int = 100) -> Account:
    """At 100 GB the disk costs $0.36 x 100 / 720 h = $0.05 an hour."""
    return Account(RATES, Decimal(price), Decimal(disk_gb), clock)


def test_loading_costs_its_disk_and_no_gpu(clock: Clock) -> None:
    mine = account(clock)
    clock.passes(1800)
    bill = mine.bill()
    assert bill.seconds == {Status.LOADING: 1800, Status.RUNNING: 0, Status.STOPPED: 0}
    assert (bill.gpu_usd, bill.storage_usd, bill.network_usd) == (Decimal(0), Decimal("0.025"), Decimal(0))


def test_running_is_billed_by_the_second(clock: Clock) -> None:
    mine = account(clock)
    clock.passes(60)
    mine.becomes(Status.RUNNING)
    clock.passes(1)
    assert mine.bill().gpu_usd == Decimal("0.001")  # $3.60 an hour
    clock.passes(99)
    assert mine.bill().gpu_usd == Decimal("0.1")


def test_a_stopped_instance_keeps_costing_its_disk(clock: Clock) -> None:
    mine = account(clock)
    mine.becomes(Status.RUNNING)
    clock.passes(3600)
    mine.becomes(Status.STOPPED)
    clock.passes(7200)
    bill = mine.bill()
    assert bill.seconds[Status.STOPPED] == 7200
    assert bill.gpu_usd == Decimal("3.6")
    assert bill.storage_usd == Decimal("0.15")  # three hours
    assert bill.total_usd == Decimal("3.75")


def test_a_price_holds_for_its_own_time(clock: Clock) -> None:
    mine = account(clock, price="3.60")
    mine.becomes(Status.RUNNING)
    clock.passes(1000)
    mine.costs(Decimal("7.20"))
    clock.passes(500)
    assert mine.bill().gpu_usd == Decimal("2.0")  # $1 and $1
    mine.becomes(Status.STOPPED)
    mine.costs(Decimal("36"))
    clock.passes(500)
    assert mine.bill().gpu_usd == Decimal("2.0")
    mine.becomes(Status.RUNNING)
    clock.passes(10)
    assert mine.bill().gpu_usd == Decimal("2.1")


def test_bytes_cost_in_both_directions_at_their_own_price(clock: Clock) -> None:
    mine = account(clock)
    mine.transferred(up=500_000_000, down=2_000_000_000)
    mine.transferred(up=500_000_000, down=0)
    bill = mine.bill()
    assert (bill.bytes_up, bill.bytes_down) == (1_000_000_000, 2_000_000_000)
    assert bill.network_usd == Decimal("0.04")


def test_nothing_is_billed_once_it_is_destroyed(clock: Clock) -> None:
    mine = account(clock)
    mine.becomes(Status.RUNNING)
    clock.passes(36)
    mine.becomes(Status.DESTROYED)
    before = mine.bill()
    clock.passes(100_000)
    mine.becomes(Status.RUNNING)
    assert mine.bill() == before
    assert before.total_usd == Decimal("0.036") + Decimal("0.0005")


def test_segments_are_only_added(clock: Clock) -> None:
    mine = account(clock)
    seen = mine.bill().segments
    for status in (Status.RUNNING, Status.STOPPED, Status.RUNNING, Status.DESTROYED):
        clock.passes(1)
        mine.becomes(status)
        segments = mine.bill().segments
        assert segments[:len(seen)] == seen and len(segments) == len(seen) + 1
        seen = segments


def test_the_parts_of_a_bill_as_text_add_up(clock: Clock) -> None:
    mine = account(clock, price="0.333", disk_gb=7)
    mine.becomes(Status.RUNNING)
    clock.passes("1234.567891")
    mine.transferred(up=123_456, down=7_654_321)
    told = json.loads(json.dumps(mine.bill().as_json()))
    assert told["running_s"] == "1234.567891"
    assert told["gpu_usd"] == "0.1141975299"  # 0.333 x 1234.567891 / 3600
    assert told["storage_usd"] == "0.0012002743"  # 0.36 x 7 x 1234.567891 / 2,592,000
    assert told["network_usd"] == "0.0000790123"  # (0.02 x 123,456 + 0.01 x 7,654,321) / 1e9
    assert sum(Decimal(told[part]) for part in ("gpu_usd", "storage_usd", "network_usd")) == Decimal(
        told["total_usd"])
