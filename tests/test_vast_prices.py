"""What Vast has for rent now, asked by Vast's SDK of the lab's fake of its REST API."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from local_http import serving
from test_vast_market import Lab

pytest.importorskip("vastai")
from vastai.api import client  # noqa: E402

from launcher.vast_prices import vast_prices  # noqa: E402
from tests.lab.fake_vast import VastServer  # noqa: E402

KEY = "the-key"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VAST_API_KEY", raising=False)
    (tmp_path / ".config/vastai").mkdir(parents=True)
    (tmp_path / ".config/vastai/vast_api_key").write_text(KEY)
    return tmp_path


@pytest.fixture
def fake(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VastServer]:
    server = VastServer(Lab().market, KEY, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(client, "server_url_default", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@contextmanager
def answering(status: int, answer: object, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server in Vast's place that says the same to everything."""
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    with serving(Handler) as server:
        patch.setattr(client, "server_url_default", f"http://127.0.0.1:{server.server_port}")
        yield


def test_each_machine_is_offered_on_demand_and_by_bid_with_all_that_vast_says_of_it(fake: VastServer) -> None:
    found = vast_prices(["RTX5090:1"])
    assert found.problems == ()
    on_demand, _, bid, _ = sorted(found.offers, key=lambda one: (one.terms == "bid", one.machine_id or 0))
    assert (on_demand.terms, bid.terms) == ("on-demand", "bid")
    assert (on_demand.price_usd_per_hour, bid.price_usd_per_hour) == (Decimal("0.51"), Decimal("0.23"))
    assert bid.on_demand_usd_per_hour == Decimal("0.51")
    priced = {"seen_at", "price_usd_per_hour", "on_demand_usd_per_hour"}
    assert bid.model_dump(mode="json", exclude=priced) == {
        "cloud": "vast", "region": "Spain, ES", "terms": "bid", "gpu": "RTX5090", "num_gpus": 1,
        "gpu_memory_gib": 31.8, "instance_type": None, "machine_id": 5101, "reliability": 0.995,
        "cuda": 13.0, "sent_usd_per_gb": "0.004", "received_usd_per_gb": "0.002", "upload_mbit_s": 1100.0,
        "download_mbit_s": 2400.0, "disk_usd_per_gb_month": "0.15", "source": "Vast"}


def test_it_is_the_search_of_a_rental_so_what_would_not_be_rented_is_not_offered(fake: VastServer) -> None:
    found = vast_prices(["H100"])
    # Not 4201 with an old driver, not 4202 which is unreliable.
    assert {one.machine_id for one in found.offers} == {4102, 4103, 4104}
    assert {one.accelerators for one in found.offers} == {"H100:2"}
    assert vast_prices(["H100:1", "RTX3060:2"]).offers == ()
    sent = fake.requests[0]["body"]
    assert {"reliability", "cuda_max_good", "compute_cap", "inet_up", "inet_down", "gpu_ram"} <= set(sent)
    assert sent["gpu_name"] == {"in": ["H100 PCIE", "H100 SXM", "H100 NVL"]} and "num_gpus" not in sent


def test_a_machine_that_is_rented_is_not_offered_and_a_new_bid_is_seen(fake: VastServer) -> None:
    fake.market.price(5102, {"min_bid": "0.31"})
    rented = next(one for one in fake.market.search({}) if one["machine_id"] == 5101)
    fake.market.rent(rented["id"], {"disk": 10})
    bids = {one.machine_id: one.price_usd_per_hour for one in vast_prices(["RTX5090:1"]).offers
            if one.terms == "bid"}
    assert bids == {5102: Decimal("0.31")}


def test_without_a_key_it_says_where_one_goes(home: Path) -> None:
    (home / ".config/vastai/vast_api_key").unlink()
    assert vast_prices(["H100"]).down == {
        "vast": "its key is not here; write it to ~/.config/vastai/vast_api_key "
                "(https://cloud.vast.ai/manage-keys)"}


@pytest.mark.parametrize(("status", "said"), [
    (401, "it does not take the key (HTTP 401); write a new one to ~/.config/vastai/vast_api_key "
          "(https://cloud.vast.ai/manage-keys)"),
    (500, "it did not answer (HTTP 500); repeat it later")])
def test_what_vast_refuses_is_one_line_without_the_key(
        status: int, said: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(status, {}, monkeypatch):
        found = vast_prices(["H100"])
    assert found.offers == () and found.down == {"vast": said}
    assert KEY not in said


def test_where_nobody_listens_it_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "server_url_default", "http://127.0.0.1:9")
    assert vast_prices(["H100"]).down == {"vast": "it did not answer (ConnectionError); repeat it later"}


def test_machines_without_place_or_sense_are_passed_over_and_the_others_shown(
        home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good: dict[str, Any] = {"machine_id": 1, "num_gpus": 1, "gpu_ram": 81559, "dph_base": 2.1, "min_bid": 0.9,
                            "geolocation": "Utah, US", "reliability": 0.99, "cuda_max_good": 13.0}
    rows = [good, good | {"machine_id": 2, "geolocation": None},
            good | {"machine_id": 3, "dph_base": -1.0, "min_bid": 0.0}]
    with answering(200, {"offers": rows}, monkeypatch):
        found = vast_prices(["H100:1"])
    assert [(one.machine_id, one.terms) for one in found.offers] == [(1, "on-demand"), (1, "bid")]
    assert found.problems == ("vast: passed over: machine 2: it has no region (and 3 more)",)
