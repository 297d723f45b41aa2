"""Every fix of a plan is typed as it is printed, and the plan must then succeed."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typed_plans import ONE_3090, fixed, planned, profile, typed

from launcher.errors import NoOfferError, RecipeError
from launcher.estimate import Done


@pytest.mark.parametrize("words", [
    profile("paper-gpt2", "T4:1"),  # neither memory nor cap nor deadline
    profile("qwen3.6-27b", "L4:1"), profile("qwen3.6-27b", "A100:8"), profile("seed-27b", "H200:1"),
    profile("qwen3.6-35b-a3b", "T4:1"), profile("qwen3.6-35b-a3b", "T4:1", "train.global_batch_size=500"),
    profile("paper-gpt2", "H100:1", "train.global_batch_size=9000", "train.micro_batch_size=3000"),
    profile("paper-gpt2", "L4:4", "train.global_batch_size=500"),
    profile("paper-gpt2", "L4:8", "train.global_batch_size=3"),
    profile("paper-gpt2", "T4:1", "train.token_encoder.placement=next_gpu"),
    profile("qwen3.6-27b", "A100:1", "train.token_encoder.placement=gpu"),
    # A GPU, then what it can promise, then a cap.
    [*profile("qwen3.6-35b-a3b", "T4:1", "train.micro_batch_size=1", "train.token_encoder.placement=host"),
     "--max-cost", "0.5", "--deadline", "90000"],
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
