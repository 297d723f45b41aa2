"""Bids at Vast: what the model advises, by an oracle of its own; what recipes say, and offers become."""

import math
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from launcher.alternatives import hardware_changes
from launcher.bids import advise, losses_per_hour, raised
from launcher.offers import Machine, Offer, make_offers
from launcher.priced_offers import PricedOffer
from launcher.recipe import Candidate
from launcher.saves import rates_of
from launcher.vast_search import bid_for, settings_of

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
PRICES = st.decimals("0.02", "60", places=3)


def useful_usd(bid: float, min_bid: float) -> float:
    """Dollars of an hour forward, counted out: of 1 paid hour, every loss takes half an hour away."""
    lost_h = (0.05 + 0.5 * math.exp(-10 * (bid - min_bid) / min_bid)) * 0.5
    return bid / (1 - lost_h)


@given(PRICES, PRICES)
def test_no_bid_of_the_grid_makes_a_useful_hour_cheaper_than_the_advised_one(min_bid: Decimal, most: Decimal):
    advice = advise(min_bid, None, most)
    if advice is None:
        return assert_unaffordable(min_bid, most)
    bid = advice.bid_usd_per_hour
    assert bid is not None and min_bid <= bid <= most
    best = useful_usd(float(bid), float(min_bid))
    assert math.isclose(float(advice.usd_per_useful_hour), best, rel_tol=1e-4, abs_tol=1e-5)
    for percent in range(101):
        other = math.ceil(float(Fraction(min_bid) * (100 + percent) / 100) * 1000) / 1000
        if other <= float(most):
            assert best <= useful_usd(other, float(min_bid)) * (1 + 1e-6)


def assert_unaffordable(min_bid: Decimal, most: Decimal) -> None:
    assert min_bid > most


@given(PRICES, PRICES, PRICES)
def test_on_demand_is_taken_where_it_costs_hardly_more_and_never_above_the_limit(min_bid, on_demand, most):
    advice = advise(min_bid, on_demand, most)
    if advice is None:
        return assert_unaffordable(min(min_bid, on_demand), most)
    if advice.bid_usd_per_hour is None:
        assert on_demand <= most
    elif on_demand <= most:
        assert float(on_demand) / (1 - 0.5 / 500) > 1.0499 * float(advice.usd_per_useful_hour)


@given(PRICES, st.integers(0, 100), st.integers(0, 100))
def test_who_bids_more_is_outbid_less_often(min_bid, one, other):
    losses = [losses_per_hour(min_bid * (100 + percent) / 100, min_bid) for percent in sorted((one, other))]
    assert losses[0] >= losses[1] > 0.05
    assert math.isclose(losses_per_hour(min_bid, min_bid), 0.55)


def test_the_advice_says_its_margin_its_model_and_what_on_demand_costs():
    found = advise(Decimal("0.32"), Decimal("0.535"), Decimal("0.60"))
    assert found and found.reason == (
        "$0.356/h, 11% over the $0.320 that wins now: by a model outbid every ~4.7 h, which makes a useful "
        "hour ~$0.40, on demand ~$0.54")
    near = advise(Decimal("0.32"), Decimal("0.40"), Decimal("0.60"))
    assert near and near.bid_usd_per_hour is None
    assert near.reason == ("on demand: ~$0.40 a useful hour, and by a model ~$0.40 with the best bid, "
                           "$0.356, and its losses")


@pytest.mark.parametrize(("bid", "min_bid", "most", "to"), [
    ("0.356", "0.350", "0.60", "0.389"),  # the market has come near
    ("0.356", "0.320", "0.60", None),  # it is where it was
    ("0.356", "0.356", "0.60", None),  # what wins is our own bid
    ("0.356", "0.359", "0.60", None),  # ... or a step above it
    ("0.356", "0.400", "0.42", "0.420"),  # as far as may be bid
    ("0.356", "0.500", "0.42", None),  # beyond it
    ("0.420", "0.410", "0.42", None),
    ("0.356", "0", "0.60", None),
])
def test_a_live_bid_is_raised_where_the_market_comes_near_and_never_for_itself(bid, min_bid, most, to):
    assert raised(Decimal(bid), Decimal(min_bid), Decimal(most)) == (to and Decimal(to))


@given(PRICES, PRICES, PRICES)
def test_a_raise_is_a_raise_wins_and_stays_within_the_limit(bid, min_bid, most):
    to = raised(bid, min_bid, most)
    assert to is None or (bid < to <= most and to >= min_bid)


def candidate(**words: object) -> Candidate:
    usd = {name: Decimal(str(value)) if name.endswith("usd_per_hour") else value
           for name, value in words.items()}
    return Candidate.model_validate({"infra": "vast", "gpu": "RTX5090:1"} | usd)


@pytest.mark.parametrize(("words", "says"), [
    ({"bid": "auto"}, "bid: auto needs a limit: add --set {where}.most_bid_usd_per_hour=USD"),
    ({"bid": "auto", "most_bid_usd_per_hour": "1", "bid_usd_per_hour": "1"}, "set one to null"),
    ({"bid": "auto", "most_bid_usd_per_hour": "1", "price_usd_per_hour": "1"}, "set one to null"),
    ({"most_bid_usd_per_hour": "1"}, "most_bid_usd_per_hour is for bids: add --set {where}.bid=auto"),
    ({"bid_usd_per_hour": "2", "most_bid_usd_per_hour": "1"}, "is 1, below the bid of 2: set it to 2 or"),
    ({"bid": "low", "most_bid_usd_per_hour": "1"}, "bid"),
    ({"bid": "auto", "most_bid_usd_per_hour": "-1"}, "greater than 0"),
    ({"bid": "auto", "most_bid_usd_per_hour": "NaN"}, "finite"),
    ({"infra": "gcp", "bid": "auto", "most_bid_usd_per_hour": "1"}, "bid is for infra vast, not gcp"),
])
def test_a_bid_that_leaves_open_what_is_paid_is_refused(words, says):
    with pytest.raises(ValidationError, match=".*") as raised_error:
        candidate(**words)
    assert says in str(raised_error.value)


def market(min_bid: str, on_demand: str | None = "0.535") -> list[PricedOffer]:
    return [PricedOffer(cloud="vast", region="Texas, US", gpu="RTX5090", num_gpus=1, terms="bid",
                        machine_id=7, price_usd_per_hour=Decimal(min_bid), seen_at=NOW, source="a test",
                        on_demand_usd_per_hour=on_demand and Decimal(on_demand),
                        disk_usd_per_gb_month=Decimal("0.072"))]


def offer(found: list[PricedOffer], **words: object) -> Offer:
    (only,) = make_offers([candidate(**words)], Machine(num_cores=2, memory_gib=8), NOW, found)
    return only


AUTO = {"bid": "auto", "most_bid_usd_per_hour": "0.60"}


def test_bid_auto_bids_what_is_advised_and_its_saves_count_on_the_loss_of_that_bid():
    found = offer(market("0.32"), **AUTO)
    assert (found.spot, found.bid_usd_per_hour, found.price_usd_per_hour) == (True, *[Decimal("0.356")] * 2)
    assert rates_of(found, None).hours_to_loss == pytest.approx(1 / (0.05 + 0.5 * math.exp(-1.125)))
    settings = settings_of(found, "one", None)
    assert (settings["bid_from"], settings["usd_per_hour"]) == (0.0, 0.6)


def test_bid_auto_rents_on_demand_where_the_gap_is_small_with_the_disk_in_the_price():
    found = offer(market("0.32", "0.40"), **AUTO)
    assert (found.spot, found.bid_usd_per_hour, found.bid_from_usd_per_hour) == (False, None, None)
    assert found.price_usd_per_hour == Decimal("0.41")  # 100 GB at $0.072 a month are a cent an hour
    assert "bid_from" not in settings_of(found, "one", None)


def fixed(usd_per_hour: str) -> list[PricedOffer]:
    """The same card, for rent on demand alone."""
    return [market(usd_per_hour, None)[0].model_copy(update={"terms": "on-demand", "machine_id": 8})]


def test_bid_auto_rents_on_demand_within_its_limit_where_every_bid_that_wins_is_above_it():
    found = offer(market("0.65", "0.80") + fixed("0.50"), **AUTO)
    assert (found.spot, found.bid_usd_per_hour, found.bid_from_usd_per_hour, found.too_low) == (
        False, None, None, None)
    assert (found.price_usd_per_hour, found.most_usd_per_hour) == (Decimal("0.51"), Decimal("0.60"))
    assert found.advice and found.advice.reason == (
        "on demand: ~$0.51 a useful hour, and no bid wins below that")
    assert settings_of(found, "one", None)["usd_per_hour"] == 0.6


@pytest.mark.parametrize("found", [market("0.65", "0.80"), market("0.65", "0.80") + fixed("0.595")])
def test_bid_auto_says_what_wins_where_neither_a_bid_nor_on_demand_with_its_disk_is_within_the_limit(found):
    nothing = offer(found, **AUTO)
    assert nothing.too_low == "at $0.60 an hour nothing wins; the lowest bid is $0.65"


def test_bid_auto_rents_nothing_on_demand_that_with_its_disk_is_above_the_limit():
    """100 GB are a cent: $0.605 is more than may be paid, so what is advised is a bid."""
    found = offer(market("0.58", "0.595"), **AUTO)
    assert found.spot and Decimal("0.58") <= (found.bid_usd_per_hour or 0) <= Decimal("0.60")


def test_where_the_market_is_not_known_the_most_that_may_be_bid_counts():
    found = offer([], **AUTO)
    assert (found.spot, found.bid_usd_per_hour, found.price_usd_per_hour) == (True, *[Decimal("0.60")] * 2)
    assert rates_of(found, None).hours_to_loss == 7
    assert found.advice is None


def test_a_bid_of_the_recipe_stays_and_is_advised_on():
    found = offer(market("0.32"), bid_usd_per_hour="0.40")
    assert (found.bid_usd_per_hour, found.most_usd_per_hour, found.bid_from_usd_per_hour) == (
        Decimal("0.40"), Decimal("0.40"), None)
    assert found.advice and found.advice.bid_usd_per_hour == Decimal("0.356")
    follows = offer(market("0.32"), bid_usd_per_hour="0.40", most_bid_usd_per_hour="0.60")
    assert (follows.bid_usd_per_hour, follows.most_usd_per_hour, follows.bid_from_usd_per_hour) == (
        Decimal("0.40"), Decimal("0.60"), Decimal("0.40"))


@pytest.mark.parametrize(("min_bid", "settings", "bid", "paid"), [
    (0.32, {"usd_per_hour": 0.6, "bid_from": 0.0}, 0.5, 0.356),
    (0.32, {"usd_per_hour": 0.6, "bid_from": 0.4}, 0.4, 0.4),
    (0.50, {"usd_per_hour": 0.6, "bid_from": 0.4}, 0.4, 0.555),
    (0.59, {"usd_per_hour": 0.6, "bid_from": 0.0}, 0.4, 0.596),
    (0.32, {"usd_per_hour": 0.5}, 0.5, 0.5),
    (0.32, {"usd_per_hour": 0.5}, None, None),
])
def test_each_rental_bids_by_the_machine_that_it_gets(min_bid, settings, bid, paid):
    assert bid_for({"min_bid": min_bid}, settings, bid) == paid


@pytest.mark.parametrize(("words", "keys"), [
    (AUTO, {"most_bid_usd_per_hour"}),
    ({"bid_usd_per_hour": "0.40", "most_bid_usd_per_hour": "0.60"},
     {"most_bid_usd_per_hour", "bid_usd_per_hour"}),
    ({"bid_usd_per_hour": "0.40"}, {"bid_usd_per_hour"}),
])
def test_what_is_advised_instead_of_a_card_names_the_bid_as_the_recipe_does(words, keys):
    bids = [change for change in hardware_changes(offer([], **words), 0) if len(change) > 1]
    assert bids
    for change in bids:
        named = {key.rpartition(".")[2] for key in change}
        assert named == {"gpu", *keys}
        gpu = change["hardware.train.0.gpu"]
        told = {key.rpartition(".")[2]: value for key, value in change.items()}
        assert candidate(**{**words, **told, "gpu": gpu})  # a recipe with it loads
