"""What is advised where a run does not fit or is over its cap: typed as printed, priced by an own count."""

import re
from collections.abc import Iterator

import pytest
from typed_plans import ONE_3090, planned, profile, typed

from launcher.errors import NoOfferError, RecipeError
from launcher.gpu_kinds import ADVISED, GPU_KINDS
from launcher.offers import Machine, parse_gpus
from launcher.plan import Plan
from launcher.recipe import list_recipes, load_recipe

OF_8 = ("--set", "train.micro_batch_size=8")
FREE = ["--max-cost", "1000000", "--deadline", "1000000"]
# Dollars an hour and GiB, written down beside this test; more than one GPU costs as many times as much.
MARKET = {"L4": (0.25, 22), "A10G": (0.35, 22), "RTX3090": (0.15, 23), "RTX4090": (0.25, 23),
          "RTX5090": (0.40, 31), "A100": (0.60, 39), "L40S": (0.55, 44), "RTX6000-Ada": (0.55, 47),
          "A100-80GB": (0.80, 79), "H100": (1.60, 79.1), "H200": (2.20, 139), "B200": (3.50, 178)}
CARDS = ("L4:1", "L40S:4", "A100-80GB:1", "H100:1", "H200:1")
TRIED = [(found.name, card) for found in list_recipes() for card in CARDS]


def on_card(name: str, card: str) -> list[str]:
    """A recipe on another card: rented at what one costs, or at home."""
    candidates = load_recipe(name).hardware.train
    index = next((i for i, found in enumerate(candidates) if found.infra == "vast"), 0)
    words = [name, "--infra", candidates[index].infra, "--set", f"hardware.train.{index}.gpu={card}"]
    if candidates[index].infra == "local":
        return words
    kind, _, number = card.partition(":")
    return [*words, "--set", f"hardware.train.{index}.bid_usd_per_hour={MARKET[kind][0] * int(number):.2f}"]


def single_changes(words: list[str], card: str) -> Iterator[list[str]]:
    """What somebody would try by hand, one at a time."""
    batch = load_recipe(words[0]).train.micro_batch_size
    items = [f"train.micro_batch_size={size}" for size in range(1, batch) if batch % size == 0]
    items += ["train.activation_checkpointing=true", "train.zero_stage=2"]
    items += [f"train.token_encoder.weights={name}" for name in ("fp8", "nf4")]
    items += [f"train.token_encoder.placement={place}" for place in ("gpu", "sharded", "host")]
    yield from (["--set", item] for item in items)
    if "local" in words:
        return
    key, kind, number = words[4].partition(".gpu=")[0], *card.split(":")
    for other, (usd, gib) in MARKET.items():
        for count in (1, 2, 4, 8):
            if count >= int(number) and (gib >= MARKET[kind][1] and (other, count) != (kind, int(number))):
                yield ["--set", f"{key}.gpu={other}:{count}",
                       "--set", f"{key}.bid_usd_per_hour={usd * count:.2f}"]


def money(plan: Plan) -> float:
    """Dollars; hours at home, where nobody sends a bill."""
    return float(plan.usd.mid) or float(plan.hours.mid)


def refusal(words: list[str], machine: Machine | None = None) -> NoOfferError:
    with pytest.raises(NoOfferError) as caught:
        planned(words, machine) if machine else planned(words)
    return caught.value


@pytest.mark.parametrize(("name", "card"), TRIED)
def test_the_advice_leads_to_a_plan_and_no_single_change_costs_half_as_much(name, card):
    words = on_card(name, card)
    try:
        planned(words)
        return
    except (NoOfferError, RecipeError) as error:
        fix = error.fix or ""
    if fix.startswith("take other GPUs: "):
        assert "local" in words
        return
    advised = money(planned([*words, *typed(fix)]))
    elsewhere = [float(usd) for usd in re.findall(r"on other GPUs .*?: ~\$([\d.]+)", fix)]
    for more in single_changes(words, card):
        try:
            other = planned([*words, *more, *FREE])
        except (NoOfferError, RecipeError):
            continue
        on_others = more[1].partition(".")[0] == "hardware"
        # What costs little more counts as as good, and may be what was compared.
        assert 1.05 * money(other) > min([advised, *(elsewhere if on_others else [])]) / 2, more


def test_where_the_encoder_is_copied_from_the_host_a_refusal_says_so_and_does_not_ask_for_money():
    words = ["qwen3.6-35b-a3b", *OF_8, "--set", "hardware.train.0.gpu=H100:1"]
    error = refusal(words)
    assert re.search(r"would cost ~\$1[89]\d\d\.\d\d \(.*\), its encoder copied from host memory for every ",
                     error.problem)
    (told,) = re.findall(r"\(~\$([\d.]+)", error.fix)
    assert "--max-cost" not in error.fix
    assert float(planned([*words, *typed(error.fix)]).usd.mid) == pytest.approx(float(told), abs=0.01)
    smaller = planned([*words, "--set", "train.micro_batch_size=4"])
    assert float(told) <= float(smaller.usd.mid)


@pytest.mark.parametrize(("words", "fix"), [
    (["seed-27b", "--set", "hardware.train.0.gpu=H100:1"],
     r"add --set hardware.train.0.gpu=H100:8 \(~\$1\d\d"),
    (["qwen3.6-35b-a3b", *OF_8, "--set", "train.token_encoder.placement=host"],
     r"add --set train.token_encoder.placement=auto \(~\$16\d\.\d\d\)"),
    (["home-5090", "--set", "train.token_encoder.weights=bf16"],
     r"add --set train.token_encoder.weights=nf4 \(~7\d.\d h\)"),
    (["paper-gpt2", "--max-cost", "40"], r"add --max-cost 6\d\.\d\d \(--max-cost "),  # nothing is cheaper
    (profile("paper-gpt2", "H100:1", "train.micro_batch_size=3000", "train.global_batch_size=9000",
             "limits.max_cost_usd=9999", "limits.deadline_hours="),
     r"add --set train.micro_batch_size=(60|50) \(~\$"),  # keeps the global batch divisible
])
def test_the_cheapest_change_is_named_with_what_it_costs(words, fix):
    assert re.match(fix, refusal(words).fix)


def test_of_other_gpus_the_bid_is_named_and_called_a_guess_and_what_would_do_on_these_comes_beside():
    words = ["qwen3.6-27b", "--set", "hardware.train.0.gpu=L4:1"]
    fix = refusal(words).fix
    assert re.match(r"add --set hardware.train.0.gpu=\S+ --set hardware.train.0.bid_usd_per_hour=\S+ "
                    r"\(~\$[\d.]+, the bid is a guess; on L4:1 --set train.micro_batch_size=4: ~\$", fix)
    plan = planned([*words, *typed(fix)])
    kind, _, number = plan.offers["train"].accelerators.partition(":")
    assert float(plan.offers["train"].bid_usd_per_hour) == pytest.approx(MARKET[kind][0] * int(number))


def test_other_gpus_under_the_cap_come_before_more_money_for_the_same():
    words = ["qwen3.6-27b", "--set", "hardware.train.0.gpu=L4:1", "--set", "train.data.sequence_length=4096",
             "--set", "hardware.train.0.bid_usd_per_hour=0.25", "--max-cost", "330"]
    fix = refusal(words).fix
    assert "--max-cost" not in fix and "; on L4:1 --set train.micro_batch_size=1: ~$" in fix
    assert planned([*words, *typed(fix)]).usd.mid < 330


def test_a_plan_that_copies_the_encoder_from_the_host_by_itself_says_what_is_cheaper():
    words = ["qwen3.6-35b-a3b", *OF_8, "--set", "hardware.train.0.gpu=H100:1", "--max-cost", "3000"]
    plan = planned(words)
    (warning,) = [found for found in plan.warnings if "is copied to it for every micro-batch" in found]
    change, usd = re.search(r"; cheaper: (--set .*): ~\$([\d.]+)$", warning).groups()
    cheaper = planned([*words, *typed(f"add {change}")])
    assert float(cheaper.usd.mid) == pytest.approx(float(usd), abs=0.01)
    assert cheaper.usd.mid * 5 < plan.usd.mid
    asked = planned([*words, "--set", "train.token_encoder.placement=host"])
    assert not any("copied" in found for found in asked.warnings)


def test_at_home_no_other_card_is_to_be_typed():
    own = ["home-3090", "--set", "train.profile=seed-35b-a3b", "--set", "train.precision=fp32"]
    fix = refusal(own, ONE_3090).fix
    assert re.fullmatch(r"take other GPUs: \S+:\d would do \(gpu in hardware.train\)", fix)


def test_an_encoder_that_host_memory_cannot_hold_is_refused_too():
    own = ["home-3090", "--set", "train.profile=qwen3.6-27b", "--set", "train.micro_batch_size=8",
           "--set", "train.global_batch_size=128"]
    small = Machine(num_cores=16, memory_gib=32.0, gpus=ONE_3090.gpus)
    roomy = Machine(num_cores=16, memory_gib=96.0, gpus=parse_gpus("NVIDIA GeForce RTX 3090, 24576, 570.86"))
    assert re.search("weights=(fp8|nf4)", refusal(own, small).fix)
    assert "train.micro_batch_size" in refusal(own, roomy).fix


@pytest.mark.parametrize("card", ["T4:1", "V100:2", "V100-32GB:1"])
def test_bf16_on_a_card_that_has_none_is_refused_with_a_card_that_has_or_float32_at_home(card):
    # Turing and Volta, whose tensor cores know fp16 alone by the data sheets.
    rented = profile("qwen3.5-0.8b", card, "limits.max_cost_usd=9999", "limits.deadline_hours=")
    error = refusal(rented)
    assert error.problem == f"{card.partition(':')[0]} has no bf16, which Ampere and newer GPUs have"
    assert re.match(r"add --set (hardware.train.0.gpu=\S+|train.precision=fp32) ", error.fix)
    planned([*rented, *typed(error.fix)])
    home = ["home-3090", "--set", f"hardware.train.0.gpu={card}"]
    assert re.match(r"add --set train.precision=fp32( --set \S+)* \(~[\d.]+ h\)", refusal(home).fix)
    planned([*home, *typed(refusal(home).fix)])


@pytest.mark.parametrize("card", ["A100-80GB:1", "RTXA6000:2"])
def test_an_encoder_in_fp8_on_a_card_without_its_products_is_refused_with_what_to_type(card):
    # Ampere's tensor cores know no fp8 by the data sheets.
    rented = profile("qwen3.5-0.8b", card, "train.token_encoder.weights=fp8",
                     "train.token_encoder.products=fp8", "limits.max_cost_usd=9999", "limits.deadline_hours=")
    error = refusal(rented)
    assert error.problem.startswith(f"{card.partition(':')[0]} multiplies nothing in fp8")
    planned([*rented, *typed(error.fix)])


def test_products_in_fp8_of_other_weights_are_refused():
    words = profile("qwen3.5-0.8b", "H100:1", "train.token_encoder.products=fp8", "limits.max_cost_usd=9999",
                    "limits.deadline_hours=")
    with pytest.raises(RecipeError, match="products in fp8 want weights in fp8, not bf16") as caught:
        planned(words)
    planned([*words, *typed(caught.value.fix)])


def test_no_advice_names_a_card_without_bf16():
    assert not {"T4", "V100", "V100-32GB"} & set(ADVISED)
    assert {name for name, kind in GPU_KINDS.items() if not kind.has_bf16} == {"T4", "V100", "V100-32GB"}
    assert all(GPU_KINDS[name].bf16_tflops <= GPU_KINDS[name].fp32_tflops for name in ("T4", "V100"))
