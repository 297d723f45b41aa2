"""What a planned run takes along to decide between spot and on demand, and when it takes nothing."""

from datetime import timedelta
from decimal import Decimal
from typing import get_args

import pytest
from launch_examples import NOW, example_plan, example_task

from launcher.course import Course
from launcher.policy_ours import POLICIES
from launcher.recipe import PolicyName
from trainer.contract import Document, Env

SPOT = "{infra: gcp, gpu: 'A100-80GB:1', spot: true, price_usd_per_hour: 1.20}"
ON_DEMAND = "{infra: gcp, gpu: 'A100-80GB:1', price_usd_per_hour: 3.70}"
BID = "{infra: vast, gpu: 'H100:1', bid_usd_per_hour: 1.60}"
RENT = "{infra: vast, gpu: 'H100:1', price_usd_per_hour: 2.90}"


def train_of(*candidates: str, deadline: str = "20") -> dict:
    sets = [f"hardware.train=[{', '.join(candidates)}]", f"hardware.bench=[{BID}]", "limits.max_cost_usd=9",
            f"limits.deadline_hours={deadline}"]
    return example_task(None, *sets).document(Document.TRAIN)


def course(document: dict) -> Course | None:
    return Course.of_task(document["envs"])


def test_spot_and_on_demand_of_one_recipe_are_a_course_that_travels_with_the_task():
    train = train_of(SPOT, ON_DEMAND)
    found = course(train)
    assert [(place.infra, place.spot, place.resource, place.usd_per_hour) for place in found.places] == [
        ("gcp", True, 0, Decimal("1.2")), ("gcp", False, 1, Decimal("3.7"))]
    assert (found.begins_at, found.ends_at) == (NOW, NOW + timedelta(hours=20))
    assert (found.from_step, found.to_step, found.tick_s) == (0, 400, 480.0)
    assert train["resources"]["job_recovery"]["strategy"] == "LDLM"
    assert train["envs"][Env.WAIT] == "20"  # the policy says how long, up to the deadline
    assert [(place.envs[Env.PRICE], place.envs[Env.OFFER]) for place in found.places] == [
        ("1.2", "A100-80GB:1 on gcp (spot)"), ("3.7", "A100-80GB:1 on gcp (on-demand)")]


def test_vast_is_one_candidate_of_the_task_and_two_places_of_the_course():
    train = train_of(BID, RENT)
    assert train["resources"]["infra"] == "vast" and "ordered" not in train["resources"]
    assert Env.OFFERS not in train["envs"]
    assert train["config"]["vast"]["create_instance_kwargs"]["bid_price"] == 1.6
    spot, on_demand = course(train).places
    assert (spot.spot, spot.resource, spot.usd_per_hour) == (True, 0, Decimal("1.6"))
    assert (on_demand.spot, on_demand.resource, on_demand.usd_per_hour) == (False, 0, Decimal("2.9"))
    assert spot.wishes == train["config"]["vast"]["create_instance_kwargs"]
    assert on_demand.wishes == {"ldlm": spot.wishes["ldlm"] | {"usd_per_hour": 2.9}}


def test_places_keep_their_candidate_where_vast_stands_between_others():
    found = course(train_of(SPOT, BID, RENT, ON_DEMAND))
    assert [(place.infra, place.spot, place.resource) for place in found.places] == [
        ("gcp", True, 0), ("vast", True, 1), ("vast", False, 1), ("gcp", False, 2)]


@pytest.mark.parametrize(("candidates", "deadline"), [
    ((SPOT, ON_DEMAND), "null"),
    ((SPOT,), "20"),
    ((ON_DEMAND,), "20"),
    ((SPOT, ON_DEMAND.replace("3.70", "1.10")), "20"),  # spot is not cheaper: nothing to decide
])
def test_without_a_deadline_or_a_choice_all_is_as_it_was(candidates, deadline):
    train = train_of(*candidates, deadline=deadline)
    assert course(train) is None and Env.COURSE not in train["envs"]
    assert train["resources"]["job_recovery"]["strategy"] == "EAGER_NEXT_REGION"
    assert train["envs"][Env.WAIT] == "6"


def test_this_machine_plays_both_kinds_at_the_prices_of_the_recipe():
    found = course(example_task("local").document(Document.TRAIN))
    assert [(place.spot, place.usd_per_hour, place.envs[Env.OFFER]) for place in found.places] == [
        (True, Decimal("0.5"), "2 CPU cores here (spot)"),
        (False, Decimal("1.2"), "2 CPU cores here (on-demand)")]


def test_on_demand_is_due_when_work_what_a_loss_costs_and_two_starts_are_all_that_fits():
    plan, found = example_plan("local"), course(example_task("local").document(Document.TRAIN))
    work_h = sum(float(part.hours.mid) for part in plan.parts[1:3])
    lost_h = min(plan.saves.lost_s / 3600, work_h)
    due = NOW + timedelta(hours=2 - work_h - lost_h - 2 * plan.start.again_s / 3600)
    assert found.lost_h == pytest.approx(lost_h, abs=1e-6)
    assert abs(found.on_demand_at - due) < timedelta(seconds=1)


def test_losses_and_waits_that_a_plan_expects_are_no_work_that_is_left():
    """Of 15.8 h it was 17.7 h, so that on demand was paid for nearly two hours too early."""
    sets = ("train.steps=400000", f"hardware.train=[{SPOT}, {ON_DEMAND}]", f"hardware.bench=[{BID}]",
            "limits.max_cost_usd=900", "limits.deadline_hours=60")
    hours = {part.name: float(part.hours.mid) for part in example_plan(None, *sets).parts}
    assert hours["after losses"] > 0.1 and hours["waiting"] > 0.1
    found = course(example_task(None, *sets).document(Document.TRAIN))
    assert found.work_h == pytest.approx(hours["training"] + hours["evaluating and saving"])


def test_a_forecast_under_a_deadline_moves_to_the_same_machines_at_other_places():
    """Not to other machines, which have another speed, and not without a deadline."""
    def expected(*others: str, deadline: str = "36") -> tuple[Decimal, float]:
        plan = example_plan(None, "train.steps=400000", f"hardware.train=[{', '.join([SPOT, *others])}]",
                            f"hardware.bench=[{BID}]", "limits.max_cost_usd=900",
                            f"limits.deadline_hours={deadline}")
        waits = sum(float(part.hours.high) for part in plan.parts if part.name == "waiting")
        return plan.odds.expected_usd, waits

    azure = "{infra: azure, gpu: 'A100-80GB:1', spot: true, price_usd_per_hour: 1.30}"
    (alone_usd, alone_h), (usd, hours) = expected(ON_DEMAND), expected(azure, ON_DEMAND)
    assert usd < alone_usd and hours < alone_h / 2
    assert expected(azure.replace("A100-80GB", "H100"), ON_DEMAND) == (alone_usd, alone_h)
    assert expected(azure, ON_DEMAND, deadline="null") == expected(ON_DEMAND, deadline="null")


def test_a_recipe_may_name_any_policy_that_is_simulated():
    assert set(get_args(PolicyName)) == {policy.name for policy in POLICIES}
    train = example_task("local", "limits.policy=greedy").document(Document.TRAIN)
    assert (course(train).policy, course(train_of(SPOT, ON_DEMAND)).policy) == ("greedy", "ours")
