"""Every fix of a plan is typed as it is printed, and the plan must then succeed."""

import re
import shlex
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_examples import NOW, RECIPE, TWO_CORES

from launcher.errors import NoOfferError, RecipeError
from launcher.offers import Machine, make_offer, parse_gpus
from launcher.plan import Done, Plan, choose, make_plan
from launcher.recipe import load_recipe
from trainer.encoder_shape import encoder_shape

LIMITS = {"--max-cost": "max_cost_usd", "--deadline": "deadline_hours"}
ONE_3090 = Machine(num_cores=16, memory_gib=64.0,
                   gpus=parse_gpus("NVIDIA GeForce RTX 3090, 24576, 570.86"))


def planned(words: list[str], machine: Machine = TWO_CORES, done: Done | None = None) -> Plan:
    """What `ldlm plan` makes of its words, without a store."""
    name, overrides, limits, infra = words[0], [], {}, None
    for option, value in zip(words[1::2], words[2::2], strict=True):
        if option == "--set":
            overrides.append(value)
        elif option == "--infra":
            infra = value
        else:
            limits[LIMITS[option]] = Decimal(value)
    recipe = load_recipe(name, overrides, limits)
    offers = {document: make_offer(candidate, machine, NOW)
              for document, candidate in choose(recipe, infra, machine).items()}
    return make_plan(recipe, encoder_shape(recipe.train.token_encoder.name), offers, (), NOW, "run-1", done)


def typed(fix: str) -> list[str]:
    """The options of a fix: everything from `add` or `use` on, up to a remark."""
    options = re.match(r"(?:add|use) ((?:--[a-z-]+ (?:\"[^\"]*\"|[^ ;,(]+) ?)+)", fix)
    assert options, fix
    return shlex.split(options[1])


def fixed(words: list[str], machine: Machine = TWO_CORES) -> Plan | None:
    """The plan after one fix; None where none was needed."""
    try:
        planned(words, machine)
    except (NoOfferError, RecipeError) as error:
        return planned([*words, *typed(error.fix or "")], machine)
    return None


def profile(name: str, gpu: str, *more: str) -> list[str]:
    """A profile on one rented card, under the example's cap of a dollar and deadline of two hours."""
    train = (f"train={{profile: {name}, steps: 1000, data: {{source: 'shards:x'}}, "
             "checkpoint: {every_steps: 10}}")
    card = f"hardware.train=[{{infra: vast, gpu: '{gpu}', bid_usd_per_hour: 1.5}}]"
    return [str(RECIPE), "--infra", "vast", "--set", train, "--set", card,
            *(part for item in more for part in ("--set", item))]


@pytest.mark.parametrize("words", [
    profile("paper-gpt2", "T4:1"),  # neither memory nor cap nor deadline
    profile("qwen3.6-27b", "L4:1"), profile("qwen3.6-27b", "A100:8"), profile("seed-27b", "H200:1"),
    profile("qwen3.6-35b-a3b", "T4:1"), profile("qwen3.6-35b-a3b", "T4:1", "train.global_batch_size=500"),
    profile("paper-gpt2", "H100:1", "train.global_batch_size=9000", "train.micro_batch_size=3000"),
    profile("paper-gpt2", "L4:4", "train.global_batch_size=500"),
    profile("paper-gpt2", "L4:8", "train.global_batch_size=3"),
    profile("paper-gpt2", "T4:1", "train.token_encoder.placement=next_gpu"),
    profile("qwen3.6-27b", "A100:1", "train.token_encoder.placement=gpu"),
    ["paper-gpt2", "--max-cost", "0.01", "--deadline", "0.01"], ["smoke", "--max-cost", "0.001"],
    ["paper-gpt2", "--infra", "local"], ["home-5090", "--infra", "vast"], ["smoke", "--infra", "aws"],
])
def test_one_fix_leads_to_a_plan(words):
    assert fixed(words) is not None


def test_one_fix_leads_to_a_plan_on_the_users_own_card_too():
    own = ["home-3090", "--set", "train.profile=paper-gpt2", "--set", "train.micro_batch_size=64"]
    assert fixed(own, ONE_3090) is not None


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(["paper-gpt2", "qwen3.5-0.8b", "qwen3.6-35b-a3b", "seed-35b-a3b"]),
       gpu=st.sampled_from(["T4", "L4", "RTX4090", "A100", "H200"]), number=st.sampled_from([1, 2, 3, 8]),
       global_batch=st.integers(1, 700), micro_batch=st.integers(1, 64),
       placement=st.sampled_from(["auto", "gpu", "next_gpu", "sharded", "host"]),
       cap=st.sampled_from(["0.5", "5000"]))
def test_one_fix_leads_to_a_plan_or_says_that_no_change_of_a_value_does(
        name, gpu, number, global_batch, micro_batch, placement, cap):
    words = profile(name, f"{gpu}:{number}", f"train.global_batch_size={global_batch}",
                    f"train.micro_batch_size={micro_batch}", f"train.token_encoder.placement={placement}")
    words += ["--max-cost", cap, "--deadline", "90000"]
    try:
        planned(words)
    except (NoOfferError, RecipeError) as error:
        if "take more GPUs (gpu in hardware.train), or a smaller profile" in (error.fix or ""):
            return
        planned([*words, *typed(error.fix or "")])


def test_a_run_keeps_its_recipe_so_a_resume_is_sent_elsewhere():
    done = Done(step=10, spent_usd=Decimal(0), has_trained=False)
    with pytest.raises(NoOfferError) as caught:
        planned(profile("seed-27b", "H200:1"), done=done)
    assert caught.value.fix == "a run keeps its recipe: resume it on other hardware, with --infra"
    with pytest.raises(NoOfferError) as caught:
        planned(["paper-gpt2", "--max-cost", "0.01"], done=done)
    assert caught.value.fix.startswith("add --max-cost ")
