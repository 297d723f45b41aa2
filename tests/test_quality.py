"""Metrics of generated text, each against the value that another package gives."""

import json
import math
import random
import socket
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import mauve as mauve_text  # noqa: E402
import nltk  # noqa: E402
import numpy as np  # noqa: E402
import scipy.stats  # noqa: E402
from random_encoders import NUM_POSITIONS, WORDS, save_model  # noqa: E402
from torchmetrics.text import Perplexity  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from trainer import quality  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.measure_options import FIELDS_JUDGE  # noqa: E402
from trainer.quality import (  # noqa: E402
    Judge,
    load_judge,
    mauve,
    perplexity,
    repetition,
    text_scores,
    unigram_entropy,
)

END, LETTERS = 0, range(3, len(WORDS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("judge") / "tiny judge", "gpt2")


@pytest.fixture(scope="module")
def judge(folder: Path) -> Judge:
    return load_judge(str(folder))


def texts(num: int, seed: int, words: int = 10) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices("abcdefghijklm", k=draw.randint(3, words))) for _ in range(num)]


def reference_perplexity(folder: Path, rows: list[list[int]], ignored: int = -100) -> float:
    """By torchmetrics, one text at a time, so that nothing is padded."""
    model, metric = AutoModelForCausalLM.from_pretrained(folder).eval(), Perplexity(ignore_index=ignored)
    for row in rows:
        with torch.no_grad():
            metric.update(model(torch.tensor([row])).logits[:, :-1], torch.tensor([row[1:]]))
    return float(metric.compute())


def test_perplexity_is_that_of_torchmetrics_whatever_the_batches(judge, folder, monkeypatch):
    rows = judge.rows(texts(40, seed=1))
    expected = reference_perplexity(folder, rows)
    assert perplexity(judge, rows) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(quality, "_BATCH_LOGITS", 1)
    assert perplexity(judge, rows) == pytest.approx(expected, rel=1e-5)


def test_perplexity_of_one_text_is_the_loss_of_transformers(judge, folder):
    row = judge.rows(["a b c d e f"])[0]
    loss = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([row]), labels=torch.tensor([row])).loss
    assert perplexity(judge, [row]) == pytest.approx(math.exp(loss.item()), rel=1e-5)


def test_of_ends_of_text_only_the_first_is_scored(judge, folder):
    row = [4, 5, END, END, 6, END]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        chances = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
    scored = [-chances[i - 1, row[i]].item() for i in (1, 2, 4)]  # neither the second end nor the third
    assert perplexity(judge, [row]) == pytest.approx(math.exp(sum(scored) / 3), rel=1e-5)


def test_a_completion_is_scored_given_its_prompt_whatever_the_batches(judge, folder, monkeypatch):
    prompts = judge.rows(texts(20, seed=8, words=4))
    rows = [*judge.rows(texts(18, seed=9, words=5)), [6], []]
    metric = Perplexity(ignore_index=-100)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, row in zip(prompts, rows, strict=True):  # torchmetrics, one at a time, prompts not counted
        labels = torch.tensor([-100] * len(prompt) + row)[1:]
        with torch.no_grad():
            metric.update(model(torch.tensor([prompt + row])).logits[:, :-1], labels[None])
    for _ in range(2):
        assert perplexity(judge, rows, prompts) == pytest.approx(float(metric.compute()), rel=1e-5)
        monkeypatch.setattr(quality, "_BATCH_LOGITS", 1)
    scores = text_scores(judge, judge.rows(["c d e f"]), contexts=judge.rows(["a b"]))
    assert "perplexity_given_prompt_by_tiny-judge" in scores
    assert not any("generative" in name for name in scores)
    assert scores["entropy_by_tiny-judge"] == pytest.approx(math.log(4))


def test_texts_are_cut_at_the_positions_of_the_judge(judge, folder):
    long = " ".join("abcdefghijklm" * 3)
    assert [len(row) for row in judge.rows([long])] == [NUM_POSITIONS]
    assert [len(row) for row in load_judge(str(folder), max_tokens=5).rows([long])] == [5]


def test_a_text_of_one_token_or_none_is_not_scored(judge):
    rows = judge.rows(["a b c", "a", ""])
    assert [len(row) for row in rows] == [3, 1, 0]
    assert perplexity(judge, rows) == pytest.approx(perplexity(judge, rows[:1]))
    assert perplexity(judge, rows[1:]) is None


def test_entropy_is_the_mean_of_scipys_and_nltks_over_texts():
    draw = np.random.default_rng(3)
    rows = [draw.integers(0, 9, size=draw.integers(1, 40)).tolist() for _ in range(20)]
    by_scipy = np.mean([scipy.stats.entropy(np.bincount(row)) for row in rows])
    by_nltk = np.mean([nltk.probability.entropy(nltk.MLEProbDist(nltk.FreqDist(row))) for row in rows])
    assert unigram_entropy(rows) == pytest.approx(by_scipy)
    assert unigram_entropy(rows) == pytest.approx(by_nltk * math.log(2))  # nltk counts in bits
    assert unigram_entropy([[7] * 50, []]) == 0


def test_repetition_counts_the_n_grams_that_nltk_finds():
    draw = random.Random(5)
    rows = [draw.choices(range(6), k=30) for _ in range(8)] + [[1]]
    found = repetition(rows)
    for n in range(1, 5):
        grams = [gram for row in rows for gram in nltk.ngrams(row, n)]
        assert found[f"distinct_{n}"] == len(nltk.FreqDist(grams)) / len(grams)
    assert found["diversity"] == pytest.approx(
        found["distinct_2"] * found["distinct_3"] * found["distinct_4"])


def test_mauve_is_that_of_its_package_called_directly(judge, folder):
    p, q = judge.rows(texts(60, seed=1)), judge.rows(texts(60, seed=2, words=5))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def features(rows: list[list[int]]) -> np.ndarray:
        with torch.no_grad():
            return np.stack([model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1]
                             for row in rows])

    direct = mauve_text.compute_mauve(p_features=features(p), q_features=features(q), seed=25)
    assert mauve(judge, p, q) == pytest.approx(direct.mauve, abs=1e-6)
    assert 0 < direct.mauve < mauve(judge, p, p)


def test_mauve_does_not_talk(judge, capfd):
    mauve(judge, judge.rows(texts(30, seed=1)), judge.rows(texts(30, seed=2)))
    assert capfd.readouterr() == ("", "")


def test_mauve_takes_as_many_texts_of_either_side_and_refuses_a_handful(judge):
    rows = judge.rows(texts(40, seed=1))
    assert mauve(judge, [*rows, []], rows[:30]) == mauve(judge, rows[:30], rows[:30])
    assert mauve(judge, rows[:19], rows) is None


def test_the_fields_names_are_for_the_fields_judge_alone(judge, folder):
    scores = text_scores(judge, judge.rows(texts(25, seed=1)), judge.rows(texts(25, seed=2)))
    assert {"generative_perplexity_by_tiny-judge", "entropy_by_tiny-judge", "distinct_2_by_tiny-judge",
            "diversity_by_tiny-judge", "mauve_by_tiny-judge"} < set(scores)
    assert not any(name in scores for name in ("generative_perplexity", "entropy", "mauve"))
    hub = Judge(FIELDS_JUDGE, "32b7", judge.model, judge.tokenizer, 12, END)
    assert hub.key("mauve") == "mauve"
    # A folder of that name may hold anything.
    assert Judge("gpt2-large", None, judge.model, judge.tokenizer, 12, END).key("mauve") == \
        "mauve_by_gpt2-large"


def test_no_texts_have_scores_that_json_can_hold(judge):
    scores = text_scores(judge, [])
    assert json.loads(json.dumps(scores, allow_nan=False))["num_texts"] == 0


def test_a_judge_that_is_not_here_is_refused_with_what_to_type():
    with pytest.raises(ConfigError) as caught:
        load_judge("nobody/no-such-judge")
    assert "the judge nobody/no-such-judge cannot be loaded" in caught.value.problem
    assert "hf download openai-community/gpt2-large" in caught.value.fix
    assert "--judge PATH" in caught.value.fix


def test_where_no_hub_answers_a_judge_is_refused_at_once_and_in_our_words_alone(monkeypatch, capfd):
    from huggingface_hub import constants

    with socket.socket() as closed:  # bound, never listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to try again"))
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load_judge("nobody/no-such-judge")
    assert capfd.readouterr() == ("", "")


def test_a_model_that_predicts_no_next_token_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_judge(str(tmp_path))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_model_that_reads_what_comes_after_is_refused(family, tmp_path):
    name = str(save_model(tmp_path / family, family))
    with pytest.raises(ConfigError, match=f"the judge {name} reads what comes after a token, too") as caught:
        load_judge(name)
    assert "such as openai-community/gpt2-large" in caught.value.fix


def test_a_model_without_numbers_is_refused(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_model(tmp_path, "gpt2"))
    torch.nn.init.constant_(model.transformer.ln_f.weight, math.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="gives no numbers: its weights are damaged"):
        load_judge(str(tmp_path))


def test_a_judge_whose_folder_is_not_there_is_no_question_for_the_hub(tmp_path):
    for name in (str(tmp_path / "nothing"), "./nothing"):
        with pytest.raises(ConfigError, match=f"there is no folder {name}"):
            load_judge(name)
