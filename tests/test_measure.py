"""`ldlm evaluate`: the reconstruction panel, the frontier of samplings, and the whole command."""

import contextlib
import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from random_encoders import save_model  # noqa: E402
from tiny_ldlm import HIDDEN_SIZE, VOCABULARY, tiny_config, tiny_model  # noqa: E402

from tests.trainer_runs import TrainerRun, finished_run  # noqa: E402
from trainer import measure, quality_plot  # noqa: E402
from trainer.completions import beginnings, complete, sample_completions  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.evaluate import evaluate  # noqa: E402
from trainer.frontier import sample_frontier, setting_of  # noqa: E402
from trainer.generate import Generator, decode, sample_latents  # noqa: E402
from trainer.judge_rows import RowJudge  # noqa: E402
from trainer.measure import main  # noqa: E402
from trainer.measure_options import read_measure_options  # noqa: E402
from trainer.model import draw_noise  # noqa: E402
from trainer.panel import reconstruction_panel  # noqa: E402
from trainer.quality import load_judge  # noqa: E402
from trainer.quality_plot import plot  # noqa: E402
from trainer.store import local_store_url  # noqa: E402

ROWS_NL = np.random.default_rng(0).integers(0, VOCABULARY, (7, 8)).astype(np.uint32)


class TableEncoder:
    """Hidden states from a table."""

    num_tokens = VOCABULARY
    table = torch.randn(VOCABULARY, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))

    def hidden_states(self, tokens_BL: "torch.Tensor") -> "torch.Tensor":
        return self.table[tokens_BL]

    def prompt_states(self, tokens_BP: "torch.Tensor", lengths_B: "torch.Tensor") -> "torch.Tensor":
        return self.table[tokens_BP]


# -- reconstruction panel -------------------------------------------------------------------------

def test_the_panel_agrees_with_the_scores_of_training_whatever_the_batches() -> None:
    model, encoder = tiny_model(tiny_config()).eval(), TableEncoder()
    scores = evaluate(model, encoder, ROWS_NL, seed=1, batch_size=3)
    for batch_size in (2, 7):
        panel = reconstruction_panel(model, encoder, ROWS_NL, 1, batch_size)
        assert list(panel) == ["clean", "noisy", "denoised_0.2", "denoised_0.5", "denoised_0.8"]
        assert panel["clean"]["accuracy"] == pytest.approx(scores["reconstruction_accuracy"])
        assert panel["noisy"]["accuracy"] == pytest.approx(scores["reconstruction_accuracy_noisy"])
        assert panel["noisy"]["cross_entropy"] == pytest.approx(scores["token_loss"], rel=1e-5)


def test_a_denoiser_sees_latents_as_noisy_as_its_time_says_and_its_word_is_decoded() -> None:
    config = tiny_config(diffusion={"tan_d": 3.0})
    model, encoder = tiny_model(config).eval(), TableEncoder()
    z_BKD = model.encoder(model.normalise(encoder.hidden_states(torch.from_numpy(ROWS_NL.astype(np.int64)))))
    eps_BKD = draw_noise(config, 1, 0, range(7), "cpu").latent_BKD
    seen = []

    class Knowing(torch.nn.Module):
        def forward(self, z_u: "torch.Tensor", u_B: "torch.Tensor", c: "torch.Tensor") -> "torch.Tensor":
            seen.append((u_B.unique().item(), z_u, c))
            return z_BKD

    model.denoiser = Knowing()
    panel = reconstruction_panel(model, encoder, ROWS_NL, 1, 7)
    assert panel["denoised_0.2"] == panel["denoised_0.5"] == panel["denoised_0.8"] == panel["clean"]
    # alpha squared at d = 3 by the specification: 0.513, 0.100, 0.0116.
    for (u, z_u, c), (time, power) in zip(seen, ((0.2, 0.513), (0.5, 0.1), (0.8, 0.0116)), strict=True):
        assert u == pytest.approx(time) and not c.any()
        assert torch.allclose(z_u, power**0.5 * z_BKD + (1 - power) ** 0.5 * eps_BKD, atol=2e-3)


def test_cross_entropy_is_over_all_positions_of_the_clean_latents() -> None:
    model, encoder = tiny_model(tiny_config()).eval(), TableEncoder()
    tokens_BL = torch.from_numpy(ROWS_NL.astype(np.int64))
    z_BKD = model.encoder(model.normalise(encoder.hidden_states(tokens_BL)))
    logits_BLV = model.token_decoder.head(model.token_decoder.features(model.decoder(z_BKD)))
    expected = F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten())
    panel = reconstruction_panel(model, encoder, ROWS_NL, 1, 7)
    assert panel["clean"]["cross_entropy"] == pytest.approx(expected.item(), rel=1e-5)


# -- frontier -------------------------------------------------------------------------------------

class Words:
    """A tokenizer that writes ids as numbers."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


def test_every_pair_of_steps_and_temperature_is_sampled_with_the_same_seed() -> None:
    model = tiny_model(tiny_config()).eval()
    generator = Generator(tiny_config(), model, None, VOCABULARY, end_of_text_id=3, tokenizer=Words())
    said: list[str] = []
    found = sample_frontier(generator, [1, 3], [0.5, 1.0], num=5, batch=2, seed=4, say=said.append)
    assert [(one["setting"]["steps"], one["setting"]["temperature"]) for one in found] == [
        (1, 0.5), (1, 1.0), (3, 0.5), (3, 1.0)]
    assert len(said) == 4
    for one in found:
        sampling = tiny_config().sampling.model_copy(update={
            "steps": one["setting"]["steps"], "temperature": one["setting"]["temperature"], "batch_size": 2})
        config = generator.config.model_copy(update={"sampling": sampling})
        own = dataclasses.replace(generator, config=config)
        assert one["tokens"] == own.tokens(5, 4).tolist()
        assert one["texts"] == own.texts(5, 4)
        assert one["dtype"] == "float32"  # on a CPU
        assert one["tokens_per_s_batch_1"] == pytest.approx(8 / one["seconds_batch_1"])
        assert one["tokens_per_s_batch_2"] > 0
        assert one["setting"]["denoiser_passes"] == one["setting"]["steps"]
    assert found[0]["tokens"] != found[2]["tokens"]


def test_a_guided_step_counts_as_two_passes() -> None:
    config = tiny_config(sampling={"self_conditioning_guidance": 2.0})
    generator = Generator(config, tiny_model(config).eval(), None, VOCABULARY, 3, Words())
    found = sample_frontier(generator, [3], [1.0], num=1, batch=1, seed=0, say=lambda _: None)
    assert found[0]["setting"]["denoiser_passes"] == 6


@pytest.mark.parametrize(("sampling", "alone", "prompted"), [
    ({}, 3, 3), ({"prompt_guidance": 2.0}, 3, 6), ({"prompt_guidance": 0.0}, 3, 3),
    ({"prompt_guidance": 2.0, "self_conditioning_guidance": 1.5}, 6, 12)])
def test_passes_of_a_completion_are_those_that_the_denoiser_makes(sampling, alone, prompted) -> None:
    config = tiny_config({"prompt": True}, sampling={"steps": 3, **sampling})
    generator = Generator(config, tiny_model(config).eval(), None, VOCABULARY, 3, Words())
    passes = []
    generator.model.denoiser.register_forward_hook(lambda *_: passes.append(1))
    generator.tokens(1, seed=0)
    assert len(passes) == alone == setting_of(generator)["denoiser_passes"]
    passes.clear()
    complete(generator, TableEncoder(), torch.tensor([[1, 2]]), seed=0)
    assert len(passes) == prompted == setting_of(generator, has_prompt=True)["denoiser_passes"]


def test_under_autocast_latents_stay_in_float32_and_mean_the_same() -> None:
    config = tiny_config(sampling={"steps": 8})
    model = tiny_model(config).eval()
    plain = sample_latents(model, range(4), 0, config.sampling)
    with torch.autocast("cpu", torch.bfloat16):  # as on a GPU, where alone it is on
        quick = sample_latents(model, range(4), 0, config.sampling)
        same = decode(model, quick, VOCABULARY) == decode(model, plain, VOCABULARY)
    assert quick.dtype == torch.float32 and not torch.equal(quick, plain)
    assert (quick - plain).pow(2).mean() < 1e-3 * plain.pow(2).mean()
    assert same.double().mean() > 0.8


# -- the command ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainerRun:
    return finished_run(tmp_path_factory.mktemp("run"))


def arguments(run: TrainerRun, *more: str) -> list[str]:
    return ["run", "--store", local_store_url(run.store), "--steps", "1,2", "-n", "24", "--batch", "8", *more]


def test_a_finished_run_is_evaluated_whole_without_a_network(trained, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained.store.parent / "cache"))
    judge, out = save_model(tmp_path / "tiny judge", "gpt2"), tmp_path / "deep" / "out"
    assert main(arguments(trained, "--judge", str(judge), "--temperatures", "0.9,1", "--out", str(out),
                          "--autoregressive")) == 0
    printed = capsys.readouterr()
    assert "clean" in printed.out and "wrote evaluation.json, evaluation.png and samples.json" in printed.out
    # A path is not broken.
    assert max(len(line) for line in printed.out.splitlines() if str(tmp_path) not in line) <= 80
    assert "of 24 texts each" in " ".join(printed.out.split()) and "tokens/s at batch 8" in printed.out
    assert "MAUVE of 24 texts: says little" in printed.out
    result = json.loads((out / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert result["step"] == 4 and result["heldout_sequences"] == 24
    other = result["autoregressive"]
    assert other["tokens_per_s_batch_1"] > 0 and other["tokens_per_s_batch_8"] > 0
    assert f"transformer of {other['parameters'] / 1e6:.1f} M parameters" in " ".join(printed.out.split())
    assert result["judge"]["name"] == str(judge) and result["judge"]["is_the_fields"] is False
    assert 0 <= result["panel"]["clean"]["accuracy"] <= 1 and result["heldout"]["diffusion_loss"] > 0
    assert [point["setting"]["steps"] for point in result["frontier"]] == [1, 1, 2, 2]
    assert all("mauve_by_tiny-judge" in point for point in result["frontier"])
    samples = json.loads((out / "samples.json").read_text())
    assert np.shape(samples["generations"][0]["tokens"]) == (24, 16)
    assert samples["model"] == "ldlm"
    assert len(samples["heldout_tokens"]) == len(samples["heldout_texts"]) == 24
    assert result["reference"]["num_texts"] == result["frontier"][0]["num_texts"] == 24
    ended = [102 in row for row in samples["heldout_tokens"]]  # MiniLM's separator
    assert result["reference"]["rows_with_end"] == pytest.approx(np.mean(ended))
    assert 0 < result["reference"]["tokens_to_end"] <= 16
    assert (out / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_as_many_held_out_texts_are_judged_as_samples(trained, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained.store.parent / "cache"))
    judge, out = save_model(tmp_path / "j", "gpt2"), tmp_path / "out"
    typed = arguments(trained, "--judge", str(judge), "--out", str(out), "--solver", "ancestral", "--grid",
                      "warped", "--steps", "1")
    found = measure._heldout
    monkeypatch.setattr(measure, "_heldout", lambda *of: found(*of)[:7])  # there are no more
    assert main([*typed, "-n", "9"]) == 0
    result = json.loads((out / "evaluation.json").read_text())
    assert result["reference"]["num_texts"] == result["frontier"][0]["num_texts"] == 7
    assert result["frontier"][0]["setting"]["solver"] == "ancestral"
    assert result["frontier"][0]["setting"]["grid"] == "warped"
    assert len(json.loads((out / "samples.json").read_text())["generations"][0]["tokens"]) == 9


def test_samples_outlive_a_judge_that_fails(trained, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained.store.parent / "cache"))
    judge, out = save_model(tmp_path / "j", "gpt2"), tmp_path / "out"

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("the judge does not fit")

    monkeypatch.setattr(RowJudge, "scores", full)
    with contextlib.suppress(torch.OutOfMemoryError):
        assert main(arguments(trained, "--judge", str(judge), "--out", str(out))) != 0
    assert len(json.loads((out / "samples.json").read_text())["generations"]) == 2
    assert not (out / "evaluation.json").exists()


def test_completions_of_held_out_texts_are_judged_beside_the_originals(tmp_path, capsys, monkeypatch) -> None:
    run = finished_run(tmp_path, prompt=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(run.store.parent / "cache"))
    judge, out = save_model(tmp_path / "j", "gpt2"), tmp_path / "out"
    typed = arguments(run, "--judge", str(judge), "--out", str(out), "--prompt-tokens")
    assert main([*typed, "9"]) == 3
    error = capsys.readouterr().err
    assert "9 tokens, but this model reads prompts of 1 to 8" in error and "fix: ask for fewer" in error
    assert main([*typed, "5"]) == 0
    printed = capsys.readouterr().out
    assert "held-out texts after 5 tokens, perplexity given those:" in printed and "the original" in printed
    told = json.loads((out / "evaluation.json").read_text(), parse_constant=pytest.fail)["completions"]
    assert told["prompt_tokens"] == 5 and len(told["frontier"]) == 2
    assert {"perplexity_given_prompt_by_j", "entropy_by_j", "mauve_by_j"} < set(told["frontier"][0])
    samples = json.loads((out / "samples.json").read_text())
    end = 102  # of MiniLM: its separator closes a document
    heldout = [row for row in samples["heldout_tokens"] if end not in row[:5]]
    assert 0 < len(heldout) == told["reference"]["num_texts"] == len(samples["prompts"])
    for one in samples["completions"]:
        assert [row[:5] for row in one["tokens"]] == [row[:5] for row in heldout]
        assert len({len(row) for row in one["tokens"]} | {16}) == 1
        for text, prompt in zip(one["texts"], samples["prompts"], strict=True):
            assert not text.startswith(prompt)


def test_a_model_without_prompts_completes_nothing(trained, tmp_path, capsys) -> None:
    judge = str(save_model(tmp_path / "judge", "gpt2"))
    typed = arguments(trained, "--judge", judge, "--out", str(tmp_path / "out"), "--prompt-tokens", "4")
    assert main(typed) == 3
    assert "this model reads no prompts" in capsys.readouterr().err


def test_a_completion_does_not_depend_on_its_batch_and_goes_on_from_its_own_prompt() -> None:
    config = tiny_config({"prompt": True})
    generator = Generator(config, tiny_model(config).eval(), None, VOCABULARY, 3, Words())
    told = beginnings(generator, ROWS_NL[:, :8], 3)
    assert len(told.prompts) == int((ROWS_NL[:, :3] != 3).all(axis=1).sum()) > 2
    by_one, by_many = (
        sample_completions(generator, TableEncoder(), told, [2], [1.0], batch, 5, lambda _: None)
        for batch in (1, 4))
    assert by_one[0]["tokens"] == by_many[0]["tokens"]
    others = dataclasses.replace(generator, config=config)
    swapped = told._replace(tokens_NP=told.tokens_NP.flip(0))
    flipped = sample_completions(others, TableEncoder(), swapped, [2], [1.0], 4, 5, lambda _: None)
    assert [row[3:] for row in flipped[0]["tokens"]] != [row[3:] for row in by_many[0]["tokens"]]


def test_where_every_beginning_holds_an_end_of_text_there_is_nothing_to_complete() -> None:
    config = tiny_config({"prompt": True})
    generator = Generator(config, tiny_model(config).eval(), None, VOCABULARY, 3, Words())
    with pytest.raises(ConfigError, match="in no held-out sequence are the first 2 tokens of one document"):
        beginnings(generator, np.full((4, 8), 3, np.uint32), 2)


def test_what_is_quick_to_refuse_is_refused_with_what_to_type(trained, tmp_path, capsys) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(arguments(trained, "--judge", "nobody/no-such-judge", *out)) == 3
    error = capsys.readouterr().err
    assert "the judge nobody/no-such-judge cannot be loaded" in error and "--judge PATH" in error
    judge = str(save_model(tmp_path / "judge", "gpt2"))
    elsewhere = ["other", *arguments(trained, "--judge", judge, *out)[1:]]
    assert main(elsewhere) == 6
    assert "no run 'other'" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert main(arguments(trained, "--judge", judge, "--out", str(tmp_path / "file"))) == 3
    error = capsys.readouterr().err
    assert "cannot be written" in error and "--out PATH" in error


@pytest.mark.parametrize(("module", "package"), [("mauve", "mauve-text"), ("matplotlib", "matplotlib")])
def test_a_missing_package_is_named_before_anything_is_measured(
        module: str, package: str, trained, tmp_path, capsys, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else found(name))
    assert main(arguments(trained, "--out", str(tmp_path / "out"))) == 3
    error = capsys.readouterr().err
    assert f"{package} is not installed" in error and "make evaluation-tools" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("typed", "problem"), [
    (["--steps", "4,x"], "'x' is not a whole number from 1 to 10,000"),
    (["--steps", "0"], "'0' is not a whole number from 1 to 10,000"),
    (["--temperatures", "0"], "'0' is not a number from 0.01 to 10"),
    (["--temperatures", "nan"], "'nan' is not a number from 0.01 to 10"),
    (["-n", "-1"], "'-1' is not a whole number from 1 to 1,000,000"),
])
def test_numbers_that_make_no_sense_are_refused(typed: list[str], problem: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        read_measure_options(["run", "--out", "x", *typed])
    assert caught.value.code == 2 and problem in capsys.readouterr().err


def test_the_picture_of_a_run_without_scored_text_is_drawn_all_the_same(tmp_path: Path) -> None:
    judge = load_judge(str(save_model(tmp_path / "j", "gpt2")))
    speeds = {"tokens_per_s_batch_1": 10.0, "tokens_per_s_batch_8": 30.0}
    frontier = [{"setting": {"steps": steps, "temperature": 1.0}, "generative_perplexity_by_j": None,
                 "entropy_by_j": 0.0, **speeds} for steps in (1, 2)]
    result = {"source": "run", "step": 1, "device": "CPU", "frontier": frontier, "reference": {},
              "panel": {"clean": {"accuracy": 0.5}}}
    plot(result, judge, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_picture_says_of_how_few_texts_a_mauve_is(tmp_path: Path) -> None:
    judge = load_judge(str(save_model(tmp_path / "j", "gpt2")))
    result = {"frontier": [{"mauve_by_j": 0.2}, {"mauve_by_j": 0.31}, {"mauve_by_j": None}],
              "reference": {"num_texts": 166}}
    assert quality_plot._mauve(result, judge) == "; mauve_by_j up to 0.31 of 166 texts: says little"
    result["reference"]["num_texts"] = 1000
    assert quality_plot._mauve(result, judge) == "; mauve_by_j up to 0.31 of 1,000 texts"
