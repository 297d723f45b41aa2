from decimal import Decimal

import pytest
from launch_examples import NOW, TWO_CORES, TWO_GPUS, example_plan, example_recipe

from launcher.errors import NoOfferError
from launcher.offers import Gpu, Machine, Offer, local_offer, parse_gpus, probe_machine
from trainer.contract import Document


def offer_of(*overrides: str, machine: Machine = TWO_CORES) -> Offer:
    return local_offer(example_recipe(*overrides).hardware.train[0], machine, NOW)


def test_this_machine_is_offered_at_the_simulated_price():
    offer = offer_of()
    assert offer.label == "2 CPU cores here"
    assert offer.price_usd_per_hour == Decimal("0.5")
    assert offer.on_demand_usd_per_hour == Decimal("1.2")
    assert offer.price_is_simulated
    assert offer.ranks_per_node(1) == offer.ranks_per_node(2) == 2
    assert (offer.gpu_memory_gib, offer.host_memory_gib) == (None, 24.0)


def test_ranks_never_outnumber_the_cores():
    assert offer_of("hardware.train.0.cpu_ranks=8").label == "2 CPU cores here"
    assert offer_of(machine=Machine(num_cores=1, memory_gib=1.0)).label == "1 CPU core here"


def test_one_gpu_is_taken_unless_more_are_asked_for():
    assert offer_of(machine=TWO_GPUS).label == "H100:1 here"
    assert offer_of("hardware.train.0.gpu=H100:2", machine=TWO_GPUS).ranks_per_node(1) == 2
    assert offer_of("hardware.train.0.gpu=H100:2", machine=TWO_GPUS).ranks_per_node(2) == 1
    more = offer_of("hardware.train.0.gpu=H100:4", machine=TWO_GPUS)
    assert (more.lacks, more.num_gpus) == ("this machine has 2 H100, not 4", 4)
    other = offer_of("hardware.train.0.gpu=L4:1", machine=TWO_GPUS)
    assert other.lacks == "this machine has no L4 (it has H100)"


def test_memory_of_a_card_is_never_made_up():
    for name, change in (("RTX590", "gpu=RTX5090:1"), ("FOO", "gpu_memory_gib=24")):
        fix = f"hardware.train.0.{change}"
        asked = f"hardware.train.0.gpu={name}:1"
        with pytest.raises(NoOfferError, match=f"{name} is neither here nor a GPU whose") as caught:
            example_plan("local", asked)
        assert caught.value.fix.startswith(f"add --set {fix} (or ")
        assert example_plan("local", asked, fix).offers[Document.TRAIN].gpu_memory_gib > 20
    told = offer_of("hardware.train.0.gpu=FOO:1", "hardware.train.0.gpu_memory_gib=20")
    assert told.gpu_memory_gib == 20


@pytest.mark.parametrize(("driver_name", "sky_name"), [
    ("NVIDIA GeForce RTX 5090", "RTX5090"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
    ("NVIDIA A100-SXM4-40GB", "A100"), ("NVIDIA A100 80GB PCIe", "A100-80GB"),
    ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"),
    ("Tesla T4", "T4"), ("NVIDIA L4", "L4"), ("NVIDIA GeForce RTX 4070 Ti", "RTX4070Ti"),
])
def test_gpus_get_skypilots_names(driver_name, sky_name):
    assert Gpu(name=driver_name, memory_gib=1.0, driver="570").sky_name == sky_name


def test_odd_lines_of_the_driver_are_passed_over():
    assert parse_gpus("No devices were found\n") == ()
    assert parse_gpus("NVIDIA L4, 23034, 570.1\nNVIDIA L4, [N/A], 570.1\n") == (
        Gpu(name="NVIDIA L4", memory_gib=22.5, driver="570.1"),)


def test_this_machine_can_be_probed():
    machine = probe_machine()
    assert machine.num_cores >= 1
    assert machine.memory_gib > 0


def test_labels_say_how_the_machine_is_rented():
    plans = {infra: example_plan(infra).offers[Document.TRAIN].label
             for infra in ("vast", "azure")}
    assert plans == {"vast": "RTX5090:1 on vast (interruptible)", "azure": "A100-80GB:1 on azure (spot)"}
    big = example_plan("gcp/us-east5", "train.global_batch_size=64")
    assert big.offers[Document.TRAIN].label == "2x H100:8 on gcp/us-east5 (on-demand)"
