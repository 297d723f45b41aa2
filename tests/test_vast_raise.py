"""Bids that follow the market at Vast: each rental at its own, live ones raised, on the fake of its API."""

import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import requests
from test_sky_plugin import CHEAPEST, SETTINGS, Vast, rent, vast
from test_vast_market import H100_CHEAPEST

pytest.importorskip("vastai")
from sky.provision.vast import utils  # noqa: E402

from launcher import rental_log  # noqa: E402
from launcher.rentals import Price, Rental, Terms  # noqa: E402
from launcher.sky_plugin import list_through  # noqa: E402
from launcher.vast_looks import learn  # noqa: E402
from launcher.vast_raise import raise_bids  # noqa: E402
from tests.lab.vast_market import Refused  # noqa: E402
from trainer.rental_terms import terms_here  # noqa: E402

__all__ = ["vast"]  # a fixture
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
FOLLOWS = SETTINGS | {"usd_per_hour": 1.6, "bid_from": 0.0}
PATH = "/api/v0/instances/bid_price/"


def held(vast: Vast, bid: str = "1.45", most: str | None = "1.80", minutes: float = 40) -> int:
    """A machine that runs for us since some time."""
    number, then = vast.lab.rent(H100_CHEAPEST, bid=bid), NOW - timedelta(minutes=minutes)
    vast.words[number] = "running"
    rental_log.rented(Rental(
        run_id="one", instance_id=str(number), machine_id=H100_CHEAPEST, rented_at=then,
        prices=(Price(at=then, usd_per_hour=Decimal(bid)),), terms=Terms(disk_gb=1),
        most_bid_usd_per_hour=most and Decimal(most)))
    return number


def looked(vast: Vast, now: datetime = NOW) -> list[dict[str, Any]]:
    """What a look has asked Vast to change of bids."""
    raise_bids(vast.sdk, {str(row["id"]): row for row in vast.sdk.show_instances()}, now)
    return [one for one in vast.http.requests if one["path"].startswith(PATH)]


def prices(number: int) -> list[str]:
    return [str(price.usd_per_hour) for price in rental_log.read()[str(number)].prices]


def test_a_rental_bids_by_the_machine_that_it_gets_and_remembers_how_far_it_may_go(vast):
    number = rent(vast, bid_price=1.5, ldlm=FOLLOWS)
    (contract,) = vast.sent(f"/api/v0/asks/{CHEAPEST}/")
    assert contract["price"] == 1.443  # 11 % over the 1.30 that wins
    rental = rental_log.read()[number]
    assert (rental.prices[0].usd_per_hour, rental.most_bid_usd_per_hour) == (Decimal("1.443"), Decimal("1.6"))
    vast.gone.add(CHEAPEST)
    vast.sdk.destroy_instance(id=int(number))
    second = rent(vast, bid_price=1.5, ldlm=FOLLOWS)
    assert prices(int(second)) == ["1.595"]  # 10 % over 1.45: no more may be bid


def test_a_live_bid_follows_the_market_within_its_limit_and_its_bill_does_too(vast):
    number = held(vast)
    assert looked(vast) == []
    vast.market.price(H100_CHEAPEST, {"min_bid": "1.42"})
    (asked,) = looked(vast)
    assert (asked["method"], asked["path"], asked["body"]["price"]) == ("PUT", f"{PATH}{number}/", 1.577)
    assert prices(number) == ["1.45", "1.577"]
    (row,) = vast.market.rows()
    assert (row["bid_price"], row["dph_base"]) == (1.577, 1.577)
    bill = vast.market.bill()["instances"][str(number)]
    assert [segment["gpu_usd_per_hour"] for segment in bill["segments"]][-1] == "1.577"


def test_it_is_raised_once_in_half_an_hour_and_never_above_its_limit(vast):
    number = held(vast, most="1.60")
    vast.market.price(H100_CHEAPEST, {"min_bid": "1.42"})
    assert len(looked(vast)) == 1
    vast.market.price(H100_CHEAPEST, {"min_bid": "1.57"})
    assert len(looked(vast, NOW + timedelta(minutes=29))) == 1
    looked(vast, NOW + timedelta(minutes=31))
    assert prices(number) == ["1.45", "1.577"]  # from 1.577 to 1.586 is not worth a word
    vast.market.price(H100_CHEAPEST, {"min_bid": "1.70"})
    assert looked(vast, NOW + timedelta(hours=2))[1:] == []
    assert vast.market.rows()[0]["cur_state"] == "stopped"


@pytest.mark.parametrize("change", [
    lambda vast, number: vast.words.update({number: "loading"}),
    lambda vast, number: rental_log.given_back(str(number), NOW),
])
def test_what_does_not_run_for_us_is_not_raised(vast, change):
    number = held(vast)
    vast.market.price(H100_CHEAPEST, {"min_bid": "1.42"})
    change(vast, number)
    assert looked(vast) == []


def test_a_bid_without_a_limit_stays_what_it_is(vast):
    held(vast, most=None)
    vast.market.price(H100_CHEAPEST, {"min_bid": "1.42"})
    assert looked(vast) == []


def test_where_vast_refuses_a_raise_nothing_is_noted_and_the_look_goes_on(vast, caplog):
    number = held(vast)
    vast.market.price(H100_CHEAPEST, {"min_bid": "1.42"})

    def refuse(instance_id: int, price: Any) -> None:
        raise Refused(403, "no", "no")

    vast.market.bid = refuse
    looked(vast)
    assert prices(number) == ["1.45"]
    assert f"no word of Vast that it has raised the bid of {number}: HTTPError" in caplog.text
    assert vast.sdk.client.api_key not in caplog.text


@pytest.mark.parametrize(("is_done", "known"), [
    (True, ["1.45", "1.577"]), (False, ["1.45", "1.577", "1.45"])])
def test_a_raise_whose_answer_gets_lost_is_not_asked_for_again_at_once(vast, monkeypatch, is_done, known):
    """What wins follows our own bid in the next list, which may tell our price later."""
    number, asked, change = held(vast), [], vast.market.bid
    vast.market.price(H100_CHEAPEST, {"min_bid": "1.42"})

    def lose(instance_id: int, price: Any) -> None:
        asked.append(price)
        if is_done:
            change(instance_id, price)
            vast.market.price(H100_CHEAPEST, {"min_bid": str(price)})
        raise requests.Timeout("its answer got lost")

    monkeypatch.setattr(vast.sdk, "change_bid", lambda id, price: lose(id, price))
    for seconds in range(0, 29 * 60, 15):
        now = NOW + timedelta(seconds=seconds)
        learn({str(row["id"]): row | ({"dph_base": None} if is_done else {})
               for row in vast.sdk.show_instances()}, now)
        looked(vast, now)
    assert (asked, prices(number)) == ([1.577], known)


def test_each_list_that_skypilot_asks_for_raises(vast):
    number = held(vast, minutes=60 * 24 * 400)
    vast.market.price(H100_CHEAPEST, {"min_bid": "1.42"})
    list_through(utils.list_instances, lambda: vast.sdk)()
    assert prices(number) == ["1.45", "1.577"]


@pytest.mark.parametrize(("price", "bid", "state"), [(1.5, 1.5, "running"), (None, 1.3, "running"),
                                                     (1.2, 1.2, "stopped")])
def test_the_fake_changes_bids_by_vast_s_rules(vast, price, bid, state):
    number = vast.lab.rent(H100_CHEAPEST, bid="1.45")
    vast.sdk.change_bid(id=number, price=price)
    (row,) = vast.market.rows()
    assert (row["bid_price"], row["dph_base"], row["cur_state"]) == (bid, bid, state)


def test_the_fake_brings_an_outbid_machine_back_once_its_bid_wins_and_refuses_what_vast_would(vast):
    number = vast.lab.rent(H100_CHEAPEST, bid="1.45")
    vast.market.outbid(number)
    assert vast.market.rows()[0]["cur_state"] == "stopped"
    vast.sdk.change_bid(id=number)  # without a price: what wins
    (row,) = vast.market.rows()
    assert (row["cur_state"], row["bid_price"]) == ("running", 1.8125)
    vast.sdk.destroy_instance(id=number)
    on_demand = vast.lab.rent(H100_CHEAPEST, bid=None)
    for price in (2, -1, float("nan")):
        with pytest.raises(Refused):
            vast.market.bid(on_demand if price == 2 else number, price)


def test_a_machine_is_told_what_its_gpus_cost(vast, tmp_path, monkeypatch):
    rent(vast, bid_price=1.5, ldlm=FOLLOWS)
    (contract,) = vast.sent(f"/api/v0/asks/{CHEAPEST}/")
    first = contract["onstart"].partition(";")[0]
    subprocess.run(["sh", "-c", first], env={"HOME": str(tmp_path)}, check=True)
    terms = terms_here(tmp_path)
    assert terms and terms.gpu_usd_per_hour == Decimal("1.443")
    assert "ask GET" in contract["onstart"]
