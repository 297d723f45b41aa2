from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest
from launch_examples import NOW, TWO_CORES, example_recipe

from launcher.candidates import choose
from launcher.errors import OverCapError
from launcher.estimate import Case, Done, case_of
from launcher.market import Market, Wish, refusal, refusal_by_list
from launcher.offers import Offer, make_offers
from launcher.plan import Plan, best_plan
from launcher.price_sources import price_warnings
from launcher.priced_offers import Found, PricedOffer
from launcher.ranking import ENOUGH, best_first, ranked, reason_of
from trainer.contract import Document
from trainer.encoder_shape import encoder_shape

BENCH = "hardware.bench=[{infra: vast, gpu: 'RTX5090:1', bid_usd_per_hour: 0.6}]"
DEAR = "{infra: gcp, gpu: 'H100:8', spot: true, price_usd_per_hour: 50}"
GOOD = "{infra: azure, gpu: 'H100:1', spot: true, price_usd_per_hour: 1.55}"
UNPRICED = "{infra: gcp, gpu: 'H100:1', spot: true}"


def plan_of(*train: str, sets: tuple[str, ...] = (), priced: Sequence[PricedOffer] = ()) -> Plan:
    hardware = f"hardware.train=[{', '.join(train)}]"
    recipe = example_recipe(hardware, "train.global_batch_size=64", BENCH, *sets)
    offers = {document: make_offers(found, TWO_CORES, NOW, priced)
              for document, found in choose(recipe, None, TWO_CORES).items()}
    shape = encoder_shape(recipe.train.token_encoder.name)
    return best_plan(case_of(recipe, shape, offers, ()), NOW, "run-1")


def a_card(price: str, *, spot: bool, infra: str = "gcp") -> Offer:
    return Offer(infra=infra, gpu="H100", gpu_memory_gib=79.1, num_gpus=1, num_nodes=1, cpu_ranks=2,
                 spot=spot, price_usd_per_hour=Decimal(price), on_demand_usd_per_hour=None,
                 price_is_simulated=False,
                 bid_usd_per_hour=None, image=None, disk_gib=100, seen_at=NOW)


def long_case(*offers: Offer, deadline_h: float | None = None, cap: str = "2000") -> Case:
    """About 40 hours on one H100."""
    recipe = example_recipe("train.steps=300000", "train.global_batch_size=64", f"limits.max_cost_usd={cap}",
                            f"limits.deadline_hours={deadline_h or 'null'}")
    return Case(recipe, encoder_shape(recipe.train.token_encoder.name),
                {Document.TRAIN: offers[0], Document.BENCH: a_card("0.6", spot=False)}, (),
                others={Document.TRAIN: offers[1:]})


def test_the_cheapest_is_planned_wherever_the_recipe_names_it():
    for order in ([DEAR, GOOD], [GOOD, DEAR]):
        plan = plan_of(*order)
        assert plan.offers[Document.TRAIN].label == "H100:1 on azure (spot)"
        assert [row.offer.label for row in plan.ranking] == ["H100:1 on azure (spot)", "H100:8 on gcp (spot)"]
        assert plan.choice.startswith("the cheapest expected of 2: $")
        assert plan.choice.endswith(" less than H100:8 on gcp (spot)")


def test_a_price_that_nobody_knows_is_no_low_price():
    plan = plan_of(UNPRICED, GOOD)
    assert plan.offers[Document.TRAIN].cloud == "azure"
    assert plan.choice == "no other has a price"
    assert plan_of(UNPRICED, UNPRICED.replace("gcp", "azure")).choice == (
        "no price is known, so it is the recipe's first")


def test_what_nothing_wins_for_is_taken_only_where_nothing_else_can_be_had():
    low = "{infra: vast, gpu: 'H100:1', bid_usd_per_hour: 0.25}"
    lowest = PricedOffer(cloud="vast", region="Utah, US", gpu="H100", num_gpus=1, terms="bid",
                         price_usd_per_hour=Decimal("0.90"), seen_at=NOW, source="me")
    why = "at $0.25 an hour nothing wins; the lowest bid is $0.90"
    plan = plan_of(low, GOOD, priced=[lowest])
    assert plan.offers[Document.TRAIN].cloud == "azure"
    assert [row.problem for row in plan.ranking] == [None, why]
    alone = plan_of(low, priced=[lowest])
    assert f"H100:1 on vast (interruptible): {why}" in alone.warnings
    assert plan_of(low, GOOD).offers[Document.TRAIN].cloud == "vast"  # nobody has said what wins
    enough = plan_of(low.replace("0.25", "0.90"), GOOD, priced=[lowest])
    assert [row.problem for row in enough.ranking] == [None, None]


def test_a_launch_is_refused_where_nothing_wins_and_the_fix_is_a_bid_that_does():
    recipe = example_recipe("hardware.train=[{infra: vast, gpu: 'RTX4090:2', bid_usd_per_hour: 0.25}]")
    lowest = PricedOffer(cloud="vast", region="Utah, US", gpu="RTX4090", num_gpus=2, terms="bid",
                         price_usd_per_hour=Decimal("0.9012"), seen_at=NOW, source="me")
    refused, none = (refusal_by_list(
        recipe, Document.TRAIN, make_offers(recipe.hardware.train, TWO_CORES, NOW, priced)[0], resuming=False)
        for priced in ([lowest], []))
    assert none is None and refused is not None
    assert refused.problem == ("RTX4090:2 on vast (interruptible): at $0.25 an hour nothing wins; the lowest "
                               "bid is $0.9012")
    assert refused.fix == "add --set hardware.train.0.bid_usd_per_hour=0.91, or try again later"


def test_where_bid_auto_rents_on_demand_and_nothing_is_within_its_limit_the_fix_raises_that_limit():
    auto = "hardware.train=[{infra: vast, gpu: 'RTX4090:2', bid: auto, most_bid_usd_per_hour: 0.6}]"
    wish = Wish(gpu="RTX4090:2", settings={"usd_per_hour": 0.6}, disk_gib=100)
    market = Market(num_fit=0, num_at_any_price=3, from_usd_per_hour=Decimal("0.7012"))
    refused = refusal(example_recipe(auto), Document.TRAIN, wish, market, resuming=False)
    assert refused is not None
    assert refused.fix == "add --set hardware.train.0.most_bid_usd_per_hour=0.71, or try again later"
    assert example_recipe(auto, "hardware.train.0.most_bid_usd_per_hour=0.71")


def test_a_benchmark_is_planned_where_something_wins_too():
    hardware = ("hardware.bench=[{infra: vast, gpu: 'RTX5090:1', bid_usd_per_hour: 0.6}, "
                "{infra: vast, gpu: 'RTX4090:1', bid_usd_per_hour: 0.6}]")
    lowest = PricedOffer(cloud="vast", region="Utah, US", gpu="RTX5090", num_gpus=1, terms="bid",
                         price_usd_per_hour=Decimal("0.61"), seen_at=NOW, source="me")
    assert plan_of(GOOD, sets=(hardware,)).offers[Document.BENCH].gpu == "RTX5090"
    assert plan_of(GOOD, sets=(hardware,), priced=[lowest]).offers[Document.BENCH].gpu == "RTX4090"


def test_a_price_that_a_host_does_not_say_is_told():
    bids, rich = "{infra: vast, gpu: 'H100:1', bid_usd_per_hour: 2}", ("limits.max_cost_usd=90",)
    silent = PricedOffer(cloud="vast", region="Utah, US", gpu="H100", num_gpus=1, terms="bid",
                         price_usd_per_hour=Decimal("0.90"), sent_usd_per_gb=Decimal("0.01"), seen_at=NOW,
                         source="me")
    said = silent.model_copy(update={"disk_usd_per_gb_month": Decimal(1), "received_usd_per_gb": Decimal(1)})
    bench = "RTX5090:1 on vast (interruptible): none is listed, so the plan goes by the recipe's word"
    assert list(price_warnings(plan_of(bids, sets=rich, priced=[said]), Found((said,)))) == [bench]
    assert list(price_warnings(plan_of(bids, sets=rich), Found(down={"vast": "no key"}))) == ["vast: no key"]
    assert list(price_warnings(plan_of(bids, sets=rich, priced=[silent]), Found((silent,)))) == [
        bench,
        "H100:1 on vast/Utah, US says no disk_usd_per_gb_month, received_usd_per_gb: counted as the dearest "
        "that another host asks, else guessed"]


def test_what_the_first_costs_less_is_the_difference_of_what_the_table_says():
    rows = ranked(long_case(a_card("1.00", spot=True), a_card("2.95", spot=True)))
    shown = [Decimal(f"{row.expected_usd:.2f}") for row in rows]
    for fraction in ("0.000", "0.004", "0.005", "0.009"):
        moved = [rows[0], rows[1].model_copy(update={"odds": rows[1].odds.model_copy(
            update={"expected_usd": shown[1] + Decimal(fraction)})})]
        told = Decimal(f"{moved[1].expected_usd:.2f}") - shown[0]
        assert reason_of(moved).startswith(f"the cheapest expected of 2: ${told} less than ")


def test_one_offer_is_no_choice():
    assert plan_of(GOOD).choice is None
    assert len(plan_of(GOOD).ranking) == 1


def test_what_does_not_fit_comes_last_and_says_why():
    plan = plan_of("{infra: gcp, gpu: 'T4:1', price_usd_per_hour: 0.01}", GOOD,
                   sets=("train.precision=bf16", "train.profile=qwen3.6-27b", "limits.max_cost_usd=100000",
                         "limits.deadline_hours=null", "train.data.source=shards:x", "train.steps=10"))
    assert plan.offers[Document.TRAIN].cloud == "azure"
    assert plan.ranking[-1].offer.gpu == "T4" and plan.ranking[-1].problem


def test_spot_is_taken_only_where_it_is_cheaper_after_all_that_it_costs():
    on_demand = a_card("3.00", spot=False)
    cheap, dear = a_card("1.00", spot=True), a_card("2.95", spot=True)
    assert ranked(long_case(on_demand, cheap))[0].offer == cheap
    rows = ranked(long_case(dear, on_demand))
    assert rows[0].offer == on_demand
    assert rows[0].odds.losses < 0.5 < rows[1].odds.losses
    seldom, often = (row.odds.losses_range for row in rows)
    assert seldom.low == seldom.mid == 0 and seldom.high < often.high
    assert often.low <= often.mid < often.high and often.low < rows[1].odds.losses < often.high
    assert all(number == int(number) for _, number in often)


def test_a_deadline_that_spot_is_not_likely_to_meet_sends_it_on_demand():
    spot, on_demand = a_card("1.00", spot=True), a_card("3.00", spot=False, infra="azure")
    # On other hardware: a run that has begun on spot cannot go there.
    other = on_demand.model_copy(update={"gpu": "H200", "gpu_memory_gib": 139.7})
    rows = ranked(long_case(spot, other, deadline_h=75.0))
    assert rows[0].offer == other and rows[1].chance < ENOUGH <= rows[0].chance
    assert reason_of(rows).startswith("the cheapest that keeps its limits: H100:1 on gcp (spot), ~$")


def test_where_spot_can_end_on_demand_a_tight_deadline_costs_more_and_is_met_more_often():
    spot, on_demand = a_card("1.00", spot=True), a_card("3.00", spot=False)
    hours = float(ranked(long_case(spot))[0].hours.mid)
    alone = ranked(long_case(spot, deadline_h=1.2 * hours))[0]
    rows = ranked(long_case(spot, on_demand, deadline_h=1.2 * hours))
    both = next(row for row in rows if row.offer == spot)
    assert both.odds.in_time > alone.odds.in_time
    assert both.expected_usd > alone.expected_usd


def test_what_is_left_of_a_run_is_ranked_by_what_is_left():
    case = long_case(a_card("1.00", spot=True), a_card("3.00", spot=False))
    half = replace(case, done=Done(step=150_000, spent_usd=Decimal(5), has_trained=False))
    whole_usd, half_usd = (rows[0].expected_usd for rows in (ranked(case), ranked(half)))
    assert half_usd < 0.7 * float(whole_usd)


def test_the_best_of_a_ranking_becomes_the_case():
    case = long_case(a_card("3.00", spot=False), a_card("1.00", spot=True))
    rows = ranked(case)
    best = best_first(case, rows)
    assert best.candidates(Document.TRAIN) == tuple(row.offer for row in rows)
    assert best.offers[Document.BENCH] == case.offers[Document.BENCH]


@pytest.mark.parametrize("cap", ["0.5", "1"])
def test_a_cap_that_nothing_keeps_is_refused_with_what_is_missing_to_the_cheapest(cap):

    with pytest.raises(OverCapError) as caught:
        plan_of(GOOD, DEAR, sets=(f"limits.max_cost_usd={cap}", "train.steps=300000",
                                  "limits.deadline_hours=null"))
    assert f"is ${cap}, $" in caught.value.problem and caught.value.problem.endswith(" too little")
