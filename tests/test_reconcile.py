"""Our ledger beside Vast's own record, as its SDK brings it from the lab's fake of Vast."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from test_vast_market import Lab

from launcher.reconcile import Charge, Reconciliation, reconcile
from tests.lab.fake_vast import VastServer

pytest.importorskip("vastai")
from launcher.vast_charges import charges_at_vast  # noqa: E402

KEY, RTX_3060, RTX_5090 = "a-key", 6101, 5101


@pytest.fixture
def vast() -> Iterator[Lab]:
    """A market with its HTTP; `sdk` is Vast's own."""
    from vastai import VastAI

    lab = Lab()
    server = VastServer(lab.market, KEY, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lab.sdk = VastAI(api_key=KEY, server_url=f"http://127.0.0.1:{server.server_port}")
    lab.requests = server.requests
    yield lab
    server.shutdown()
    server.server_close()


def used(lab: Lab, machine_id: int, seconds: int) -> str:
    """Rent a machine at $0.36 an hour, which is $0.0001 a second, with 72 GB of disk at $0.015 an hour."""
    number = lab.rent(machine_id, bid="0.36", disk_gb=72)
    lab.now += seconds
    lab.host.sent[number] = (500_000_000, 1_000_000_000)  # $0.002 each way
    lab.market.destroy(number)
    return str(number)


def charges(lab: Lab, *names: str, since: int = 1_000_000):
    return charges_at_vast(lab.sdk, names, datetime.fromtimestamp(since, UTC),
                           datetime.fromtimestamp(float(lab.now), UTC)).charges


def test_vast_s_record_has_every_machine_of_a_run_with_its_parts(vast: Lab) -> None:
    first, other, second = (used(vast, machine, s) for machine, s in (
        (RTX_3060, 1000), (RTX_3060, 77), (RTX_5090, 2000)))
    assert [found.model_dump(mode="json") for found in charges(vast, first, second)] == [
        {"instance_id": first, "usd": "0.108", "usd_by_kind": {
            "gpu": "0.1", "disk": "0.004", "bwd": "0.002", "bwu": "0.002"}},
        {"instance_id": second, "usd": "0.212", "usd_by_kind": {
            "gpu": "0.2", "disk": "0.008", "bwd": "0.002", "bwu": "0.002"}}]
    (asked,) = [found["body"] for found in vast.requests if found["path"] == "/api/v0/charges/"]
    days = {"gte": 11 * 86_400, "lte": 1_003_077}
    assert asked == {"select_filters": {"day": days, "type": {"in": ["instance"]}},
                     "latest_first": False, "limit": 100, "format": "table"}
    assert other not in {found.instance_id for found in charges(vast, first, second)}


def test_every_page_of_the_record_is_read(vast: Lab) -> None:
    names = [used(vast, RTX_3060, 10) for _ in range(101)]
    assert {found.instance_id for found in charges(vast, *names)} == set(names)
    assert [found["body"].get("after_token") for found in vast.requests] == [None, 100]


def test_what_was_billed_a_moment_ago_is_not_in_the_record_yet(vast: Lab) -> None:
    first = used(vast, RTX_3060, 1000)
    assert len(charges(vast, first)) == 1
    second = used(vast, RTX_3060, 5)
    assert [found.instance_id for found in charges(vast, first, second)] == [first]
    vast.now += 15
    assert [found.instance_id for found in charges(vast, first, second)] == [first, second]


def test_a_record_that_vast_does_not_give_is_an_error_and_not_an_empty_one(vast: Lab) -> None:
    vast.market.charges = lambda asked: {"success": False, "msg": "no such range"}
    with pytest.raises(RuntimeError, match="Vast gives no charges: no such range"):
        charges(vast, "5001")


def charge(name: str, usd: str) -> Charge:
    return Charge(instance_id=name, usd=Decimal(usd), usd_by_kind={})


def compared(ours: dict[str, str], *theirs: Charge) -> Reconciliation:
    return reconcile({name: Decimal(usd) for name, usd in ours.items()}, theirs)


def test_a_ledger_that_is_less_than_a_cent_off_is_the_provider_s() -> None:
    ours = {"1": "0.1042", "2": "0.51"}
    found = compared(ours, charge("2", "0.514"), charge("1", "0.104"), charge("9", "7"))
    assert found.is_equal
    assert found.to_json() == {
        "ours_usd": "0.614200", "theirs_usd": "0.618000", "is_equal": True, "missing": [], "machines": [
            {"instance_id": "1", "ours_usd": "0.104200", "theirs_usd": "0.104000"},
            {"instance_id": "2", "ours_usd": "0.510000", "theirs_usd": "0.514000"}]}


@pytest.mark.parametrize(("theirs", "why"), [
    ([charge("1", "0.11"), charge("2", "0.20")], "one machine is a cent off"),
    ([charge("1", "0.12"), charge("2", "0.18")], "two that are off do not make up for each other"),
    ([charge("1", "0.106"), charge("2", "0.206")], "each less than a cent, together more")])
def test_a_cent_is_a_cent(theirs: list[Charge], why: str) -> None:
    assert not compared({"1": "0.10", "2": "0.20"}, *theirs).is_equal, why


def test_a_machine_that_the_record_does_not_have_proves_nothing_however_little_it_cost() -> None:
    found = compared({"1": "0.10", "2": "0.0001"}, charge("1", "0.10"))
    assert found.missing == ["2"] and not found.is_equal
