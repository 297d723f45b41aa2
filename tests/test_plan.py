import json
import re
from datetime import timedelta
from decimal import Decimal

import pytest
from launch_examples import NOW, TWO_GPUS, example_plan, example_recipe, example_task
from typed_plans import planned

from launcher.errors import NoOfferError, RecipeError
from launcher.estimate import Done
from launcher.offers import Machine
from launcher.past_limits import past_limit
from launcher.plan import Plan
from launcher.recipe import list_recipes, load_recipe
from launcher.run_weights import RunWeights
from launcher.speed import MeasuredSpeed, config_fingerprint
from trainer.contract import Document


def measured(run_id: str, tokens_per_s: float, hardware: str = "2 CPU cores",
             **changes: str) -> MeasuredSpeed:
    config = example_recipe(*(f"train.{key}={value}" for key, value in changes.items())).train
    return MeasuredSpeed(run_id, hardware, config_fingerprint(config), tokens_per_s)


def test_batch_arithmetic_follows_the_ranks():
    here = example_plan()
    assert (here.ranks_per_node, here.world_size, here.grad_accum_steps) == (2, 2, 1)
    assert here.tokens == 400 * 8 * 64
    two_nodes = example_plan("gcp/us-east5", "train.global_batch_size=128")
    assert (two_nodes.ranks_per_node, two_nodes.world_size, two_nodes.grad_accum_steps) == (8, 16, 2)


def test_the_price_of_an_offer_is_of_all_its_nodes_in_plan_cap_and_task():
    """At $100 an hour for two nodes: by its hours, and not by its nodes."""
    sets = ("train.global_batch_size=128", "hardware.train.4.price_usd_per_hour=100",
            "limits.max_cost_usd=99",
            "hardware.bench=[{infra: vast, gpu: 'RTX5090:1', bid_usd_per_hour: 0.6}]")
    plan = example_plan("gcp/us-east5", *sets)
    assert plan.offers[Document.TRAIN].num_nodes == 2
    for part in plan.parts[:2]:  # what follows is not of the machines alone
        assert float(part.usd.mid) == pytest.approx(float(part.hours.mid) * 100, abs=1e-3)
    task = example_task("gcp/us-east5", *sets).document(Document.TRAIN)
    assert (task["num_nodes"], task["envs"]["LDLM_PRICE_USD_PER_HOUR"]) == (2, "100")


@pytest.mark.parametrize("done", [None, Done(step=400, spent_usd=Decimal("0.10"), has_trained=True)])
def test_a_benchmark_that_may_lose_its_machine_costs_more_and_ends_later(done):
    """At one price, as a bid and on demand; its hour bounds both."""
    bid, rented = (example_plan(
        "vast", "limits.max_cost_usd=99", f"hardware.bench=[{{infra: vast, gpu: 'RTX5090:1', {key}: 9.6}}]",
        done=done) for key in ("bid_usd_per_hour", "price_usd_per_hour"))
    assert rented.odds.expected_usd < bid.odds.expected_usd < rented.odds.expected_usd * 2
    assert rented.hours.high < bid.hours.high < rented.hours.high * 2
    assert bid.only_benchmark == rented.only_benchmark == bool(done)


def test_a_batch_that_does_not_divide_names_line_and_number():
    with pytest.raises(RecipeError) as caught:
        example_plan("gcp/us-east5")
    assert "train.global_batch_size is 8, but 16 ranks with micro_batch_size 4" in str(caught.value)
    assert caught.value.place.endswith("example-recipe.yaml:6")
    assert caught.value.fix == "add --set train.global_batch_size=64 (any multiple of 64 works)"


def test_a_guess_says_that_it_is_one_and_is_wide():
    plan = example_plan()
    assert plan.speed_source.startswith("model by FLOPs: ")
    training = plan.parts[1].hours
    assert float(training.mid) == pytest.approx(plan.tokens / plan.tokens_per_s / 3600, rel=1e-3)
    assert float(training.high / training.low) == pytest.approx(4.0, rel=0.02)


def test_a_measured_speed_replaces_the_guess():
    plan = example_plan(history=(measured("a", 100.0), measured("b", 300.0), measured("c", 200.0)))
    assert plan.tokens_per_s == 200.0
    assert plan.speed_source == "measured in 3 runs, last c"
    assert float(plan.parts[1].hours.mid) == pytest.approx(400 * 8 * 64 / 200 / 3600, rel=1e-4)
    assert example_plan(history=(measured("a", 50.0),)).speed_source == "measured in run a"


@pytest.mark.parametrize("other", [
    measured("a", 1.0, hardware="RTX5090:1"), measured("a", 1.0, micro_batch_size="2"),
    measured("a", 1.0, precision="bf16"),
])
def test_speeds_of_other_hardware_or_configs_do_not_count(other):
    assert example_plan(history=(other,)).speed_source.startswith("model by FLOPs: ")


def test_an_encoder_that_multiplies_in_fp8_and_a_tried_micro_batch_change_it():
    fp8 = ("train.token_encoder.weights=fp8",)
    told = [config_fingerprint(load_recipe("qwen3.6-27b", sets).train) for sets in (
        fp8, (*fp8, "train.token_encoder.products=fp8"), (*fp8, "train.micro_batch_size=auto"))]
    assert len(set(told)) == 3


def test_steps_and_seed_do_not_change_the_fingerprint():
    first, other = example_recipe().train, example_recipe("train.steps=9", "train.seed=5").train
    assert config_fingerprint(first) == config_fingerprint(other)


def test_compiled_blocks_have_speeds_of_their_own():
    compiled = example_recipe("train.compile=true").train
    assert config_fingerprint(compiled) != config_fingerprint(example_recipe().train)


def test_the_parts_add_up_to_the_whole():
    plan = example_plan()
    assert [part.name for part in plan.parts] == [
        "set-up", "training", "evaluating and saving", "disk, network, store", "benchmark"]
    # Middles of what errs by itself: of their sum it is near the sum, and its ends are nearer than theirs.
    assert float(plan.hours.mid) == pytest.approx(float(sum(part.hours.mid for part in plan.parts)), rel=0.1)
    assert float(plan.usd.mid) == pytest.approx(float(sum(part.usd.mid for part in plan.parts)), rel=0.1)
    assert sum(part.usd.low for part in plan.parts) < plan.usd.low < plan.usd.mid < plan.usd.high < sum(
        part.usd.high for part in plan.parts)
    assert plan.bench_reserve_usd == plan.parts[-1].usd.high


def test_the_benchmark_never_gets_more_than_half_of_the_cap():
    plan = example_plan("vast", "hardware.bench.1.bid_usd_per_hour=1.8", "limits.max_cost_usd=1.0")
    assert plan.bench_reserve_usd == Decimal("0.5")


def test_a_cloud_without_a_price_has_no_dollars():
    plan = example_plan("azure")
    assert plan.usd is None
    assert plan.warnings[0] == (
        "the price of A100-80GB:1 on azure (spot) is not known, so neither are the dollars")


def test_an_estimate_over_the_cap_is_refused_with_what_would_do():
    with pytest.raises(NoOfferError) as caught:
        example_plan(None, "limits.max_cost_usd=0.01")
    assert "limits.max_cost_usd is $0.01" in caught.value.problem
    assert caught.value.place == "--set limits.max_cost_usd=0.01"
    least, p90 = re.fullmatch(r"add --max-cost ([\d.]+) \(--max-cost ([\d.]+) for the p90\)",
                              caught.value.fix).groups()
    assert example_plan(None, f"limits.max_cost_usd={p90}").warnings == example_plan().warnings
    (told,) = set(example_plan(None, f"limits.max_cost_usd={least}").warnings) - set(example_plan().warnings)
    assert told.startswith(f"may stop at its cap of ${least}")


def test_no_more_is_missing_than_the_run_costs_and_one_limit_is_named_once():
    plan = example_plan()
    with pytest.raises(NoOfferError) as caught:
        example_plan(None, "limits.max_cost_usd=0.001")
    costs, missing = (Decimal(text) for text in re.findall(
        r"cost ~\$([\d.]+) .* is \$0\.001, \$([\d.]+) too little", caught.value.problem)[0])
    assert abs(costs - plan.usd.mid) < Decimal("0.0001") and missing == costs - Decimal("0.001")
    told = past_limit(example_recipe(), "max_cost_usd", "", Decimal("0.031"), Decimal("0.039"))
    assert (told["changes"], told["note"]) == ({"limits.max_cost_usd": Decimal("0.04")}, "")


def test_no_guess_is_advised_where_the_planned_speed_was_measured():
    slow, own = example_plan().tokens_per_s / 3, "limits.max_cost_usd=0.01"
    with pytest.raises(NoOfferError) as caught:
        example_plan(None, own, history=(measured("a", slow),))
    assert caught.value.fix.startswith("add --max-cost ")
    faster = measured("b", slow * 3, zero_stage="2")  # which is no guess any more
    with pytest.raises(NoOfferError) as caught:
        example_plan(None, own, history=(measured("a", slow), faster))
    assert caught.value.fix.startswith("add --set train.zero_stage=2 --max-cost ")


def test_a_resumed_run_is_planned_for_what_is_left():
    whole = example_plan()
    half = example_plan(done=Done(step=200, spent_usd=Decimal("0.25"), has_trained=False))
    assert (half.steps, half.done_steps, half.spent_usd) == (400, 200, Decimal("0.25"))
    assert [part.name for part in half.parts[:3]] == [part.name for part in whole.parts[:3]]
    assert float(half.parts[1].hours.mid * 2) == pytest.approx(float(whole.parts[1].hours.mid), rel=1e-3)
    assert half.parts[-1] == whole.parts[-1]
    # Statistics of hidden states are in its checkpoint.
    assert half.parts[0].hours.mid < whole.parts[0].hours.mid
    assert (whole.done_steps, whole.spent_usd) == (0, 0)


def test_what_is_spent_counts_towards_the_cap_and_its_fix():
    whole = example_plan()
    done = Done(step=200, spent_usd=Decimal("0.99"), has_trained=False)
    with pytest.raises(NoOfferError) as caught:
        example_plan(done=done)
    assert caught.value.problem.startswith("this run has spent $0.9900, what is left would cost ~$0.0")
    (enough,) = re.findall(r"--max-cost ([\d.]+) for the p90", caught.value.fix)
    assert caught.value.fix.startswith("add --max-cost 1.0")
    fits = example_plan(None, f"limits.max_cost_usd={enough}", done=done)
    assert fits.warnings == whole.warnings
    tight = example_plan(done=Done(step=200, spent_usd=Decimal("0.985"), has_trained=False))
    told = "may stop at its cap of $1.00: the high estimate is $1.0"
    assert any(warning.startswith(told) for warning in tight.warnings)
    assert tight.bench_reserve_usd <= Decimal("0.015") / 2


def test_after_training_only_the_benchmark_is_planned():
    plan = example_plan(done=Done(step=400, spent_usd=Decimal("0.5"), has_trained=True))
    assert [part.name for part in plan.parts] == ["benchmark"]
    assert plan.done_steps == 400
    assert plan.hours == plan.parts[0].hours


def test_an_estimate_past_the_deadline_is_refused_with_what_would_do():
    with pytest.raises(NoOfferError, match=r"limits.deadline_hours is 0.01") as caught:
        example_plan(None, "limits.deadline_hours=0.01")
    (enough,) = re.findall(r"add --deadline ([\d.]+)", caught.value.fix)
    assert example_plan(None, f"limits.deadline_hours={enough}").deadline > NOW


def test_a_high_estimate_over_a_limit_is_a_warning():
    usd, hours = example_plan().usd, example_plan().hours
    between = example_plan(None, f"limits.max_cost_usd={(usd.mid + usd.high) / 2}",
                           f"limits.deadline_hours={(hours.mid + hours.high) / 2}").warnings
    assert any(warning.startswith("may stop at its cap") for warning in between)
    assert any(warning.startswith("may stop at its deadline") for warning in between)


def test_warnings_keep_the_reader_from_fooling_themselves():
    here = example_plan().warnings
    assert "the price is simulated: nobody sends a bill for this machine" in here
    assert "the benchmark runs on 2 CPU cores here: its figures are not RTX 5090 figures" in here
    rented = example_plan("vast").warnings
    assert rented == (
        "the price is the bid, the most the GPU hour can cost; disk and network come on top, and "
        "count towards the cap",
        "L4:1 on gcp/us-central1 (spot) cannot stand in for RTX5090:1 on vast (interruptible): its price is "
        "not known, so a run that went there could not stop at its cap")


def test_an_encoder_that_is_not_known_comes_first_and_leaves_lower_bounds():
    plan = example_plan("vast", "train.token_encoder.name=owner/new-model")
    assert plan.without_encoder
    assert plan.warnings[0].startswith("the encoder owner/new-model is not known here: whether it fits was ")
    assert plan.speed_source.endswith(", without the encoder")
    assert not example_plan("vast").without_encoder


def test_a_folder_that_only_a_rented_machine_could_have_is_told():
    rented = "hardware.train=[{infra: vast, gpu: 'RTX5090:1', bid_usd_per_hour: 0.4}]"
    recipe = example_recipe(rented, "train.token_encoder.name=/nope")
    plan = example_plan("vast", rented, "train.token_encoder.name=/nope")
    (told,) = RunWeights().warnings(recipe, plan)
    assert told.startswith("/nope is a folder, and there is none of that name here")
    with pytest.raises(RecipeError, match="there is no /nope/config.json"):
        example_plan("local", "train.token_encoder.name=/nope")


def test_a_folder_of_another_family_is_there_and_said_to_be_unknown(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5", "num_layers": 6}')
    change = f"train.token_encoder.name={tmp_path}"
    (told,) = RunWeights().warnings(example_recipe(change), example_plan("vast", change))
    assert told.startswith(f"the size of {tmp_path} is not known from its config.json (model_type: t5); ")
    on_hub = "train.token_encoder.name=owner/new-model"
    (told,) = RunWeights().warnings(example_recipe(on_hub), example_plan("vast", on_hub))
    assert told.startswith("a folder with the config.json of owner/new-model would tell")


def test_the_deadline_counts_from_now():
    assert example_plan().deadline == NOW + timedelta(hours=2)
    assert example_plan(None, "limits.deadline_hours=").deadline is None


def test_a_plan_survives_json():
    plan = example_plan("vast")
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan
    assert plan.model_dump(mode="json")["usd"]["mid"] == str(plan.usd.mid)


def test_a_plan_that_nobody_means_says_what_would_do():
    years = example_plan(None, "train.steps=10000000", "limits={max_cost_usd: 1000000}").warnings[0]
    assert re.fullmatch(
        r"this would take ~[\d,]+ days on 2 CPU cores; what would do: a GPU \(--infra vast\)", years)
    here = example_plan(None, "train.steps=10000000", "limits={max_cost_usd: 1000000}",
                        "hardware.train=[{infra: local}]").warnings[0]
    assert here.endswith("what would do: a GPU (gpu in hardware.train; --infra vast rents one)")
    assert not any("would do" in warning for warning in example_plan().warnings)


@pytest.mark.parametrize(("gpus", "told"), [
    (2, None), (4, None), (3, "1 of 3 GPUs stays idle: a rank takes 2; take H100:2 or H100:4")])
def test_a_gpu_that_would_stay_idle_is_told(gpus, told):
    machine = Machine(num_cores=8, memory_gib=64.0, gpus=TWO_GPUS.gpus * 2)
    card = f"hardware.train.0={{infra: local, gpu: 'H100:{gpus}'}}"
    warnings = example_plan(None, "train.token_encoder.placement=next_gpu", card, machine=machine).warnings
    assert [warning for warning in warnings if "idle" in warning] == ([told] if told else [])


def warm_ups(name: str, *overrides: str) -> list[str]:
    words = [part for item in overrides for part in ("--set", item)]
    return [found for found in planned([name, *words]).warnings if "more than half of the run's" in found]


def test_a_warm_up_that_most_of_a_run_would_pass_in_is_told_with_a_shorter_one():
    (told,) = warm_ups("paper-gpt2", "train.steps=1000")
    assert told.startswith("train.diffusion.encoder_warmup_steps (2,000) and train.optimizer.warmup_steps "
                           "(1,000) are more than half of the run's 1,000 steps; a tenth: ")
    shorter = re.findall(r"--set (\S+)", told)
    assert len(shorter) == 2 and warm_ups("paper-gpt2", "train.steps=1000", *shorter) == []
    (one,) = warm_ups("paper-gpt2", "train.steps=2500")
    assert one.startswith("train.diffusion.encoder_warmup_steps (2,000) is more than half")


def test_no_recipe_has_such_a_warm_up_and_runs_of_minutes_have_it_on_purpose():
    assert [found.name for found in list_recipes() if warm_ups(found.name)] == []
    smoke = load_recipe("smoke").train  # README, Decisions
    assert smoke.diffusion.encoder_warmup_steps > smoke.steps


def test_a_part_of_the_cap_is_kept_for_uploads_that_several_nodes_of_a_cloud_cannot_count() -> None:
    two = ("hardware.train=[{infra: azure, gpu: 'H100:1', num_nodes: 2, price_usd_per_hour: 2}]",)
    vast, azure, many = example_plan("vast"), example_plan("azure"), example_plan("azure", *two)
    assert vast.uncounted_usd == azure.uncounted_usd == 0
    uploads = many.saves.upload_usd * many.hours.high * 3600 / Decimal(str(many.saves.every_s))
    assert 0 < many.uncounted_usd == pytest.approx(min(uploads, many.max_cost_usd / 4), abs=Decimal("0.0001"))
    train = example_task("azure", *two).document(Document.TRAIN)["envs"]
    assert Decimal(train["LDLM_MAX_COST_USD"]) == many.max_cost_usd - many.uncounted_usd
    assert Decimal(json.loads(train["LDLM_LIST_PRICES"])["sent_usd_per_gb"]) == 0
