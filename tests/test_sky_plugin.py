"""Our part inside SkyPilot's server: what reaches Vast on the wire, by its SDK and SkyPilot's own calls."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from fastapi import FastAPI
from launch_examples import example_task
from test_vast_market import H100_CHEAPEST, H100_SECOND, Lab
from vast_sdk_lab import KEY, reached_by_skypilot

pytest.importorskip("vastai")
from sky.provision.vast import utils  # noqa: E402
from sky.server import plugins  # noqa: E402

from launcher import rental_log, rental_watch  # noqa: E402
from launcher.plugin_version import plugin_version  # noqa: E402
from launcher.rentals import RENTALS, Price, Rental, Rentals, Terms  # noqa: E402
from launcher.sky_plugin import (  # noqa: E402
    LdlmPlugin,
    launch_through,
    list_through,
    machines,
    remove_through,
    rentals_of,
)
from launcher.sweep import Machines  # noqa: E402
from launcher.vast_looks import learn  # noqa: E402
from launcher.vast_onstart import first_commands  # noqa: E402
from launcher.vast_search import not_again  # noqa: E402
from tests.lab.fake_vast import VastServer  # noqa: E402
from tests.lab.vast_market import MISSING_TAG, Refused  # noqa: E402
from trainer.contract import Document  # noqa: E402
from trainer.rental_terms import terms_here  # noqa: E402

# Of the market's machines with two H100 four are left, for bids of $0.95, 1.30, 1.45 and 1.60.
SETTINGS = {"run_id": "one", "usd_per_hour": 1.5,
            "filters": {"reliability": {"gte": 0.95}, "cuda_max_good": {"gte": 13.0}}}
DEAR = SETTINGS | {"usd_per_hour": 4.0}
CHEAPEST, SECOND = 1002, 1003  # offers of machines 4102 and 4103


class Vast:
    """The fake of Vast, its SDK, and words for the state of an instance that the fake does not say."""

    def __init__(self) -> None:
        from vastai import VastAI

        self.lab, self.words = Lab(), dict[int, str | None]()
        self.market, self.gone = self.lab.market, set[int]()
        self.http = VastServer(self.market, KEY, 0)
        self.sdk = VastAI(api_key=KEY, server_url=f"http://127.0.0.1:{self.http.server_port}")
        rows, rent = self.market.rows, self.market.rent

        def rows_in_words() -> list[dict[str, Any]]:
            return [row | {"actual_status": self.words.get(row["id"], row["actual_status"])}
                    for row in rows()]

        def rent_unless_gone(offer_id: int, body: dict[str, Any]) -> int:
            if offer_id in self.gone:
                raise Refused(410, "no_such_ask", "somebody was quicker")
            return rent(offer_id, body)

        self.market.rows, self.market.rent = rows_in_words, rent_unless_gone  # type: ignore[method-assign]

    def rented(self, machine_id: int = H100_CHEAPEST, minutes_ago: float = 3, *, is_ours: bool = True) -> int:
        """A machine that was rented for $1.50/h some time ago."""
        number = self.lab.rent(machine_id, bid="1.50")
        then = datetime.now(UTC) - timedelta(minutes=minutes_ago)
        if is_ours:
            rental_log.rented(Rental(
                run_id="one", instance_id=str(number), machine_id=machine_id, rented_at=then,
                prices=(Price(at=then, usd_per_hour=Decimal("1.5")),), terms=Terms(disk_gb=1)))
        return number

    def sent(self, path: str, method: str = "") -> list[dict[str, Any]]:
        """Bodies of what was asked."""
        return [one["body"] for one in self.http.requests
                if one["path"] == path and method in ("", one["method"])]

    def ended(self) -> list[str]:
        """What it was told to end."""
        return [one["path"] for one in self.http.requests if one["method"] == "DELETE"]


@pytest.fixture
def vast(tmp_path, monkeypatch) -> Iterator[Vast]:
    vast = Vast()
    with reached_by_skypilot(vast.http, tmp_path, monkeypatch):
        yield vast


def rent(vast: Vast, launch: Any = utils.launch, image: str = "an/image:1",
         machine: str = "2x-H100_SXM-32-65536", login: str | None = None, **wishes: Any) -> str:
    """As SkyPilot's provisioner calls it."""
    return launch_through(launch, lambda: vast.sdk)(
        name="train-1-head", instance_type=machine, region="Spain, ES, EU", disk_size=200,
        preemptible=False, image_name=image, ports=None, secure_only=False,
        private_docker_registry=login is not None, login=login, create_instance_kwargs=wishes,
        ssh_public_key="ssh-ed25519 AAA me")


def test_every_filter_reaches_the_wire_and_the_cheapest_offer_is_rented_at_the_bid(vast):
    assert rent(vast, bid_price=1.5, ldlm=SETTINGS) == "5001"
    assert vast.sent("/api/v0/bundles/") == [{
        "verified": {"eq": True}, "external": {"eq": False}, "rentable": {"eq": True}, "num_gpus": {"eq": 2},
        "gpu_name": {"eq": "H100 SXM"}, "disk_space": {"gte": 200}, "reliability": {"gte": 0.95},
        "cuda_max_good": {"gte": 13.0}, "min_bid": {"lte": 1.5}, "order": [["min_bid", "asc"]], "type": "bid",
        "allocated_storage": 200}]
    (contract,) = vast.sent(f"/api/v0/asks/{CHEAPEST}/")
    assert (contract["price"], contract["image"], contract["disk"], contract["label"]) == (
        1.5, "an/image:1", 200, "train-1-head")
    assert "ssh-ed25519 AAA me" in contract["onstart"]


def test_what_a_machine_is_billed_by_lies_on_it_before_anything_else_runs_there(vast, tmp_path):
    rental_log.given_back(rent(vast, bid_price=1.5, ldlm=SETTINGS), datetime.now(UTC))
    rent(vast, bid_price=1.5, ldlm=SETTINGS)
    first, second = [one["body"]["onstart"] for one in vast.http.requests
                     if one["path"].startswith("/api/v0/asks/")]
    assert max(map(len, (first, second))) < 4000
    for onstart in (first, second):
        writes = next(line for line in onstart.split(";") if "ldlm_rental" in line)
        subprocess.run(["bash", "-c", writes], env={"HOME": str(tmp_path)}, check=True)
    terms, (had, _) = terms_here(tmp_path), rental_log.read().values()
    assert terms.disk_usd_per_hour > 0 and terms.rented_at > had.told_at
    assert [rented_at for rented_at, _ in terms.earlier] == [had.told_at]


def test_skypilot_by_itself_loses_its_filters_which_is_why_there_is_a_plugin(vast):
    utils.launch("x", "2x-H100_SXM-32-65536", "Spain, ES, EU", 200, "an/image:1", None, False, False)
    (search,) = vast.sent("/api/v0/bundles/")
    assert not {"num_gpus", "gpu_name", "disk_space", "geolocation"} & set(search)
    (contract,) = [one["body"] for one in vast.http.requests if one["path"].startswith("/api/v0/asks/")]
    assert KEY in contract["onstart"]


def test_the_account_s_key_does_not_go_to_the_machine(vast):
    rent(vast, bid_price=1.5, ldlm=SETTINGS)
    assert KEY not in json.dumps(vast.http.requests)


def test_without_a_bid_the_whole_price_counts(vast):
    rent(vast, ldlm=DEAR)
    (search,) = vast.sent("/api/v0/bundles/")
    assert search["type"] == "on-demand" and search["order"] == [["dph_total", "asc"]]
    assert search["dph_total"] == {"lte": 4.0} and "min_bid" not in search
    (contract,) = vast.sent(f"/api/v0/asks/{CHEAPEST}/")
    assert "price" not in {name: value for name, value in contract.items() if value}


def test_an_on_demand_task_rents_at_the_machine_s_own_price_up_to_that_of_the_plan(vast):
    wanted = "hardware.train.1={infra: vast, gpu: 'H100:2', price_usd_per_hour: %s}"
    dear, cheap = (example_task("vast", wanted % usd, "limits.max_cost_usd=9").document(Document.TRAIN)
                   for usd in ("3.50", "3.12"))
    with pytest.raises(RuntimeError, match="no machine that fits now"):  # $3.10, and 200 GB are 4 cents more
        rent(vast, **cheap["config"]["vast"]["create_instance_kwargs"])
    number = rent(vast, **dear["config"]["vast"]["create_instance_kwargs"])
    (row,) = vast.market.rows()
    assert not row["is_bid"] and row["machine_id"] == H100_CHEAPEST
    assert [price.usd_per_hour for price in rental_log.read()[number].prices] == [Decimal("3.1")]
    with pytest.raises(Refused, match="on-demand: nobody can outbid it"):
        vast.market.outbid(int(number))


def test_the_benchmark_is_rented_at_its_own_price_or_not_at_all_whatever_training_may_pay(vast):
    for bid, is_rented in (("0.20", False), ("0.24", True)):  # of two, for $0.23 and 0.25
        task = example_task("vast", f"hardware.bench.1.bid_usd_per_hour={bid}", bench="vast")
        options = task.document(Document.BENCH)["config"]["vast"]["create_instance_kwargs"]
        with nullcontext() if is_rented else pytest.raises(RuntimeError, match="no machine that fits now"):
            rent(vast, machine="1x-RTX_5090-32-65536", **options)
    assert [(row["machine_id"], row["bid_price"]) for row in vast.market.rows()] == [(5101, 0.24)]


def test_a_region_that_the_user_named_is_asked_for_as_countries(vast):
    with pytest.raises(RuntimeError, match="no machine that fits now"):  # its H100 are all in America
        rent(vast, ldlm=DEAR | {"in_region": True})
    countries = vast.sent("/api/v0/bundles/")[0]["geolocation"]["in"]
    assert {"ES", "DE"} <= set(countries) and "US" not in countries


def test_a_machine_that_was_just_left_is_asked_to_be_left_out(vast):
    rent(vast, ldlm=DEAR)
    rent(vast, ldlm=DEAR)
    first, second = vast.sent("/api/v0/bundles/")
    assert "machine_id" not in first and second["machine_id"] == {"notin": [H100_CHEAPEST]}
    had = rental_log.read()["5001"]
    assert (had.run_id, had.machine_id, had.terms.disk_gb) == ("one", H100_CHEAPEST, 200)


def test_an_offer_that_is_gone_gives_way_to_the_next(vast):
    vast.gone = {CHEAPEST}
    assert rent(vast, ldlm=DEAR) == "5001"
    assert [found.machine_id for found in rental_log.read().values()] == [H100_SECOND]


def test_when_nothing_fits_it_says_what_was_asked_for(vast):
    with pytest.raises(RuntimeError, match='no machine that fits now: .*"num_gpus": {"eq": 2}'):
        rent(vast, ldlm=SETTINGS | {"usd_per_hour": 0.10})
    vast.gone = {CHEAPEST, SECOND}
    with pytest.raises(RuntimeError, match="none of the 2 machines"):
        rent(vast, ldlm=DEAR)
    assert rental_log.read() == {}


def test_tasks_of_others_are_left_alone(vast):
    calls = []

    def launch(*words: Any, **named: Any) -> str:
        calls.append((words, named))
        return "theirs"
    assert rent(vast, launch, bid_price=2.0) == "theirs"
    assert calls == [(("train-1-head", "2x-H100_SXM-32-65536", "Spain, ES, EU", 200, "an/image:1"), {
        "create_instance_kwargs": {"bid_price": 2.0}, "ssh_public_key": "ssh-ed25519 AAA me", "ports": None,
        "preemptible": False, "secure_only": False, "private_docker_registry": False, "login": None})]
    assert vast.http.requests == []


def test_a_server_without_the_plugin_rents_nothing_for_our_tasks(vast):
    with pytest.raises(TypeError, match="unexpected keyword argument 'ldlm'"):
        utils.launch("x", "2x-H100_SXM-32-65536", "Spain, ES, EU", 200, "an/image:1", None, False, False,
                     create_instance_kwargs={"bid_price": 1.5, "ldlm": SETTINGS})
    assert vast.market.rows() == []


def look(vast: Vast) -> dict[str, dict[str, Any]]:
    return list_through(utils.list_instances, lambda: vast.sdk)()


def test_words_of_vast_that_skypilot_does_not_know_are_put_into_words_that_it_does(vast):
    said = {"running": "RUNNING", "offline": "EXITED", "frozen": "STOPPED", None: "LOADING",
            "exited": "EXITED", "rebooting": "LOADING"}
    number = vast.rented(is_ours=False)
    for word, known in said.items():
        vast.words[number] = word
        assert [row["status"] for row in look(vast).values()] == [known]


@pytest.mark.parametrize(("status", "minutes", "is_cut"), [
    ("loading", 26, True), ("created", 26, True), ("loading", 5, False), ("running", 600, False),
    ("exited", 3, True), ("exited", 1, False)])
def test_a_machine_that_never_starts_is_given_back(vast, status, minutes, is_cut):
    ours = vast.rented(H100_CHEAPEST, minutes)
    vast.rented(H100_SECOND, minutes, is_ours=False)
    vast.words[ours] = status
    assert len(look(vast)) == (1 if is_cut else 2)
    had = rental_log.read()[str(ours)]
    assert had.given_up == (f"has not started in {minutes} minutes" if is_cut else None)
    assert (had.ended_at is not None) == is_cut
    assert vast.ended() == [f"/api/v0/instances/{ours}/"] * is_cut


def test_a_machine_whose_image_cannot_be_pulled_is_given_back_at_once_and_the_image_remembered(vast):
    image = f"an/image{MISSING_TAG}"
    number = rent(vast, image=image, ldlm=DEAR)
    assert look(vast) == {}
    had = rental_log.read()[number]
    assert had.unpulled == image and had.ended_at is not None
    assert f": manifest for {image} not found" in (had.given_up or "")
    assert vast.market.rows() == []


def test_what_is_seen_of_a_rental_is_remembered(vast):
    number = vast.rented()
    vast.words[number] = "loading"
    look(vast)
    assert rental_log.read()[str(number)].running_at is None
    del vast.words[number]
    look(vast)
    vast.market.price(H100_CHEAPEST, {"bid_price": "1.80"})
    look(vast)
    look(vast)
    had = rental_log.read()[str(number)]
    assert had.running_at is not None and had.running_at > had.rented_at
    assert [price.usd_per_hour for price in had.prices] == [Decimal("1.5"), Decimal("1.8")]
    vast.market.destroy(number)
    look(vast)
    first_missed = rental_log.read()[str(number)].ended_at
    assert first_missed is not None
    look(vast)
    assert rental_log.read()[str(number)].ended_at == first_missed


def test_a_machine_that_is_given_back_is_remembered_as_such(vast):
    ours, other = vast.rented(H100_CHEAPEST), vast.rented(H100_SECOND, is_ours=False)
    remove = remove_through(utils.remove)
    remove(str(ours))
    remove(str(other))
    assert rental_log.read()[str(ours)].ended_at is not None and list(rental_log.read()) == [str(ours)]
    assert vast.ended() == [f"/api/v0/instances/{number}/" for number in (ours, other)]


def seen(vast: Vast, minutes_from_now: float) -> Rental:
    """What is remembered of the only rental after a look at that time."""
    learn(utils.list_instances(), datetime.now(UTC) + timedelta(minutes=minutes_from_now))
    (rental,) = rental_log.read().values()
    return rental


def test_one_look_at_which_vast_does_not_list_a_machine_does_not_end_its_rental(vast, monkeypatch):
    vast.rented()
    with monkeypatch.context() as lacking:
        lacking.setattr(vast.market, "rows", list)
        missed = seen(vast, 0)
    assert missed.ended_at is not None
    assert seen(vast, 0.5) == missed  # a list may lag
    back = seen(vast, 2)
    assert back.lives_on and back.ended_at is None and not back.held(back.rented_at - timedelta(minutes=1))
    vast.market.price(H100_CHEAPEST, {"bid_price": "1.80"})
    assert seen(vast, 3).prices[-1].usd_per_hour == Decimal("1.8")
    vast.market.destroy(5001)
    gone = seen(vast, 4)
    assert gone.ended_at is not None and gone.ended_at > missed.ended_at and not gone.lives_on


def test_a_machine_that_survives_being_given_back_is_known_and_its_run_has_left_it(vast, monkeypatch):
    number = vast.rented()
    with monkeypatch.context() as deaf:
        deaf.setattr(vast.market, "destroy", lambda instance_id: None)  # says yes, and does nothing
        remove_through(utils.remove)(str(number))
    assert seen(vast, 0).ended_at is not None
    told = Rentals.model_validate(rentals_of("one"))
    assert not told.rentals[0].lives_on
    assert seen(vast, 5).lives_on
    assert Rentals.model_validate(rentals_of("one")).rentals[0].lives_on
    (shown,) = Machines.model_validate(machines()).machines
    assert shown.is_left and shown.run_id == "one"


def test_of_the_machines_of_a_run_all_but_the_newest_are_left(vast):
    vast.rented(H100_CHEAPEST, minutes_ago=9)
    vast.rented(H100_SECOND, minutes_ago=5)
    assert [one.is_left for one in Machines.model_validate(machines()).machines] == [True, False]


def test_vast_is_asked_in_between_until_nothing_more_can_be_learnt_of_a_rental(vast):
    def asks(days_later: float) -> int:
        before = len(vast.sent("/api/v1/instances/"))
        rental_watch.look(lambda: utils.list_instances(), datetime.now(UTC) + timedelta(days=days_later))
        return len(vast.sent("/api/v1/instances/")) - before

    assert asks(0) == 0
    number = vast.rented()
    assert asks(9) == 1
    rental_log.given_back(str(number), datetime.now(UTC))
    assert (asks(0.9), asks(1.1)) == (1, 0)


def test_a_machine_that_says_that_it_is_the_wrong_one_is_found_by_its_name_and_never_rented_again(vast):
    number = rent(vast, bid_price=1.5, ldlm=SETTINGS)
    (contract,) = vast.sent(f"/api/v0/asks/{CHEAPEST}/")
    (label,) = re.findall(r'"label": "([^"]+)"', contract["onstart"])
    vast.market.change(int(number), {"label": label})
    (row,) = look(vast).values()
    assert row["label"] == "train-1-head (wrong machine)" and row["name"] == "train-1-head"
    (shown,) = Machines.model_validate(machines()).machines
    assert shown.label == "train-1-head"
    utils.remove(number)
    had = rental_log.read()[number]
    assert had.is_wrong and not_again([had], "one", had.rented_at + timedelta(days=30)) == {H100_CHEAPEST}
    rent(vast, bid_price=1.5, ldlm=SETTINGS)
    assert vast.sent("/api/v0/bundles/")[-1]["machine_id"] == {"notin": [H100_CHEAPEST]}


def test_what_a_machine_does_when_it_starts_is_as_short_as_vast_allows(vast):
    name = "bench-123456-0123456789abcdef-head"
    for key in ("ssh-ed25519 " + 68 * "A", "ssh-rsa " + 544 * "A"):
        line = first_commands(key + " sky@host", "https://console.vast.ai", name, bid_follows=True)
        assert len(line) <= 4048  # by its documents


def test_the_server_tells_what_it_has_rented_for_a_run(vast):
    vast.rented()
    app = FastAPI()
    LdlmPlugin().install(plugins.ExtensionContext(app=app))
    (route,) = [route for route in app.routes if route.path.startswith(RENTALS)]
    told = Rentals.model_validate_json(json.dumps(route.endpoint(run_id="one")))
    assert told == Rentals.of(rental_log.read().values())
    assert route.endpoint(run_id="another") == {"rentals": [], "num_torn": 0}


def test_skypilot_loads_the_plugin_by_its_name_and_installs_it_once(vast, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_PLUGINS", {})
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/plugins.yaml").write_text("plugins: [{class: launcher.sky_plugin.LdlmPlugin}]")
    for _ in range(2):
        plugins.load_plugins(plugins.ExtensionContext(context=plugins.PluginContext.EXECUTOR))
    (found,) = plugins.get_plugins()
    assert isinstance(found, LdlmPlugin) and (found.name, found.version) == ("ldlm", plugin_version())
    installed = utils.launch
    assert installed.is_ldlm
    LdlmPlugin().install(plugins.ExtensionContext())
    assert utils.launch is installed
