"""What has moved since a plan was shown: recipes, prices, hours and code that differ, and nothing else."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from launch_examples import NOW, example_plan, example_recipe

from launcher.commands import PlanOptions
from launcher.proposal import Proposal
from launcher.quotes import Order, Quote
from launcher.stale import has_expired, moved
from trainer.contract import Document

COMMIT = "a" * 40
ORDER = Order(command="launch", what="example", options=PlanOptions())


def proposal(infra: str | None = "vast", *changes: str) -> Proposal:
    return Proposal(example_recipe(*changes), example_plan(infra, *changes))


def quote(shown: Proposal) -> Quote:
    return Quote.of(ORDER, shown, COMMIT)


def told(shown: Proposal, fresh: Proposal, later: timedelta = timedelta(minutes=5),
         commit: str | None = COMMIT) -> list[str]:
    return list(moved(quote(shown), fresh, commit, NOW + later))


def at_price(shown: Proposal, price: str | None) -> Proposal:
    offer = shown.plan.offers[Document.TRAIN]
    changed = offer.model_copy(update={"price_usd_per_hour": price and Decimal(price)})
    return replace(shown, plan=shown.plan.model_copy(
        update={"offers": {**shown.plan.offers, Document.TRAIN: changed}}))


@pytest.mark.parametrize(("infra", "minutes"), [("vast", 15), ("local", 60)])
def test_a_quote_holds_for_minutes_and_shorter_where_the_market_moves(infra, minutes):
    shown = quote(proposal(infra))
    assert shown.holds_until == NOW + timedelta(minutes=minutes)
    assert has_expired(shown, shown.holds_until - timedelta(seconds=1)) is None
    assert has_expired(shown, shown.holds_until) == f"it held until 2026-11-23 {12 + minutes // 60}:" \
                                                    f"{minutes % 60:02} UTC"


def test_the_same_order_planned_again_has_not_moved_whatever_its_run_id_and_clock():
    shown = proposal()
    later = shown.plan.model_copy(update={"run_id": "another-1", "planned_at": NOW + timedelta(minutes=5)})
    assert told(shown, replace(shown, plan=later)) == []


def test_every_value_of_a_recipe_that_has_changed_is_named_up_to_four():
    assert told(proposal(), proposal("vast", "train.optimizer.learning_rate=0.01"))[0] == (
        "train.optimizer.learning_rate was 0.0002, and is 0.01")
    many = [f"train.{name}" for name in ("seed=9", "evaluate_every_steps=7", "optimizer.learning_rate=0.1",
                                        "checkpoint.every_steps=50", "checkpoint.max_lost_minutes=20",
                                        "model.denoiser_layers=3")]
    words = told(proposal(), proposal("vast", *many))
    assert sum(" was " in one for one in words) == 4
    assert words[4] == "2 more values of the recipe have changed"


@pytest.mark.parametrize(("price", "words"), [
    ("0.44", ["the price of RTX5090:1 on vast (interruptible) was $0.4/h, and is $0.44/h (+10%)"]),
    ("0.30", ["the price of RTX5090:1 on vast (interruptible) was $0.4/h, and is $0.3/h (-25%)"]),
    ("0.4039", []),
    (None, ["the price of RTX5090:1 on vast (interruptible) was $0.4/h, and is not known"]),
])
def test_a_price_that_has_moved_is_named_with_how_much(price, words):
    shown = proposal()
    assert told(shown, at_price(shown, price)) == words


@pytest.mark.parametrize(("price", "num_told"), [("0.43", 0), ("0.37", 0), ("0.45", 1), ("0.35", 1)])
def test_a_bid_that_follows_the_market_may_move_within_a_tenth(price, num_told):
    shown = proposal("vast", "hardware.train.1.most_bid_usd_per_hour=0.60")
    assert len(told(shown, at_price(shown, price))) == num_told


def test_hardware_that_is_gone_and_another_first_choice_are_named():
    words = told(proposal("vast"), proposal("slurm/ldlm"))
    assert "RTX5090:1 on vast (interruptible) is not offered any more" in words
    both = 'hardware.train=[{infra: azure, gpu: "H100:1", price_usd_per_hour: 1}, ' \
           '{infra: gcp, gpu: "H100:1", price_usd_per_hour: 1}]'
    shown = Proposal(example_recipe(both), example_plan("azure", both))
    two = shown.plan.model_copy(update={
        "offers": {**shown.plan.offers, Document.TRAIN: example_plan("gcp", both).offers[Document.TRAIN]},
        "others": {**shown.plan.others, Document.TRAIN: (shown.plan.offers[Document.TRAIN],)}})
    assert told(shown, replace(shown, plan=two)) == ["train would now be on H100:1 on gcp (on-demand)"]


def test_a_deadline_that_cannot_be_met_any_more_is_named():
    shown = proposal()
    least = timedelta(hours=float(shown.plan.hours.low))
    assert told(shown, shown, timedelta(hours=2) - least - timedelta(minutes=1)) == []
    assert told(shown, shown, timedelta(hours=2) - least + timedelta(minutes=1)) == [
        f"its deadline is 2026-11-23 14:00 UTC, and it takes at least ~{shown.plan.hours.low:.2f} h"]


def test_a_run_that_has_gone_on_and_code_that_has_changed_are_named():
    shown = proposal()
    further = shown.plan.model_copy(update={"done_steps": 100, "spent_usd": Decimal("0.25")})
    assert told(shown, replace(shown, plan=further)) == [
        "step 0 was durable, and step 100 is", "$0.0000 were spent, and $0.2500 are"]
    assert told(shown, shown, commit=None) == ["the code was aaaaaaaaaa, and is unknown to git"]
    assert told(shown, shown, commit="b" * 40 + "-dirty") == [
        "the code was aaaaaaaaaa, and is bbbbbbbbbb-dirty"]
