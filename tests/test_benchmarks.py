"""Committed training speeds: who reads them, for which config they count, and what a plan makes of them."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from launch_examples import NOW

from launcher.benchmarks import Benchmarked, nearest, read_benchmarks
from launcher.estimate import Case, estimate_of
from launcher.offers import Offer, cloud_offer
from launcher.ranking import ranked
from launcher.ranking_screen import show_ranking
from launcher.recipe import Candidate, load_recipe
from launcher.speed import GUESS_FACTORS, MeasuredSpeed, Speed, training_speed
from trainer.bench_train_cases import TrainCase, config_of
from trainer.contract import Document
from trainer.encoder_shape import encoder_shape

NAME = "qwen3.6-27b"
CASE = {"profile": NAME, "scope": "joint", "length": 1024, "micro_batch": 32, "num_micro_batches": 8,
        "weights": "bf16", "zero_stage": 1, "num_ranks": 1}


def benchmark(gpu: str = "H200", at: datetime = datetime(2026, 12, 1, 9, tzinfo=UTC), file: str = "h200.json",
              **case: object) -> Benchmarked:
    found = TrainCase.model_validate({**CASE, **case})
    words = f"{found.micro_batch} x {found.length} tokens, {file}, {at:%Y-%m-%d}, torch 2.11.0+cu130"
    return Benchmarked(words=words, at=at, gpu=gpu, tokens_per_s=9400.0, config=config_of(found))


ON_H200 = benchmark()
SAME = ("train.micro_batch_size=32", "train.token_encoder.placement=gpu")


def offer_of(gpu: str) -> Offer:
    """On demand at $2 an hour, so that hardly anything but hours counts."""
    return cloud_offer(Candidate(infra="gcp/us-central1", gpu=gpu, price_usd_per_hour=2), NOW)


def speed_of(gpu: str, *overrides: str, benchmarks: tuple[Benchmarked, ...] = (ON_H200,),
             history: tuple[MeasuredSpeed, ...] = ()) -> Speed:
    offer, config = offer_of(gpu), load_recipe(NAME, [*SAME, *overrides]).train
    return training_speed(config, encoder_shape(config.token_encoder.name), offer, offer.num_gpus, history,
                          benchmarks)


def document(**case: object) -> dict:
    return {"kind": "ldlm training benchmark", "version": 1, "at": "2026-12-01T09:00:00Z",
            "device": {"name": "NVIDIA H200", "memory_gib": 139.8},
            "software": {"torch": "2.11.0+cu130", "python": "3.12.3"},
            "cases": [{"case": {**CASE, **case}, "fast": {"num_steps": 20, "tokens_per_s": 9400.0}},
                      {"case": CASE, "fast": None, "left_out": "out of memory"}]}


def test_a_file_of_a_benchmark_is_read_as_it_was_written(tmp_path):
    (tmp_path / "h200.json").write_text(json.dumps(document()))
    assert read_benchmarks(tmp_path) == ([ON_H200], [])


@pytest.mark.parametrize("case", [{"scope": "encoder"}, {"scope": "trainables"}, {"num_ranks": 8}])
def test_what_is_not_the_step_of_a_run_on_one_gpu_is_no_training_speed(case, tmp_path):
    (tmp_path / "h200.json").write_text(json.dumps(document(**case)))
    assert read_benchmarks(tmp_path) == ([], [])


@pytest.mark.parametrize("device", [{"name": "CPU (x86_64, 2 threads)", "memory_gib": None},
                                    {"name": "NVIDIA Quadro P400", "memory_gib": 2.0}])
def test_a_cpu_or_a_card_whose_rates_nobody_knows_is_nothing_to_scale_from(device, tmp_path):
    (tmp_path / "cpu.json").write_text(json.dumps({**document(), "device": device}))
    assert read_benchmarks(tmp_path) == ([], [])


def test_a_step_that_does_not_train_as_its_reference_does_is_no_training_speed(tmp_path):
    found = document()
    found["cases"][0]["check"] = {"num_steps": 50, "errors": {"hidden": 0.3}, "problem": "losses differ"}
    (tmp_path / "h200.json").write_text(json.dumps(found))
    assert read_benchmarks(tmp_path) == ([], [])
    found["cases"][0]["check"]["problem"] = None
    (tmp_path / "h200.json").write_text(json.dumps(found))
    assert read_benchmarks(tmp_path) == ([ON_H200], [])


def test_a_step_beside_other_programs_on_its_gpu_is_no_training_speed(tmp_path):
    found = document()
    found["cases"][0]["loaded"] = {"clock_sm_mhz": 1965.0, "other_processes": 1}
    (tmp_path / "h200.json").write_text(json.dumps(found))
    assert read_benchmarks(tmp_path) == ([], [])
    found["cases"][0]["loaded"]["other_processes"] = 0
    (tmp_path / "h200.json").write_text(json.dumps(found))
    assert read_benchmarks(tmp_path) == ([ON_H200], [])


BAD = ("c-torn", "d-negative", "e-nan", "f-bytes", "f-profile")


def test_other_files_are_passed_over_and_a_torn_or_absurd_one_costs_a_plan_only_its_figures(tmp_path):
    (tmp_path / "a-generation.json").write_text(json.dumps({"kind": "ldlm generation benchmark"}))
    (tmp_path / "b-list.json").write_text("[1]")
    (tmp_path / "c-torn.json").write_text(json.dumps(document())[:300])
    bad = document()
    bad["cases"][0]["fast"]["tokens_per_s"] = -1
    (tmp_path / "d-negative.json").write_text(json.dumps(bad))
    (tmp_path / "e-nan.json").write_text(json.dumps(document()).replace("9400.0", "NaN"))
    (tmp_path / "f-bytes.json").write_bytes(b"\xff\xfe{")
    (tmp_path / "f-profile.json").write_text(json.dumps(document(profile="gone")))
    (tmp_path / "g-good.json").write_text(json.dumps(document()))
    found, unread = read_benchmarks(tmp_path)
    assert found == [benchmark(file="g-good.json")]
    assert [line.partition(".json")[0] for line in unread] == [f"no speed is taken from {tmp_path}/{name}" for
                                                               name in BAD]
    assert read_benchmarks(tmp_path / "nowhere") == ([], [])


def test_every_committed_training_benchmark_can_be_read():
    assert read_benchmarks(Path(__file__).parent.parent / "recipes/measured")[1] == []


def test_the_same_gpu_and_micro_batch_trains_at_the_speed_that_was_measured():
    speed = speed_of("H200:1")
    assert (speed.tokens_per_s, speed.origin) == (9400.0, "bench")
    assert speed.source == ("measured on H200: 32 x 1024 tokens, h200.json, 2026-12-01, "
                            "torch 2.11.0+cu130")
    low, high = speed.factors
    assert GUESS_FACTORS[0] < low < 1 < high < GUESS_FACTORS[1]


# bf16 rates of the data sheets, TFLOP/s: at 32,768 tokens at a time arithmetic decides.
@pytest.mark.parametrize(("gpu", "tflops"), [("A100-80GB", 312.0), ("H100", 989.0), ("B200", 2250.0),
                                             ("RTX6000-Ada", 364.0)])
def test_another_gpu_is_scaled_by_the_ratio_of_peak_rates_and_called_so(gpu, tflops):
    speed = speed_of(f"{gpu}:1")
    assert speed.tokens_per_s == pytest.approx(9400 * tflops / 989, rel=0.06)
    assert speed.origin == "scaled"
    assert speed.source.startswith("scaled from H200: 32 x 1024 tokens, h200.json, 2026-12-01")
    exact, guess = speed_of("H200:1").factors, GUESS_FACTORS
    assert guess[0] < speed.factors[0] < exact[0] and exact[1] < speed.factors[1] < guess[1]


def test_a_card_of_the_same_rates_is_no_faster_than_what_was_measured():
    """However few micro-batches the benchmark's steps had: their end is not what differs between cards."""
    short = benchmark(num_micro_batches=1)
    assert speed_of("H200:1", benchmarks=(short,)).tokens_per_s == 9400
    assert 0.99 * 9400 < speed_of("H100:1", benchmarks=(short,)).tokens_per_s <= 9400


def test_several_gpus_and_slower_encoders_are_scaled_too():
    eight = speed_of("H200:8")
    assert eight.origin == "scaled"
    assert eight.tokens_per_s == pytest.approx(8 * 9400, rel=0.02)
    # A quarter of the trained parts' arithmetic more, of 4 % that is not the encoder's.
    checkpointed = speed_of("H200:1", "train.activation_checkpointing=true")
    assert checkpointed.origin == "scaled" and 8500 < checkpointed.tokens_per_s < 9400
    host = speed_of("H200:1", "train.token_encoder.placement=host", "train.micro_batch_size=1")
    # 43.9 GiB of blocks over PCIe at 20 GB/s for every 1,024 tokens, and no faster than that.
    assert host.origin == "scaled" and host.tokens_per_s < 1.4 * 1024 / (43.9 * 2**30 / 20e9)


@pytest.mark.parametrize("other", [
    "train.token_encoder.weights=fp8", "train.data.sequence_length=512", "train.model.denoiser_layers=2",
    "train.profile=qwen3.6-35b-a3b", "train.precision=fp32", "train.token_loss_fraction=0.5",
    "train.token_encoder.layer=-5", "train.diffusion.self_conditioning_probability=0.9"])
def test_a_benchmark_of_other_arithmetic_counts_nothing(other):
    speed = speed_of("H200:1", other)
    assert speed == speed_of("H200:1", other, benchmarks=())
    assert speed.origin == "model" and speed.source.startswith("model by FLOPs: ")


def test_runs_of_ones_own_come_before_any_benchmark():
    speed = speed_of("H200:1", history=(MeasuredSpeed("r1", "H200:1", "-", 9000.0),))
    assert (speed.tokens_per_s, speed.origin, speed.source) == (9000.0, "runs", "measured in run r1")


def test_runs_of_ones_own_on_other_hardware_are_scaled_from_and_those_of_another_config_are_not():
    """Eight H100s of an earlier run at 74,000 tokens a second: 9,250 each, and an H200 has the same rates."""
    config = load_recipe(NAME, SAME).train
    run = Benchmarked("run r1", NOW, "H100", config, 74_000.0, num_ranks=8)
    speed = speed_of("H200:1", benchmarks=(run,))
    assert (speed.origin, speed.source) == ("scaled", "scaled from 8 x H100: run r1")
    assert speed.tokens_per_s == pytest.approx(9250, rel=0.03)
    assert speed_of("H100:8", benchmarks=(run,)).tokens_per_s == 74_000
    assert speed_of("H200:1", "train.token_encoder.weights=fp8", benchmarks=(run,)).origin == "model"


def test_of_several_benchmarks_the_same_gpu_counts_first_then_the_micro_batch_then_the_newest():
    config = load_recipe(NAME, SAME).train
    other_gpu, small = benchmark(gpu="H100"), benchmark(micro_batch=8)
    older = benchmark(at=datetime(2026, 11, 1, tzinfo=UTC))
    assert nearest(config, "H200", 1, [small, other_gpu, older, ON_H200]) is ON_H200
    assert nearest(config, "H100", 1, [ON_H200, other_gpu]) is other_gpu
    assert nearest(config, "A100", 1, [small, ON_H200]) is ON_H200
    assert nearest(config, "H200", 1, [benchmark(profile="seed-27b")]) is None


def test_ranks_that_talk_are_a_speed_of_all_and_imagined_ones_are_none(tmp_path):
    for name, changes in (("two", {"ranks_are_real": True}), ("imagined", {})):
        found = document(num_ranks=2, placement="sharded", **changes)
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    of_both = benchmark(num_ranks=2, placement="sharded", file="two.json")
    two = replace(of_both, num_ranks=2, tokens_per_s=18_800.0)
    assert read_benchmarks(tmp_path) == ([two], [])
    config = load_recipe(NAME, SAME).train
    assert nearest(config, "H200", 2, [ON_H200, two]) is two
    assert nearest(config, "H200", 1, [ON_H200, two]) is ON_H200
    of_two = speed_of("H200:2", "train.token_encoder.placement=sharded", benchmarks=(ON_H200, two))
    assert (of_two.origin, of_two.tokens_per_s) == ("bench", 18_800)


def test_a_whole_and_a_split_encoder_are_measured_each_for_itself_whichever_is_newer():
    def two(day: int, **case: object) -> Benchmarked:
        return replace(benchmark(at=datetime(2026, 12, day, tzinfo=UTC), num_ranks=2, **case), num_ranks=2)

    whole, split, stage_2 = two(1), two(2, placement="sharded"), two(3, zero_stage=2)
    config = load_recipe(NAME, SAME).train
    assert nearest(config, "H200", 2, [whole, split, stage_2]) is whole
    config = load_recipe(NAME, [SAME[0], "train.token_encoder.placement=sharded"]).train
    assert nearest(config, "H200", 2, [whole, split, stage_2]) is split


def test_an_encoder_that_reads_more_at_once_is_measured_for_itself(tmp_path):
    overrides = ("train.micro_batch_size=8", "train.token_encoder.micro_batch_size=32")
    plain, at_once = benchmark(micro_batch=8), benchmark(micro_batch=8, encoder_micro_batch=32)
    assert speed_of("H200:1", *overrides, benchmarks=(plain, at_once)).origin == "bench"
    assert speed_of("H200:1", *overrides, benchmarks=(plain, ON_H200)).source.startswith(
        "scaled from H200: 8 x 1024 tokens")
    (tmp_path / "h200.json").write_text(json.dumps(document(micro_batch=8, encoder_micro_batch=32)))
    (found, *_), _ = read_benchmarks(tmp_path)
    assert found.words.startswith("8 x 1024 tokens, encoder 32 at a time, h200.json, ")


def test_offers_are_ranked_by_dollars_per_billion_tokens_of_what_was_measured():
    """A figure of one GPU moves all, so that their order is as before; their dollars are by it."""
    recipe = load_recipe(NAME, [*SAME, "limits.max_cost_usd=99999", "limits.deadline_hours=null"])
    offers = (offer_of("H200:1"), offer_of("B200:1"))
    case = Case(recipe, encoder_shape(recipe.train.token_encoder.name),
                {Document.TRAIN: offers[0], Document.BENCH: offer_of("RTX5090:1")}, (),
                others={Document.TRAIN: offers[1:]})
    by_benchmark = replace(case, benchmarks=(ON_H200,))
    modelled, rows = ranked(case), ranked(by_benchmark)
    assert [row.offer.gpu for row in rows] == [row.offer.gpu for row in modelled] == ["B200", "H200"]
    assert [row.speed_origin for row in rows] == ["scaled", "bench"]
    assert {row.speed_origin for row in modelled} == {"model"}
    training = next(part for part in estimate_of(by_benchmark).parts if part.name == "training")
    tokens = recipe.train.steps * recipe.train.tokens_per_step
    # $2 an hour at 9,400 tokens a second; starts, saves, network and benchmark come on top.
    assert float(training.usd.mid) / tokens * 1e9 == pytest.approx(2 / 3600 / 9400 * 1e9, rel=1e-4)
    assert rows[1].usd_per_billion_tokens > 59


def test_the_table_has_dollars_per_billion_tokens_and_their_origin_in_80_columns(capsys):
    recipe = load_recipe(NAME, [*SAME, "limits.max_cost_usd=99999", "limits.deadline_hours=null"])
    case = Case(recipe, encoder_shape(recipe.train.token_encoder.name),
                {Document.TRAIN: offer_of("H200:1"), Document.BENCH: offer_of("RTX5090:1")}, (),
                others={Document.TRAIN: [offer_of("B200:1")]}, benchmarks=(ON_H200,))
    rows = ranked(case)
    show_ranking(rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    cells = [re.split(r"  +", line.strip()) for line in (lines[0], *lines[2:4])]
    assert cells == [["offer", "mean cost", "$/B tokens", "speed"], *(
        [row.offer.label, f"~${row.expected_usd:.2f}", f"{row.usd_per_billion_tokens:.2f}", row.speed_origin]
        for row in rows)]
    assert " ".join(" ".join(lines[4:]).split()) == (
        "speed scaled from H200: 32 x 1024 tokens, h200.json, 2026-12-01, torch 2.11.0+cu130 "
        "measured on H200: 32 x 1024 tokens, h200.json, 2026-12-01, torch 2.11.0+cu130")
