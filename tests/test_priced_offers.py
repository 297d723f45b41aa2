"""What a candidate of a recipe may be, of all that is priced, and what its offers then say."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from launcher.offers import Machine, Offer, make_offers
from launcher.priced_offers import PricedOffer, priced_for
from launcher.recipe import Candidate
from launcher.saves import rates_of

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SEEN = NOW - timedelta(hours=3)
TWO_CORES = Machine(num_cores=2, memory_gib=8)


def priced(cloud: str, region: str, terms: str, usd: str, **more: Any) -> PricedOffer:
    base = {"cloud": cloud, "region": region, "gpu": "H100", "num_gpus": 1, "terms": terms,
            "price_usd_per_hour": Decimal(usd), "seen_at": SEEN, "source": "a test"}
    return PricedOffer.model_validate(base | more)


MARKET = [
    priced("gcp", "us-central1", "spot", "6.33", on_demand_usd_per_hour=Decimal("11.06")),
    priced("gcp", "europe-west4", "spot", "5.51", on_demand_usd_per_hour=Decimal("11.50")),
    priced("gcp", "us-central1", "on-demand", "11.06"),
    priced("azure", "southeastasia", "spot", "1.55", on_demand_usd_per_hour=Decimal("7.4")),
    priced("vast", "Texas, US", "bid", "1.30", machine_id=1, on_demand_usd_per_hour=Decimal("3.10")),
    priced("vast", "Utah, US", "bid", "0.95", machine_id=2, disk_usd_per_gb_month=Decimal("0.15")),
    priced("vast", "Utah, US", "on-demand", "2.40", machine_id=2, disk_usd_per_gb_month=Decimal("0.72")),
]


def offers(**words: Any) -> tuple[Offer, ...]:
    return make_offers([Candidate.model_validate({"gpu": "H100:1"} | words)], TWO_CORES, NOW, MARKET)


def told(found: tuple[Offer, ...]) -> list[tuple[str, str | None, str | None]]:
    return [(offer.infra, str(offer.price_usd_per_hour), str(offer.on_demand_usd_per_hour))
            for offer in found]


def test_a_candidate_that_leaves_the_region_open_is_offered_in_the_cheapest_first() -> None:
    found = offers(infra="gcp", spot=True)
    assert told(found) == [("gcp/europe-west4", "5.51", "11.50"), ("gcp/us-central1", "6.33", "11.06")]
    assert {offer.seen_at for offer in found} == {SEEN}
    assert found[0].listed == MARKET[1]


def test_what_is_dearer_than_the_recipe_pays_is_not_offered() -> None:
    assert told(offers(infra="gcp", spot=True, price_usd_per_hour=Decimal("6.00"))) == [
        ("gcp/europe-west4", "5.51", "11.50")]


def test_where_nothing_is_listed_within_the_price_the_recipe_s_word_stands() -> None:
    (only,) = offers(infra="gcp", spot=True, price_usd_per_hour=Decimal("1.00"))
    assert (only.infra, only.price_usd_per_hour, only.listed) == ("gcp", Decimal("1.00"), None)
    (unpriced,) = offers(infra="azure")
    assert (unpriced.price_usd_per_hour, unpriced.listed) == (None, None)


def test_prices_are_of_all_nodes_and_so_is_the_limit() -> None:
    (only,) = offers(infra="gcp", spot=True, num_nodes=2, price_usd_per_hour=Decimal("12.00"))
    assert told((only,)) == [("gcp/europe-west4", "11.02", "23.00")]


def test_a_zone_stays_a_zone_and_a_region_of_its_own_is_not_left() -> None:
    assert told(offers(infra="gcp/us-central1/us-central1-b", spot=True)) == [
        ("gcp/us-central1/us-central1-b", "6.33", "11.06")]
    assert [offer.infra for offer in offers(infra="azure/eastus", spot=True)] == ["azure/eastus"]


def test_on_vast_a_bid_is_what_is_paid_and_the_market_says_from_where_it_wins() -> None:
    (only,) = offers(infra="vast", bid_usd_per_hour=Decimal("1.60"))
    assert told((only,)) == [("vast", "1.60", "None")]
    assert only.listed is not None and only.listed.price_usd_per_hour == Decimal("0.95")
    (in_texas,) = offers(infra="vast/Texas, US, NA", bid_usd_per_hour=Decimal("1.60"))
    assert told((in_texas,)) == [("vast/Texas, US, NA", "1.60", "3.10")]


def test_on_vast_a_price_on_demand_has_the_disk_and_the_recipe_s_stays_the_limit() -> None:
    (only,) = offers(infra="vast", price_usd_per_hour=Decimal("3.00"), disk_gib=100)
    # 2.40, and 100 GB at $0.72 a month of 720 hours.
    assert (only.price_usd_per_hour, only.most_usd_per_hour) == (Decimal("2.500000"), Decimal("3.00"))
    (too_dear,) = offers(infra="vast", price_usd_per_hour=Decimal("2.49"), disk_gib=100)
    assert too_dear.listed is None and too_dear.price_usd_per_hour == Decimal("2.49")


def test_a_price_with_its_disk_is_never_below_what_the_market_asks() -> None:
    machine = MARKET[5]  # its 100 GB at $0.15 a month are $0.0208333… an hour
    assert machine.with_disk_usd_per_hour(100) == Decimal("0.970834")


def test_a_task_names_no_more_than_five_regions_of_a_candidate() -> None:
    many = [priced("azure", f"region{number}", "spot", f"2.{number}") for number in range(9)]
    found = make_offers([Candidate(infra="azure", gpu="H100:1", spot=True)], TWO_CORES, NOW, many[::-1])
    assert [offer.infra for offer in found] == [f"azure/region{number}" for number in range(5)]


def test_cards_and_counts_are_not_mixed() -> None:
    eight = priced("gcp", "us-east5", "spot", "5.00", num_gpus=8)
    assert priced_for(Candidate(infra="gcp", gpu="H100:1", spot=True), [eight]) == []
    assert priced_for(Candidate(infra="gcp", gpu="H100:8", spot=True), [eight]) == [eight]
    assert eight.usd_per_gpu_hour == Decimal("0.625")


@pytest.mark.parametrize("wrong", [
    {"price_usd_per_hour": Decimal("NaN")}, {"price_usd_per_hour": Decimal(0)},
    {"price_usd_per_hour": Decimal(-1)}, {"price_usd_per_hour": Decimal(5000)},
    {"price_usd_per_hour": Decimal("0.0099")},
    {"sent_usd_per_gb": Decimal(-1)}, {"region": ""}, {"reliability": 1.5},
    {"seen_at": NOW.replace(tzinfo=None)}, {"cloud": "aws"}, {"currency": "EUR"}])
def test_what_nobody_can_mean_is_no_offer(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PricedOffer.model_validate(MARKET[0].model_dump() | wrong)


def test_what_a_machine_asks_for_uploads_is_what_the_plan_counts() -> None:
    asks = [priced("vast", "Utah, US", "bid", "0.95", sent_usd_per_gb=Decimal("0.004"))]
    said, guessed = (make_offers([Candidate(infra="vast", gpu="H100:1", bid_usd_per_hour=Decimal(2))],
                                 TWO_CORES, NOW, market)[0] for market in (asks, ()))
    assert rates_of(said, None).upload_usd_per_gb == pytest.approx(0.004)
    assert rates_of(guessed, None).upload_usd_per_gb == pytest.approx(0.01)  # a guess of what hosts ask


@pytest.mark.parametrize("bids", [True, False])
def test_a_host_that_names_no_price_of_disk_and_network_is_no_cheaper_for_it(bids: bool) -> None:
    terms = "bid" if bids else "on-demand"
    said = priced("vast", "Utah, US", terms, "0.20", disk_usd_per_gb_month=Decimal("0.30"), machine_id=1,
                  sent_usd_per_gb=Decimal("0.02"), received_usd_per_gb=Decimal("0.03"))
    silent = priced("vast", "Utah, US", terms, "0.21", machine_id=2)
    limit = "bid_usd_per_hour" if bids else "price_usd_per_hour"
    candidate = Candidate.model_validate({"infra": "vast", "gpu": "H100:1", limit: Decimal(2)})
    offer, = make_offers([candidate], TWO_CORES, NOW, [silent, said])
    assert offer.listed == said
    alone, = make_offers([candidate], TWO_CORES, NOW, [
        silent, said.model_copy(update={"gpu": "L4"}), priced("gcp", "us-east5", "spot", "1")])
    assert alone.listed == said.model_copy(update={"price_usd_per_hour": Decimal("0.21"), "machine_id": 2})
    nobody, = make_offers([candidate], TWO_CORES, NOW, [silent])
    assert nobody.listed == silent


def test_ages_are_never_negative() -> None:
    assert MARKET[0].age(NOW) == timedelta(hours=3)
    assert MARKET[0].age(SEEN - timedelta(minutes=1)) == timedelta(0)
