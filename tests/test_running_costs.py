from decimal import Decimal

import pytest
from launch_examples import NOW, example_plan

from launcher.offers import Offer
from launcher.priced_offers import PricedOffer
from launcher.running_costs import disk_usd_per_hour, running_costs
from launcher.store_prices import received_usd_per_gb
from trainer.contract import Document


def offer_of(infra: str, *, spot: bool, listed: PricedOffer | None = None) -> Offer:
    return Offer(infra=infra, gpu="H100", gpu_memory_gib=79.1, num_gpus=1, num_nodes=2, cpu_ranks=2,
                 spot=spot, price_usd_per_hour=Decimal(2), on_demand_usd_per_hour=None,
                 price_is_simulated=False,
                 bid_usd_per_hour=None, image=None, disk_gib=72, seen_at=NOW, listed=listed)


@pytest.mark.parametrize(("infra", "spot", "usd"), [
    ("vast", True, "0.02"), ("vast", False, "0"), ("local", False, "0"), ("slurm/x", False, "0")])
def test_disks_cost_what_is_not_in_the_price(infra, spot, usd):
    """By hand: 72 GiB on each of two nodes, a tenth of a dollar a month of 720 hours."""
    assert disk_usd_per_hour(offer_of(infra, spot=spot)) == Decimal(usd)


def test_the_markets_word_comes_before_a_guess():
    listed = PricedOffer(cloud="vast", region="Spain, ES", gpu="H100", num_gpus=1, terms="bid",
                         price_usd_per_hour=Decimal(1), disk_usd_per_gb_month=Decimal("0.30"),
                         received_usd_per_gb=Decimal("0.02"), seen_at=NOW, source="Vast")
    assert disk_usd_per_hour(offer_of("vast", spot=True, listed=listed)) == Decimal("0.06")


@pytest.mark.parametrize(("infra", "store", "usd"), [
    ("vast", None, "0.01"), ("vast", "s3://box/ldlm", "0.10"), ("gcp/us-east4", "gs://box/ldlm", "0.12"),
    ("gcp/us-east4", "gs://box/ldlm?region=us-east4", "0"), ("gcp", "s3://box/ldlm", "0.09"),
    ("azure", "gs://box/ldlm", "0.12"), ("local", "file:///store", "0"), ("gcp", None, "0")])
def test_what_is_fetched_costs_what_both_ends_ask_for_it(infra, store, usd):
    assert received_usd_per_gb(infra, store) == Decimal(usd)


def test_every_start_after_a_loss_fetches_the_checkpoint_too():
    plan = example_plan("vast")
    costs = running_costs(plan.offers[Document.TRAIN], "s3://box/ldlm", plan.sizes, plan.saves, plan.start,
                          Decimal("0.01"))
    checkpoint = Decimal(plan.saves.num_bytes) / 10**9 * Decimal("0.10")
    assert costs.next_start_usd - costs.first_start_usd == checkpoint > 0
    assert costs.controller_usd_per_hour == Decimal("0.01")
    assert running_costs(plan.offers[Document.TRAIN], None, None, None, plan.start, None).save_usd == 0


def test_at_home_nothing_runs_beside():
    plan = example_plan("local")
    costs = running_costs(plan.offers[Document.TRAIN], "file:///store", plan.sizes, plan.saves, plan.start,
                          None)
    assert (costs.held_usd_per_hour, costs.first_start_usd, costs.next_start_usd) == (0, 0, 0)
