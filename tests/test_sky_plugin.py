"""Our part inside SkyPilot's server: what reaches Vast on the wire, by its SDK and SkyPilot's own calls."""

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi import FastAPI

pytest.importorskip("vastai")
from sky.adaptors import vast as adaptor  # noqa: E402
from sky.provision.vast import utils  # noqa: E402
from sky.server import plugins  # noqa: E402

from launcher import rental_log  # noqa: E402
from launcher.rentals import RENTALS, Price, Rental, Rentals, Terms  # noqa: E402
from launcher.sky_plugin import LdlmPlugin, launch_through, list_through, remove_through  # noqa: E402

KEY = "the-key-of-the-account"
SETTINGS = {"run_id": "one", "usd_per_hour": 1.5, "filters": {"reliability": {"gte": 0.95}}}
COSTS = {"storage_cost": 0.15, "inet_down_cost": 0.002, "inet_up_cost": 0.02}
OFFERS = [{"id": 70, "machine_id": 7, "min_bid": 0.9, "dph_base": 2.0, "dph_total": 2.0} | COSTS,
          {"id": 80, "machine_id": 8, "min_bid": 1.0, "dph_base": 2.1, "dph_total": 2.1} | COSTS]


class Vast(BaseHTTPRequestHandler):
    """Answers as Vast does, and keeps what it was asked."""

    def answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path, server = self.path.partition("?")[0], self.server
        server.seen.append((self.command, path, body))
        code, words = 200, {"success": True}
        if path == "/api/v0/bundles/":
            words = {"offers": server.offers}
        elif found := re.match(r"/api/v0/asks/(\d+)/$", path):
            code, words = (410, {"success": False}) if int(found[1]) in server.gone else (
                200, {"success": True, "new_contract": 5000 + int(found[1])})
        elif path == "/api/v1/instances/":
            words = {"instances": server.instances, "next_token": None}
        elif path.startswith("/api/v0/instances/") and self.command == "GET":
            words = {"instances": server.instances[0]}
        content = json.dumps(words).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def vast(tmp_path, monkeypatch) -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vast)
    server.seen, server.offers, server.gone, server.instances = [], OFFERS, set(), []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HOME", str(tmp_path))
    from vastai import VastAI

    server.sdk = VastAI(api_key=KEY, server_url=f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(adaptor, "_vast_sdk", server.sdk)
    for name in ("launch", "list_instances", "remove"):  # what the plugin takes the place of
        monkeypatch.setattr(utils, name, getattr(utils, name))
    yield server
    server.shutdown()
    server.server_close()


def rent(server: Any, launch: Any = utils.launch, **wishes: Any) -> str:
    """As SkyPilot's provisioner calls it."""
    return launch_through(launch, lambda: server.sdk)(
        name="train-1-head", instance_type="2x-H100_SXM-32-65536", region="Spain, ES, EU", disk_size=200,
        preemptible=False, image_name="an/image:1", ports=None, secure_only=False,
        private_docker_registry=False, login=None, create_instance_kwargs=wishes,
        ssh_public_key="ssh-ed25519 AAA me")


def sent(server: Any, path: str) -> list[dict[str, Any]]:
    return [body for _, found, body in server.seen if found == path]


def test_every_filter_reaches_the_wire_and_the_cheapest_offer_is_rented_at_the_bid(vast):
    assert rent(vast, bid_price=1.5, ldlm=SETTINGS) == "5070"
    assert sent(vast, "/api/v0/bundles/") == [{
        "verified": {"eq": True}, "external": {"eq": False}, "rentable": {"eq": True}, "num_gpus": {"eq": 2},
        "gpu_name": {"eq": "H100 SXM"}, "disk_space": {"gte": 200}, "reliability": {"gte": 0.95},
        "min_bid": {"lte": 1.5}, "order": [["min_bid", "asc"]], "type": "bid", "allocated_storage": 200}]
    (contract,) = sent(vast, "/api/v0/asks/70/")
    assert (contract["price"], contract["image"], contract["disk"], contract["label"]) == (
        1.5, "an/image:1", 200, "train-1-head")
    assert "ssh-ed25519 AAA me" in contract["onstart"]


def test_skypilot_by_itself_loses_its_filters_which_is_why_there_is_a_plugin(vast):
    vast.instances = [instance(5070, "running")]
    utils.launch("x", "2x-H100_SXM-32-65536", "Spain, ES, EU", 200, "an/image:1", None, False, False)
    (search,) = sent(vast, "/api/v0/bundles/")
    assert not {"num_gpus", "gpu_name", "disk_space", "geolocation"} & set(search)
    assert KEY in sent(vast, "/api/v0/asks/70/")[0]["onstart"]


def test_the_account_s_key_does_not_go_to_the_machine(vast):
    rent(vast, bid_price=1.5, ldlm=SETTINGS)
    assert KEY not in json.dumps([body for _, _, body in vast.seen])


def test_without_a_bid_the_whole_price_counts(vast):
    rent(vast, ldlm=SETTINGS)
    (search,) = sent(vast, "/api/v0/bundles/")
    assert search["type"] == "on-demand" and search["order"] == [["dph_total", "asc"]]
    assert search["dph_total"] == {"lte": 1.5} and "min_bid" not in search
    assert "price" not in {name: value for name, value in sent(vast, "/api/v0/asks/70/")[0].items() if value}


def test_a_region_that_the_user_named_is_asked_for_as_countries(vast):
    rent(vast, ldlm=SETTINGS | {"in_region": True})
    countries = sent(vast, "/api/v0/bundles/")[0]["geolocation"]["in"]
    assert {"ES", "DE"} <= set(countries) and "US" not in countries


def test_a_machine_that_was_just_left_is_asked_to_be_left_out(vast):
    rent(vast, ldlm=SETTINGS)
    rent(vast, ldlm=SETTINGS)
    first, second = sent(vast, "/api/v0/bundles/")
    assert "machine_id" not in first and second["machine_id"] == {"notin": [7]}
    (had,) = rental_log.read().values()
    assert (had.run_id, had.instance_id, had.machine_id, had.terms.disk_gb) == ("one", "5070", 7, 200)


def test_an_offer_that_is_gone_gives_way_to_the_next(vast):
    vast.gone = {70}
    assert rent(vast, ldlm=SETTINGS) == "5080"
    assert [found.machine_id for found in rental_log.read().values()] == [8]


def test_when_nothing_fits_it_says_what_was_asked_for(vast):
    vast.offers = []
    with pytest.raises(RuntimeError, match='no machine that fits now: .*"num_gpus": {"eq": 2}'):
        rent(vast, ldlm=SETTINGS)
    vast.offers, vast.gone = OFFERS, {70, 80}
    with pytest.raises(RuntimeError, match="none of the 2 machines"):
        rent(vast, ldlm=SETTINGS)
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
    assert vast.seen == []


def test_a_server_without_the_plugin_rents_nothing_for_our_tasks(vast):
    with pytest.raises(TypeError, match="unexpected keyword argument 'ldlm'"):
        utils.launch("x", "2x-H100_SXM-32-65536", "Spain, ES, EU", 200, "an/image:1", None, False, False,
                     create_instance_kwargs={"bid_price": 1.5, "ldlm": SETTINGS})
    assert sent(vast, "/api/v0/asks/70/") == []


def instance(number: int, status: str | None, **more: Any) -> dict[str, Any]:
    return {"id": number, "actual_status": status, "label": "x", "start_date": 0, "extra_env": []} | more


def remember(instance_id: str, minutes_ago: float) -> datetime:
    """A rental of machine 7 for $1.50/h. Returns when it was."""
    then = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    rental_log.rented(Rental(run_id="one", instance_id=instance_id, machine_id=7, rented_at=then,
                             prices=(Price(at=then, usd_per_hour=Decimal("1.5")),), terms=Terms(disk_gb=1)))
    return then


def look(server: Any) -> dict[str, dict[str, Any]]:
    return list_through(utils.list_instances, lambda: server.sdk)()


def test_words_of_vast_that_skypilot_does_not_know_are_put_into_words_that_it_does(vast):
    said = ["running", "offline", "frozen", None, "exited", "rebooting"]
    vast.instances = [instance(number, status) for number, status in enumerate(said)]
    found = look(vast)
    assert [row["status"] for row in found.values()] == [
        "RUNNING", "EXITED", "STOPPED", "LOADING", "EXITED", "LOADING"]


@pytest.mark.parametrize(("status", "minutes", "is_cut"), [
    ("loading", 26, True), ("created", 26, True), ("loading", 5, False), ("running", 600, False),
    ("exited", 3, True), ("exited", 1, False)])
def test_a_machine_that_never_starts_is_given_back(vast, status, minutes, is_cut):
    vast.instances = [instance(5, status), instance(6, "loading")]  # 6 is not ours
    remember("5", minutes)
    if is_cut:
        with pytest.raises(RuntimeError, match=f"machine 7 of Vast has not started in {minutes} minutes"):
            look(vast)
        assert rental_log.read()["5"].ended_at is not None
    else:
        assert len(look(vast)) == 2
    assert [path for verb, path, _ in vast.seen if verb == "DELETE"] == ["/api/v0/instances/5/"] * is_cut


def test_what_is_seen_of_a_rental_is_remembered(vast):
    rented_at = remember("5", 3)
    vast.instances = [instance(5, "loading", dph_base=1.5)]
    look(vast)
    assert rental_log.read()["5"].running_at is None
    vast.instances = [instance(5, "running", dph_base=1.5)]
    look(vast)
    vast.instances = [instance(5, "running", dph_base=1.8)]
    look(vast)
    look(vast)
    had = rental_log.read()["5"]
    assert had.running_at is not None and had.running_at > rented_at
    assert [price.usd_per_hour for price in had.prices] == [Decimal("1.5"), Decimal("1.8")]
    vast.instances = []
    look(vast)
    first_missed = rental_log.read()["5"].ended_at
    assert first_missed is not None
    look(vast)
    assert rental_log.read()["5"].ended_at == first_missed


def test_a_machine_that_is_given_back_is_remembered_as_such(vast):
    remember("5", 3)
    remove = remove_through(utils.remove)
    remove("5")
    remove("6")  # somebody else's
    assert rental_log.read()["5"].ended_at is not None and list(rental_log.read()) == ["5"]
    assert [path for verb, path, _ in vast.seen if verb == "DELETE"] == [
        "/api/v0/instances/5/", "/api/v0/instances/6/"]


def test_the_server_tells_what_it_has_rented_for_a_run(vast):
    remember("5", 3)
    app = FastAPI()
    LdlmPlugin().install(plugins.ExtensionContext(app=app))
    (route,) = [route for route in app.routes if route.path.startswith(RENTALS)]
    told = Rentals.model_validate_json(json.dumps(route.endpoint(run_id="one")))
    assert told == Rentals.of(rental_log.read().values())
    assert route.endpoint(run_id="another") == {"rentals": []}


def test_skypilot_loads_the_plugin_by_its_name_and_installs_it_once(vast, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_PLUGINS", {})
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/plugins.yaml").write_text("plugins: [{class: launcher.sky_plugin.LdlmPlugin}]")
    for _ in range(2):
        plugins.load_plugins(plugins.ExtensionContext(context=plugins.PluginContext.EXECUTOR))
    (found,) = plugins.get_plugins()
    assert isinstance(found, LdlmPlugin) and (found.name, found.version) == ("ldlm", "1")
    installed = utils.launch
    assert installed.is_ldlm
    LdlmPlugin().install(plugins.ExtensionContext())
    assert utils.launch is installed
