"""The lab's fake of Vast without its instances: its search, who gets a machine, and its HTTP."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from tests.lab.fake_vast import VastServer
from tests.lab.vast_client import FakeVast
from tests.lab.vast_market import Market, Refused
from tests.lab.vast_offers import H100, RTX_3060, Card, SearchError

H100_CHEAPEST, H100_SECOND, H100_LIAR = 4102, 4103, 4101


class Host:
    """Boots nothing; a test says when an instance is up, and how much it has sent."""

    def __init__(self) -> None:
        self.alive: dict[int, Card] = {}
        self.disks: set[int] = set()
        self.ready: dict[int, Callable[[], None]] = {}
        self.sent: dict[int, tuple[int, int]] = {}
        self.keys: dict[int, str] = {}

    def address(self, instance_id: int) -> str:
        return "10.88.0.11"

    def write_disk(self, instance_id: int, onstart: str) -> None:
        self.disks.add(instance_id)

    def boot(self, instance_id: int, card: Card, count: int, own_key: str,
             is_up: Callable[[], None]) -> None:
        self.alive[instance_id], self.ready[instance_id] = card, is_up
        self.keys[instance_id] = own_key

    def kill(self, instance_id: int) -> None:
        self.alive.pop(instance_id, None)

    def remove_disk(self, instance_id: int) -> None:
        self.disks.remove(instance_id)

    def traffic(self, instance_id: int) -> tuple[int, int]:
        return self.sent.pop(instance_id, (0, 0))


class Lab:
    """A market whose time passes when a test says so."""

    def __init__(self) -> None:
        self.now = Decimal(1_000_000)
        self.host = Host()
        self.market = Market(self.host, clock=lambda: self.now)

    def rent(self, machine_id: int, bid: str | None = None, disk_gb: int = 48) -> int:
        offer = next(one for one in self.market.search({}) if one["machine_id"] == machine_id)
        number = self.market.rent(offer["id"], {"price": bid, "disk": disk_gb, "label": "mine-head"})
        self.host.ready[number]()
        return number

    def found(self, **body: Any) -> list[int]:
        return [offer["machine_id"] for offer in self.market.search(body)]

    def bill(self, number: int) -> dict[str, Any]:
        return dict(self.market.bill()["instances"][str(number)])


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_an_image_that_is_not_there_loads_for_ever_and_docker_says_so(lab: Lab) -> None:
    number = lab.market.rent(1002, {"image": "an/image:no-such-tag", "disk": 10})
    assert number not in lab.host.alive
    (row,) = lab.market.rows()
    assert row["actual_status"] == "loading"
    assert row["status_msg"] == ("Error response from daemon: manifest for an/image:no-such-tag not found: "
                                 "manifest unknown: manifest unknown")
    lab.market.destroy(number)
    assert Decimal(lab.bill(number)["gpu_usd"]) == 0


def test_every_operator_of_a_search_is_applied(lab: Lab) -> None:
    everything = set(lab.found())
    cheap = {4201, 4202}
    assert set(lab.found(gpu_name={"eq": "RTX 5090"})) == {5101, 5102}
    assert set(lab.found(gpu_name={"neq": "RTX 5090"})) == everything - {5101, 5102}
    assert set(lab.found(num_gpus={"eq": "2"}, dph_base={"lt": 3})) == cheap
    assert set(lab.found(dph_base={"lte": "2.4", "gte": 2.2})) == cheap
    assert set(lab.found(dph_base={"gt": 2.2, "lte": 2.4})) == {4201}
    assert set(lab.found(machine_id={"in": ["4102", "4103"]})) == {4102, 4103}
    assert set(lab.found(geolocation={"in": ["ES", "SE"]})) == {5101, 5102}
    assert set(lab.found(geolocation={"notin": ["US", "CA", "PL", "FI"]})) == {5101, 5102}
    assert 4201 not in lab.found(cuda_max_good={"gte": "12.8"})
    assert 4202 not in lab.found(reliability={"gte": "0.95"})
    assert 4201 not in lab.found(driver_version={"gte": 570000000})
    assert lab.found(verified={"eq": False}) == [] and set(lab.found(rentable={"eq": True})) == everything


def test_a_search_that_vast_would_not_understand_is_refused(lab: Lab) -> None:
    for body in ({"gpu_nam": {"eq": "x"}}, {"gpu_name": {"like": "x"}}, {"disk_space": {"gte": "much"}},
                 {"type": "spot"}):
        with pytest.raises(SearchError):
            lab.market.search(body)


def test_a_search_is_ordered_limited_and_priced_by_its_type(lab: Lab) -> None:
    wanted: dict[str, Any] = {"gpu_name": {"eq": "RTX 5090"}, "order": [["dph_total", "desc"]]}
    assert lab.found(**wanted) == [5102, 5101] and lab.found(**wanted, limit=1) == [5102]
    dearest = lab.market.search(wanted | {"allocated_storage": 96})[0]
    assert dearest["dph_total"] == pytest.approx(0.55 + 0.15 * 96 / 720)
    bid = lab.market.search(wanted | {"type": "bid", "allocated_storage": 0})[0]
    assert (bid["dph_base"], bid["dph_total"], bid["min_bid"]) == (0.25, 0.25, 0.25)


def test_the_liar_is_the_cheapest_of_the_good_offers_and_has_another_card(lab: Lab) -> None:
    good: dict[str, Any] = {"num_gpus": {"eq": 2}, "cuda_max_good": {"gte": 12.8},
                            "reliability": {"gte": 0.95}, "order": [["dph_base", "asc"]]}
    assert lab.found(**good)[0] == H100_CHEAPEST
    lab.market.show_liar(True)
    assert lab.found(**good)[:2] == [H100_LIAR, H100_CHEAPEST]
    assert lab.host.alive[lab.rent(H100_LIAR)] is RTX_3060
    assert lab.host.alive[lab.rent(H100_CHEAPEST)] is H100


def test_a_rented_machine_is_not_offered_until_it_is_destroyed(lab: Lab) -> None:
    number = lab.rent(H100_CHEAPEST)
    assert H100_CHEAPEST not in lab.found()
    with pytest.raises(Refused, match="not available"):
        lab.market.rent(1002, {})
    lab.market.destroy(number)
    assert H100_CHEAPEST in lab.found() and lab.market.rows() == [] and not lab.host.disks
    assert lab.market.row(number) is None
    with pytest.raises(Refused, match="no instance"):
        lab.market.destroy(number)


def test_without_a_bid_an_instance_is_on_demand_and_nobody_outbids_it(lab: Lab) -> None:
    number = lab.rent(H100_CHEAPEST)
    row = lab.market.row(number)
    assert row is not None and not row["is_bid"] and row["dph_base"] == 3.10
    with pytest.raises(Refused, match="nobody can outbid"):
        lab.market.outbid(number)
    lab.market.price(H100_CHEAPEST, {"min_bid": "9"})
    assert lab.host.alive


def test_an_outbid_instance_is_dead_and_its_disk_is_billed(lab: Lab) -> None:
    number = lab.rent(H100_CHEAPEST, bid="1.44")
    lab.now += 100
    lab.host.sent[number] = (1_000_000_000, 0)
    lab.market.outbid(number)
    lab.now += 900
    assert not lab.host.alive and lab.host.disks == {number}
    row = lab.market.row(number)
    assert row is not None
    assert [row[what] for what in ("actual_status", "cur_state", "intended_status")] == [
        "exited", "stopped", "running"]
    offer = next(one for one in lab.market.search({}) if one["machine_id"] == H100_CHEAPEST)
    assert offer["min_bid"] == 1.80
    bill = lab.bill(number)
    assert (bill["running_s"], bill["stopped_s"]) == ("100", "900")
    assert bill["gpu_usd"] == "0.0400000000"
    assert bill["storage_usd"] == "0.0027777778"  # 48 GB x $0.15 / 720 h is $0.01 an hour
    assert bill["network_usd"] == "0.0040000000"


def test_a_bid_that_is_too_low_does_not_start_and_does_when_it_wins_again(lab: Lab) -> None:
    with pytest.raises(Refused, match="below min_bid"):
        lab.rent(H100_CHEAPEST, bid="1.29")
    number = lab.rent(H100_CHEAPEST, bid="1.44")
    lab.market.outbid(number)
    lab.market.change(number, {"state": "running"})
    assert not lab.host.alive
    lab.now += 10
    lab.market.price(H100_CHEAPEST, {"bid_price": "2.88"})
    lab.now += 5  # it loads
    lab.host.ready[number]()
    lab.now += 100
    bill = lab.bill(number)
    assert (bill["loading_s"], bill["stopped_s"], bill["running_s"]) == ("5", "10", "100")
    assert bill["gpu_usd"] == "0.0800000000"


def test_a_stopped_instance_leaves_its_machine_to_others(lab: Lab) -> None:
    first = lab.rent(H100_CHEAPEST, bid="1.44")
    lab.market.outbid(first)
    second = lab.rent(H100_CHEAPEST, bid="2.00")
    lab.market.price(H100_CHEAPEST, {"min_bid": "1.00"})
    assert set(lab.host.alive) == {second}
    lab.market.destroy(second)
    lab.market.change(first, {"state": "running"})
    assert set(lab.host.alive) == {first}


def test_an_on_demand_price_that_rises_is_paid_from_then_on(lab: Lab) -> None:
    number = lab.rent(H100_CHEAPEST)
    lab.now += 36
    lab.market.price(H100_CHEAPEST, {"dph_base": "6.20"})
    lab.now += 36
    assert lab.bill(number)["gpu_usd"] == "0.0930000000"  # $0.031 and $0.062


def test_a_host_that_vanishes_leaves_nothing_but_its_bill(lab: Lab) -> None:
    number = lab.rent(H100_CHEAPEST)
    lab.now += 36
    lab.market.vanish(number)
    lab.now += 1000
    assert lab.market.rows() == [] and not lab.host.alive and not lab.host.disks
    assert H100_CHEAPEST not in lab.found()
    assert lab.bill(number)["gpu_usd"] == "0.0310000000"


def test_restocking_brings_back_what_vanished_at_its_first_price(lab: Lab) -> None:
    everything = lab.found()
    number = lab.rent(H100_CHEAPEST, bid="1.44")
    lab.market.price(H100_SECOND, {"dph_base": "9"})
    with pytest.raises(Refused, match="destroy them first"):
        lab.market.restock()
    lab.market.vanish(number)
    lab.market.restock()
    assert lab.found() == everything
    assert next(one for one in lab.market.search({}) if one["machine_id"] == H100_SECOND)["dph_base"] == 3.60
    assert float(lab.market.bill()["total_usd"]) == 0


def test_the_prepaid_credit_pays_for_everything(lab: Lab) -> None:
    lab.rent(H100_CHEAPEST, disk_gb=48)
    lab.now += 3600
    assert lab.market.account_row()["credit"] == pytest.approx(100 - 3.10 - 0.01)


def test_a_late_start_of_an_earlier_boot_does_not_count(lab: Lab) -> None:
    number = lab.rent(H100_CHEAPEST, bid="1.44")
    late = lab.host.ready[number]
    lab.market.outbid(number)
    lab.market.price(H100_CHEAPEST, {"min_bid": "1.00"})
    late()
    row = lab.market.row(number)
    assert row is not None and row["actual_status"] == "loading"


@pytest.fixture
def served(lab: Lab) -> Iterator[FakeVast]:
    server = VastServer(lab.market, "the-key", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield FakeVast(f"http://127.0.0.1:{server.server_port}", "the-key")
    server.shutdown()
    server.server_close()


def answer(vast: FakeVast, method: str, path: str, body: dict[str, Any], key: str = "the-key"
           ) -> tuple[int, Any]:
    request = urllib.request.Request(vast.url + path, json.dumps(body).encode(),
                                     {"Authorization": f"Bearer {key}"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_routes_of_vast_answer(lab: Lab, served: FakeVast) -> None:
    assert answer(served, "POST", "/api/v0/ssh/", {"ssh_key": "ssh-ed25519 AAAA"})[0] == 200
    assert answer(served, "GET", "/api/v0/ssh/", {})[1] == [{"id": 1, "public_key": "ssh-ed25519 AAAA"}]
    offer = served.offers(gpu_name={"eq": "RTX 5090"})[0]
    number = answer(served, "PUT", f"/api/v0/asks/{offer['id']}/", {
        "price": 0.4, "disk": 20, "label": "a", "env": {"A": "b"}})[1]["new_contract"]
    path = f"/api/v0/instances/{number}/"
    lab.host.ready[number]()
    row = answer(served, "GET", path, {})[1]["instances"]
    assert served.instances() == [row] and row["extra_env"] == [["A", "b"]] and row["dph_base"] == 0.4
    assert answer(served, "PUT", path, {"state": "stopped"}) == (200, {"success": True})
    assert answer(served, "GET", "/api/v0/users/current", {})[1]["credit"] == 100
    assert answer(served, "DELETE", path, {})[0] == 200
    assert [one["body"]["price"] for one in served.requests("PUT", "/api/v0/asks/")] == [0.4]
    assert served.bill()[str(number)]["label"] == "a" and served.total_usd() == 0


def test_a_wrong_key_an_unknown_route_and_a_wrong_search_are_refused(served: FakeVast) -> None:
    assert answer(served, "GET", "/api/v1/instances/", {}, key="another")[0] == 401
    assert answer(served, "GET", "/api/v0/machines/", {})[0] == 404
    assert answer(served, "POST", "/api/v1/instances/", {})[0] == 404
    assert answer(served, "PUT", "/api/v0/asks/1/", {})[0] == 404
    status, words = answer(served, "POST", "/api/v0/bundles/", {"gpu_nam": {"eq": "x"}})
    assert status == 400 and "gpu_nam" in words["msg"]


def test_an_instance_may_end_itself_with_its_own_key_and_no_other(lab: Lab, served: FakeVast) -> None:
    one, two = lab.rent(H100_CHEAPEST), lab.rent(H100_SECOND)
    own = lab.host.keys[one]
    assert answer(served, "DELETE", f"/api/v0/instances/{two}/", {}, key=own)[0] == 401
    assert answer(served, "GET", "/api/v1/instances/", {}, key=own)[0] == 401
    assert answer(served, "DELETE", f"/api/v0/instances/{one}/", {}, key=own)[0] == 200
    assert answer(served, "DELETE", f"/api/v0/instances/{one}/", {}, key=own)[0] == 401
    assert [row["id"] for row in served.instances()] == [two]
