"""Which candidates of a recipe one task holds, in which order, and what is said of those that it does not."""

import json
import re
from decimal import Decimal

import pytest
from launch_examples import TWO_CORES, TWO_GPUS, example_plan, example_recipe, example_task
from typed_plans import planned, profile

from launcher.candidates import choose
from launcher.errors import NoOfferError
from launcher.estimate import Done
from launcher.lint import lint
from launcher.recorded import RecordedPlan
from trainer.contract import Document

TRAIN, BENCH = Document.TRAIN, Document.BENCH
AZURE = "{infra: azure, gpu: 'H100:1', spot: true, price_usd_per_hour: 1.55}"
GCP = "{infra: gcp, gpu: 'A100-80GB:1', spot: true, price_usd_per_hour: 2.76}"
VAST = "{infra: vast, gpu: 'H100:1', bid_usd_per_hour: 1.60}"


def plan_of(*candidates: str, infra: str | None = None, bench: str = VAST, **changes: str):
    sets = [f"hardware.train=[{', '.join(candidates)}]", f"hardware.bench=[{bench}]", "limits.max_cost_usd=9",
            *(f"{key.replace('__', '.')}={value}" for key, value in changes.items())]
    return example_plan(infra, *sets)


def list_prices(disk: str) -> str:
    """Of Azure in any region: of 100 GiB half more than $19.71 a month of 730 hours, of 200 than $38.02."""
    return json.dumps({"disk_usd_per_hour": disk, "sent_usd_per_gb": "0.18100000",
                       "address_usd_per_hour": "0.00500000"})


def labels(plan, document=TRAIN) -> list[str]:
    return [offer.label for offer in plan.candidates(document)]


def left_out(plan) -> list[str]:
    return [warning for warning in plan.warnings if "cannot stand in" in warning]


# -- choosing


def test_a_run_stays_here_unless_told_otherwise():
    chosen = choose(example_recipe(), None, TWO_CORES)
    assert chosen[Document.TRAIN][0].infra == "local"
    assert chosen[Document.BENCH] == chosen[Document.TRAIN]


@pytest.mark.parametrize(("infra", "train", "bench"), [
    ("vast", "vast", "vast"), ("azure", "azure", "gcp/us-central1"),
    ("gcp", "gcp/us-central1", "gcp/us-central1"),
    ("gcp/us-east5", "gcp/us-east5", "gcp/us-central1"), ("slurm", "slurm/ldlm", "gcp/us-central1"),
])
def test_infra_picks_the_candidates_of_that_cloud_or_region(infra, train, bench):
    chosen = choose(example_recipe(), infra, TWO_CORES)
    assert (chosen[Document.TRAIN][0].infra, chosen[Document.BENCH][0].infra) == (train, bench)


@pytest.mark.parametrize("infra", ["aws", "gc", "gcp/us-west1", "local/x"])
def test_an_infra_that_the_recipe_lacks_is_no_offer_and_names_what_it_has(infra):
    with pytest.raises(NoOfferError) as caught:
        choose(example_recipe(), infra, TWO_CORES)
    assert f"recipe example has no hardware on {infra}" in str(caught.value)
    assert caught.value.fix.startswith("use --infra local (the recipe also has vast, azure, gcp/us-central1")
    assert caught.value.place.endswith("example-recipe.yaml:16")


def test_a_region_narrows_a_candidate_that_names_none():
    assert choose(example_recipe(), "azure/westus", TWO_CORES)[Document.TRAIN][0].infra == "azure/westus"


def test_a_recipe_without_a_local_candidate_takes_its_first():
    recipe = example_recipe("hardware.train=[{infra: azure, gpu: 'L4:1'}, {infra: vast, gpu: 'L4:1'}]")
    assert choose(recipe, None, TWO_CORES)[Document.TRAIN][0].infra == "azure"


def test_a_local_candidate_whose_gpus_are_not_here_is_passed_over():
    recipe = example_recipe("hardware.train.0={infra: local, gpu: 'H100:2'}")
    assert choose(recipe, None, TWO_CORES)[Document.TRAIN][0].infra == "vast"
    assert choose(recipe, None, TWO_GPUS)[Document.TRAIN][0].infra == "local"


def test_a_local_card_that_is_not_here_is_planned_for_when_asked_for_or_when_there_is_nothing_else():
    recipe = example_recipe("hardware.train.0={infra: local, gpu: 'H100:2'}")
    assert choose(recipe, "local", TWO_CORES)[Document.TRAIN][0].gpu == "H100:2"
    only = example_recipe("hardware.train=[{infra: local, gpu: 'RTX5090:1'}]")
    plan = example_plan(None, "hardware.train=[{infra: local, gpu: 'RTX5090:1'}]")
    assert choose(only, None, TWO_CORES)[Document.BENCH][0].infra == "local"
    assert plan.offers[Document.TRAIN].label == "RTX5090:1 on a machine of yours"
    assert plan.offers[Document.TRAIN].gpu_memory_gib == 31.3
    assert plan.offers[Document.TRAIN].host_memory_gib is None
    assert plan.warnings[0].startswith("this machine has no RTX5090 (nor any other GPU); this plan is for")


def test_a_local_card_that_is_here_comes_before_one_that_is_not():
    cards = "{infra: local, gpu: 'RTX5090:1'}, {infra: local, gpu: 'H100:1'}"
    recipe = example_recipe(f"hardware.train=[{cards}]")
    assert choose(recipe, None, TWO_GPUS)[Document.TRAIN][0].gpu == "H100:1"
    assert choose(recipe, "local", TWO_GPUS)[Document.TRAIN][0].gpu == "H100:1"


def test_a_rented_run_cannot_be_benchmarked_here():
    recipe = example_recipe("hardware.bench=[{infra: local}]")
    with pytest.raises(NoOfferError, match="a rented run cannot reach") as caught:
        choose(recipe, "vast", TWO_CORES)
    (typed,) = re.findall(r'--set "(.*)"', caught.value.fix)
    mended = example_recipe("hardware.bench=[{infra: local}]", typed)
    assert choose(mended, "vast", TWO_CORES)[Document.BENCH][0].gpu == "RTX5090:1"


# -- which, and in which order


def test_a_run_may_go_to_all_that_its_recipe_has_in_the_recipe_s_order():
    plan = plan_of(GCP, VAST, AZURE)
    assert labels(plan) == ["A100-80GB:1 on gcp (spot)", "H100:1 on vast (interruptible)",
                            "H100:1 on azure (spot)"]
    assert left_out(plan) == []


def test_infra_keeps_training_in_its_place_and_leaves_the_benchmark_everywhere():
    other = "{infra: gcp/us-east5, gpu: 'H100:1', spot: true, price_usd_per_hour: 6.33}"
    plan = plan_of(VAST, other, AZURE, GCP, infra="gcp", bench=f"{AZURE}, {VAST}")
    assert labels(plan) == ["H100:1 on gcp/us-east5 (spot)", "A100-80GB:1 on gcp (spot)"]
    assert labels(plan, BENCH) == ["H100:1 on azure (spot)", "H100:1 on vast (interruptible)"]
    narrow = plan_of(GCP, other, infra="gcp/us-east5")
    assert labels(narrow) == ["A100-80GB:1 on gcp/us-east5 (spot)", "H100:1 on gcp/us-east5 (spot)"]


def test_a_cluster_of_one_s_own_that_trains_comes_first_for_the_benchmark_too():
    own = "{infra: slurm/ldlm, gpu: 'H100:1', price_usd_per_hour: 0}"
    plan = plan_of(AZURE, own, infra="slurm", bench=f"{VAST}, {own}")
    assert labels(plan, BENCH) == ["H100:1 on slurm/ldlm (on-demand)", "H100:1 on vast (interruptible)"]
    on_files = plan_of(AZURE, own, infra="slurm", bench=f"{VAST}, {own}", store="file:///shared")
    assert labels(on_files, BENCH) == ["H100:1 on slurm/ldlm (on-demand)"]
    assert left_out(on_files)[0].endswith("the store is a folder, which a rented machine does not reach")


def test_this_machine_is_never_mixed_with_rented_ones():
    here = "{infra: local, cpu_ranks: 2}"
    assert labels(plan_of(VAST, here, AZURE)) == ["2 CPU cores here"]
    assert labels(plan_of(VAST, here, AZURE), BENCH) == ["2 CPU cores here"]
    away = choose(example_recipe(f"hardware.train=[{VAST}, {here}]"), "vast", TWO_CORES)
    assert [found.infra for found in away[TRAIN]] == ["vast"]
    elsewhere = choose(example_recipe(f"hardware.train=[{VAST}, {{infra: local, gpu: 'H100:1'}}]"), None,
                       TWO_CORES)
    assert [found.infra for found in elsewhere[TRAIN]] == ["vast"]


def test_what_is_named_twice_is_tried_once():
    assert len(plan_of(GCP, GCP).candidates(TRAIN)) == 1


# -- what cannot be of one task, and why


@pytest.mark.parametrize(("other", "reason"), [
    ("{infra: azure, gpu: 'H100:1', num_nodes: 2, price_usd_per_hour: 3}",
     "a task has one number of nodes, here 1"),
    ("{infra: azure, gpu: 'H100:2', price_usd_per_hour: 3}", "a run keeps its number of GPUs, 1 a node"),
    ("{infra: slurm, cpu_ranks: 1, price_usd_per_hour: 0}", "a run keeps its number of GPUs, 1 a node"),
    ("{infra: azure, gpu: 'H100:1', spot: true}",
     "its price is not known, so a run that went there could not stop at its cap"),
    ("{infra: vast, gpu: 'H100:1', bid_usd_per_hour: 1.70}",
     "a task has one price and one kind of machine on vast"),
    ("{infra: vast, gpu: 'RTX5090:1', bid_usd_per_hour: 1.60}",
     "a task has one price and one kind of machine on vast"),
    ("{infra: vast, gpu: 'H100:1', bid_usd_per_hour: 1.60, image: 'nvidia/cuda:13.1.0-devel-ubuntu24.04'}",
     "a task has one price and one kind of machine on vast"),
    ("{infra: vast, gpu: 'RTX5090:1', price_usd_per_hour: 1.60}",
     "a task has one price and one kind of machine on vast"),
])
def test_a_candidate_that_differs_in_what_a_task_has_once_is_left_out_with_the_reason(other, reason):
    plan = plan_of(VAST, other, GCP)
    assert labels(plan) == ["H100:1 on vast (interruptible)", "A100-80GB:1 on gcp (spot)"]
    (told,) = left_out(plan)
    assert told.endswith(f" cannot stand in for H100:1 on vast (interruptible): {reason}")


def test_vast_is_rented_on_demand_beside_a_bid_only_where_a_deadline_decides_between_them():
    rent = VAST.replace("bid_usd_per_hour: 1.60", "price_usd_per_hour: 2.90")
    assert labels(plan_of(VAST, rent)) == ["H100:1 on vast (interruptible)", "H100:1 on vast (on-demand)"]
    without = plan_of(VAST, rent, limits__deadline_hours="null")
    assert labels(without) == ["H100:1 on vast (interruptible)"]
    (told,) = left_out(without)
    assert told.endswith("without --deadline a task on vast either bids or rents on demand")


def test_two_bids_are_never_of_one_task_wherever_they_stand():
    plan = plan_of(GCP, VAST, VAST.replace("1.60", "1.70"))
    assert labels(plan) == ["A100-80GB:1 on gcp (spot)", "H100:1 on vast (interruptible)"]
    regions = (VAST.replace("vast", f"'vast/{region}'") for region in ("Texas, US, NA", "Spain, ES, EU"))
    assert len(plan_of(*regions).candidates(TRAIN)) == 2


def test_ranks_without_a_gpu_stay_as_many():
    one = "{infra: slurm/a, cpu_ranks: 1, price_usd_per_hour: 0}"
    (told,) = left_out(plan_of(one, one.replace("cpu_ranks: 1", "cpu_ranks: 2")))
    assert told.endswith("a run keeps its number of ranks, 1 a node, without a GPU")


def test_a_candidate_whose_memory_does_not_hold_the_run_is_left_out_with_its_figures():
    """The encoder lies where it lies on the first: on an H200 its 60.5 GiB are on the GPU."""
    words = profile("qwen3.6-35b-a3b", "H200:1", "limits.max_cost_usd=999", "limits.deadline_hours=",
                    "hardware.train=[{infra: azure, gpu: 'H200:1', price_usd_per_hour: 4}, "
                    "{infra: gcp, gpu: 'H100:1', price_usd_per_hour: 3}]")
    words[words.index("vast")] = "azure"
    del words[1:3]
    plan = planned(words)
    assert labels(plan) == ["H200:1 on azure (on-demand)"]
    (told,) = left_out(plan)
    assert "H100:1 on gcp (on-demand) cannot stand in for H200:1 on azure (on-demand)" in told
    assert "with the encoder on the GPU it needs" in told and "of each H100, which has 79.1" in told


def test_candidates_that_are_left_out_for_one_reason_share_a_line():
    (told,) = left_out(plan_of(VAST, AZURE.replace("'H100:1'", "'H100:2'"), GCP.replace(":1'", ":4'")))
    assert told.startswith("H100:2 on azure (spot), A100-80GB:4 on gcp (spot) cannot stand in for H100:1 on ")


# -- what a plan makes of them


def test_hours_and_dollars_are_of_the_first_and_a_dearer_one_is_told_with_its_price():
    alone, together = plan_of(AZURE), plan_of(AZURE, GCP)
    assert (alone.hours, alone.usd, alone.parts) == (together.hours, together.usd, together.parts)
    more = [warning for warning in together.warnings if warning not in alone.warnings]
    assert more == ["A100-80GB:1 on gcp (spot) costs $2.76 an hour, and the plan counts the $1.55 of H100:1 "
                    "on azure (spot): there the cap comes sooner"]
    assert not [warning for warning in plan_of(GCP, AZURE).warnings if "comes sooner" in warning]


def test_what_is_kept_for_the_benchmark_is_enough_for_the_dearest():
    cheap = "{infra: vast, gpu: 'RTX5090:1', bid_usd_per_hour: 0.10}"
    dear = "{infra: gcp, gpu: 'RTXPRO6000:1', spot: true, price_usd_per_hour: 0.30}"
    alone, together = plan_of(AZURE, bench=cheap), plan_of(AZURE, bench=f"{cheap}, {dear}")
    assert float(together.bench_reserve_usd) == pytest.approx(3 * float(alone.bench_reserve_usd), abs=0.0003)
    assert Decimal("0.12") < together.bench_reserve_usd < Decimal("0.14")
    assert together.warnings[-1] == (
        "on RTXPRO6000:1 on gcp (spot) the benchmark's figures are not RTX 5090 figures")


def test_the_price_that_the_recipe_says_of_a_cloud_is_not_simulated_and_told_as_its_word():
    plan = plan_of(AZURE)
    assert not plan.offers[TRAIN].price_is_simulated
    told = ("the price of H100:1 on azure (spot) is the recipe's word: no region is taken that is listed "
            "above it")
    assert told in plan.warnings


def test_the_record_covers_the_others():
    alone, together = plan_of(AZURE), plan_of(AZURE, VAST)
    recorded = RecordedPlan.model_validate_json(together.model_dump_json())
    assert recorded.clouds == together.clouds == {"azure", "vast"}
    older = json.loads(alone.model_dump_json())
    del older["others"]
    assert RecordedPlan.model_validate(older).clouds == {"azure", "vast"}


def test_a_run_that_has_trained_says_nothing_of_other_machines_to_train_on():
    done = Done(step=400, spent_usd=Decimal("0.10"), has_trained=True)
    plan = example_plan(None, f"hardware.train=[{AZURE}, {GCP}]", f"hardware.bench=[{VAST}, {AZURE}]",
                        done=done)
    assert labels(plan) == ["H100:1 on azure (spot)"]
    assert labels(plan, BENCH) == ["H100:1 on azure (spot)", "H100:1 on vast (interruptible)"]


# -- what the task says


@pytest.mark.parametrize(("document", "other"), [
    (TRAIN, "{infra: gcp, gpu: 'H100:1', price_usd_per_hour: 900}"),
    (BENCH, "{infra: gcp, gpu: 'H100:1', price_usd_per_hour: 90}"),
])
def test_a_place_where_the_run_could_not_stay_within_its_cap_is_left_out(document, other):
    places = {"bench": f"{VAST}, {other}"} if document is BENCH else {}
    plan = plan_of(VAST, *([other] if document is TRAIN else []), **places)
    assert labels(plan, document) == ["H100:1 on vast (interruptible)"]
    (said,) = left_out(plan)
    assert "H100:1 on gcp (on-demand)" in said and "over its cap" in said
    assert plan.bench_reserve_usd == plan_of(VAST).bench_reserve_usd


def test_on_azure_image_and_torch_are_chosen_together_or_the_driver_is_in_doubt():
    def doubts(*more: str) -> list[str]:
        azure = ", ".join(["{infra: azure, gpu: 'H100:1', spot: true, price_usd_per_hour: 1.55", *more]) + "}"
        return [line for line in plan_of(azure).warnings if "driver" in line]

    (doubt,) = doubts()
    assert "torch's CUDA 13.0 takes driver 580" in doubt
    assert "image microsoft-dsvm:ubuntu-hpc:2404:latest (never run), or a torch_index of CUDA 12" in doubt
    assert doubts("image: 'microsoft-dsvm:ubuntu-hpc:2404:latest'") == []
    assert doubts("torch_index: 'https://wheels.example/whl/cu126'") == []


def test_a_task_says_once_what_its_candidates_share_and_lints_clean():
    on_demand = "{infra: azure, gpu: 'H100:1', price_usd_per_hour: 6.98, disk_gib: 200}"
    task = example_task(None, f"hardware.train=[{AZURE}, {VAST}, {on_demand}]", f"hardware.bench=[{VAST}]",
                        "limits.max_cost_usd=900")
    train = task.document(TRAIN)
    image = "docker:vastai/base-image:cuda-12.8.1-cudnn-devel-ubuntu24.04-py312"
    assert {key: value for key, value in train["resources"].items() if key != "job_recovery"} == {
        "accelerators": "H100:1",
        "ordered": [{"infra": "azure", "use_spot": True, "max_hourly_cost": 1.55, "disk_size": 100},
                    {"infra": "vast", "image_id": image, "disk_size": 100},
                    {"infra": "azure", "max_hourly_cost": 6.98, "disk_size": 200}]}
    assert train["config"]["vast"]["create_instance_kwargs"]["bid_price"] == 1.6
    assert json.loads(train["envs"]["LDLM_OFFERS"]) == [
        {"infra": "azure", "spot": True, "envs": {}},
        {"infra": "vast", "spot": True, "envs": {"LDLM_PRICE_USD_PER_HOUR": "1.6",
                                                 "LDLM_UPLOAD_USD_PER_GB": "0.0103",
                                                 "LDLM_HOURS_TO_LOSS": "7",
                                                 "LDLM_OFFER": "H100:1 on vast (interruptible)",
                                                 "LDLM_LIST_PRICES": ""}},
        {"infra": "azure", "spot": False, "envs": {"LDLM_PRICE_USD_PER_HOUR": "6.98",
                                                   "LDLM_HOURS_TO_LOSS": "500",
                                                   "LDLM_OFFER": "H100:1 on azure (on-demand)",
                                                   "LDLM_LIST_PRICES": list_prices(disk="0.07812329")}}]
    assert train["envs"]["LDLM_LIST_PRICES"] == list_prices(disk="0.04050000")
    assert train["envs"]["LDLM_PRICE_USD_PER_HOUR"] == "1.55"
    assert train["envs"]["LDLM_GPU"] == "H100:1"  # by which setup installs torch for GPUs
    assert lint(task) == []
    assert "LDLM_OFFERS" not in task.document(BENCH)["envs"]
