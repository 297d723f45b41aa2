"""What a plan says of saves: attainable on each offer or refused, priced, and asked of hosts."""

from decimal import Decimal
from typing import Any

import pytest
from launch_examples import example_plan, example_recipe, example_task

from launcher.errors import NoOfferError
from launcher.estimate import num_saves
from launcher.saves import rates_of
from launcher.store_prices import request_usd_per_gb, sent_usd_per_gb
from trainer.contract import Document, Env

BIG = ("train={profile: seed-35b-a3b, steps: 40000, data: {source: 'shards:x'}, micro_batch_size: 64, "
       "zero_stage: 2, checkpoint: {max_lost_minutes: 30}}", "limits={max_cost_usd: 9999}",
       "hardware.train.1={infra: vast, gpu: 'H200:1', bid_usd_per_hour: 2.20}",
       "hardware.train.2={infra: azure, gpu: 'H200:1', spot: true, price_usd_per_hour: 2.20}")
PARAMETERS = 1_386.7e6


def saves(infra: str, *sets: str):
    plan = example_plan(infra, *BIG, *sets)
    assert plan.saves is not None
    return plan.saves


def wishes(which: Document) -> dict[str, Any]:
    """What a machine at Vast is searched by."""
    asked = example_task("vast", *BIG).document(which)["config"]["vast"]["create_instance_kwargs"]
    return asked["ldlm"]["filters"]


def test_a_host_is_asked_to_send_eight_bytes_a_parameter_in_a_third_of_the_promise() -> None:
    found = saves("vast")
    assert found.num_bytes == pytest.approx(8.25 * PARAMETERS, rel=0.001)
    needed = found.num_bytes * 8 / 1e6 / 600  # of 30 minutes ten
    assert found.upload_mbit_s == pytest.approx(needed, abs=1)
    assert (found.save_s, found.every_s, found.lost_s) == pytest.approx((600, 1200, 1800), rel=0.01)
    assert wishes(Document.TRAIN)["inet_up"] == {"gte": found.upload_mbit_s}
    assert wishes(Document.BENCH)["inet_up"] == {"gte": 100}


def test_a_smaller_promise_than_an_offer_can_keep_is_refused_with_the_smallest_that_it_can() -> None:
    with pytest.raises(NoOfferError) as caught:
        saves("vast", "train.checkpoint.max_lost_minutes=2")
    assert caught.value.problem == (
        "on H200:1 on vast (interruptible) a lost machine can cost 3.55 min of work, and the recipe promises "
        "2 min: a checkpoint of 11.4 GB takes 1.53 min at 125 MB/s, and the next may begin up to 29.7 s "
        "later")
    assert "train.checkpoint.max_lost_minutes=4" in caught.value.fix
    assert saves("vast", "train.checkpoint.max_lost_minutes=4").lost_s == pytest.approx(240)
    assert saves("azure", "train.checkpoint.max_lost_minutes=3").lost_s == pytest.approx(180)


def test_a_promise_counts_the_steps_and_the_evaluation_for_which_a_save_may_have_to_wait() -> None:
    """By hand: ten steps of 2.79 s, and 256 held-out texts at 1.3 times the cost of the 512 of a step."""
    assert saves("vast").gap_s == pytest.approx(10 * 2.786 + 1.3 * 256 / 512 * 2.786, rel=0.01)
    many = "train.evaluate_sequences=65536"  # 464 s
    slow = saves("vast", many, "train.checkpoint.max_lost_minutes=20")
    assert (slow.save_s, slow.lost_s) == pytest.approx(((20 * 60 - slow.gap_s) / 2, 1200), rel=0.01)
    with pytest.raises(NoOfferError, match="the next may begin up to 7.77 min later"):
        saves("azure", many, "train.checkpoint.max_lost_minutes=5")


def test_where_roundings_lie_too_far_apart_a_save_may_follow_any_step_and_is_larger() -> None:
    """200 steps take 9.3 minutes, of 20 that may be lost; 16 bytes a parameter instead of 11."""
    rounded, rare = saves("vast"), saves("vast", "train.optimizer.round_steps=200",
                                         "train.checkpoint.max_lost_minutes=20")
    assert rare.gap_s == pytest.approx(2.786 + 1.3 * 256 / 512 * 2.786, rel=0.01)
    assert rare.num_bytes == pytest.approx(rounded.num_bytes * 16 / 11)


def test_a_promise_that_costs_much_says_what_would_cost_least() -> None:
    assert saves("vast").reason.endswith("; 52.4 min would cost least")
    least = saves("vast", "train.checkpoint.max_lost_minutes=90").reason
    assert least == "it costs least: $0.1198 a save, a machine is lost every 7 h"
    dollars = [example_plan("vast", *BIG, f"train.checkpoint.max_lost_minutes={minutes}").usd.mid
               for minutes in (10, 30, 90)]
    assert dollars == sorted(dollars, reverse=True) and dollars[0] > dollars[2] + 10


def test_what_stays_in_the_store_is_the_newest_one_and_those_of_every_steps() -> None:
    assert saves("vast").num_kept == 1
    assert saves("vast", "train.checkpoint.every_steps=15000").num_kept == 3
    assert saves("vast", "train.checkpoint.every_steps=20000").num_kept == 2  # the newest is one of them


def test_uploads_are_part_of_the_estimate() -> None:
    """By hand: 30.96 h of training, a save every 20 min, 11.44 GB at $0.0103 each."""
    plan, config = example_plan("vast", *BIG), example_recipe(*BIG).train
    (part,) = [part for part in plan.parts if part.name == "disk, network, store"]
    hours = next(float(part.hours.mid) for part in plan.parts if part.name == "training")
    by_hand = hours * 3 * 11.44 * 0.0103
    assert num_saves(config, 0, hours, plan.saves) * float(plan.saves.upload_usd) == pytest.approx(
        by_hand, rel=0.02)
    assert float(part.usd.mid) > by_hand


@pytest.mark.parametrize(("infra", "store", "usd"), [
    ("vast", "s3://box/ldlm", "0.01"), ("azure/eastus", "gs://box/ldlm", "0.087"),
    ("local", "s3://box/ldlm", "0"), ("slurm", "file:///store", "0")])
def test_what_sending_costs_follows_from_where_both_are(infra: str, store: str | None, usd: str) -> None:
    assert sent_usd_per_gb(infra, store) == Decimal(usd)


def test_requests_cost_something_where_a_store_bills_them() -> None:
    assert request_usd_per_gb("s3://bucket/ldlm") == Decimal("0.0003")
    assert request_usd_per_gb("file:///store") == request_usd_per_gb(None) == 0


@pytest.mark.parametrize(("cloud", "spot", "hours"), [
    ("vast", True, 7), ("azure", True, 10), ("gcp", True, 12), ("vast", False, 500), ("azure", False, 500),
    ("slurm", False, 500), ("local", False, 500)])
def test_how_often_a_machine_is_lost_is_guessed_by_whose_it_is(cloud: str, spot: bool, hours: float) -> None:
    offer = example_plan("local").offers[Document.TRAIN].model_copy(update={"infra": cloud, "spot": spot})
    assert rates_of(offer, None).hours_to_loss == hours


def test_nodes_are_told_what_their_bytes_and_hours_cost() -> None:
    envs = example_task("azure", *BIG).document(Document.TRAIN)["envs"]
    assert (envs[Env.UPLOAD_PRICE], envs[Env.HOURS_TO_LOSS]) == ("0.1813", "10")  # to S3, from any region
    assert envs[Env.REQUESTS_PRICE] == "0.0003"
    local = example_task("local").document(Document.TRAIN)["envs"]
    assert (local[Env.UPLOAD_PRICE], local[Env.HOURS_TO_LOSS]) == ("0.0003", "500")
