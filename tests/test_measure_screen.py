"""What a person reads of an evaluation, whole."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from trainer.measure_screen import best_of, headline, screen  # noqa: E402


def scores(perplexity: float | None, entropy: float, mauve: float | None = 0.4) -> dict[str, Any]:
    return {"generative_perplexity_by_j": perplexity, "entropy_by_j": entropy, "distinct_2_by_j": 0.5,
            "mauve_by_j": mauve, "num_texts": 64, "tokens_per_text": 60.0, "rows_with_end": 0.25}


def sampling(steps: int, perplexity: float | None, entropy: float, speed: float,
             **more: Any) -> dict[str, Any]:
    return {"setting": {"steps": steps, "temperature": 1.0}, "batch": 32, "tokens_per_s_batch_1": speed,
            "tokens_per_s_batch_32": 10 * speed, **scores(perplexity, entropy), **more}


def result(**more: Any) -> dict[str, Any]:
    return {"parameters": 5_200_000, "judge": {"name": "/judges/j"}, "panel": {"clean": {"accuracy": 0.987}},
            "reference": scores(31.2, 3.7, None),
            "frontier": [sampling(4, 2345.6, 3.21, 9000.0), sampling(16, 456.7, 3.4, 3000.0)], **more}


def beside(parameters: int = 6_000_000, **more: Any) -> dict[str, Any]:
    return {"name": "gpt", "random_weights": False, "parameters": parameters,
            **sampling(1, 88.8, 3.48, 400.0), **more}


def test_a_trained_model_has_a_line_and_the_last_sentence_says_speed_at_a_quality() -> None:
    assert screen(result(autoregressive=beside()), Path("out")) == """\
held-out tokens that come back:
  clean 98.7%
perplexity by /judges/j, of 64 texts each; tokens/s at batch 1 and 32:
  steps  temp.  perplexity  entropy  dist. 2  ends  MAUVE    batch 1   batch 32
      4      1     2,345.6     3.21    0.500   25%   0.40      9,000     90,000
     16      1       456.7     3.40    0.500   25%   0.40      3,000     30,000
  autoregressive      88.8     3.48    0.500   25%   0.40        400      4,000
   held-out text      31.2     3.70    0.500   25%      -
  MAUVE of 64 texts: says little
wrote evaluation.json, evaluation.png and samples.json to out
3,000 tokens/s (30,000 at batch 32) at perplexity 456.7, entropy 3.40 (16
  steps); autoregressive: 400 tokens/s (4,000 at batch 32) at perplexity 88.8,
  entropy 3.48; it has 6.0 M parameters, this model 5.2 M"""


def test_without_another_model_the_last_sentence_is_ours_alone() -> None:
    assert headline(result()) == (
        "3,000 tokens/s (30,000 at batch 32) at perplexity 456.7, entropy 3.40 (16 steps)")
    doubtful = result(frontier=[sampling(4, 31.0, 3.7, 9.0)])
    assert headline(doubtful).endswith("(4 steps); held-out text has perplexity 31.2: this judge says little")
    warm = result(frontier=[sampling(4, 50.0, 3.0, 9.0, batch=1, setting={"steps": 4, "temperature": 0.9})])
    assert headline(warm) == "9 tokens/s at perplexity 50.0, entropy 3.00 (4 steps, temperature 0.9)"
    assert headline(result(frontier=[sampling(4, None, 0.0, 9.0)])) == "no text of this model could be scored"


def test_the_best_is_the_lowest_perplexity_at_the_entropy_of_held_out_text_or_next_to_it() -> None:
    texts = [sampling(1, 20.0, 2.0, 1.0), sampling(2, 300.0, 3.65, 1.0), sampling(4, 250.0, 3.79, 1.0),
             sampling(8, 100.0, 3.59, 1.0), sampling(16, 90.0, 3.9, 1.0)]
    chosen = []
    while texts:  # the reference has 3.7
        best = best_of(result(frontier=texts))
        texts.remove(best)
        chosen.append(best["setting"]["steps"])
    assert chosen == [4, 2, 8, 16, 1]


def test_another_entropy_is_said() -> None:
    assert headline(result(autoregressive=beside(entropy_by_j=3.51))).endswith(
        "this model 5.2 M; at unlike entropies perplexities compare little")


def test_random_weights_are_said_to_mean_nothing_and_have_no_line() -> None:
    random = {"name": None, "random_weights": True, "parameters": 5_300_000, "tokens_per_s_batch_1": 500.0,
              "tokens_per_s_batch_32": 7000.0}
    said = screen(result(autoregressive=random), Path("out"))
    assert "\n  autoregressive" not in said
    assert " ".join(said.split()).endswith(
        "; autoregressive, 5.3 M parameters beside 5.2 M: 500 tokens/s (7,000 at batch 32), with random "
        "weights, whose text means nothing")


@pytest.mark.parametrize(("parameters", "said"), [
    (10_400_000, "it has 10.4 M parameters, this model 5.2 M"),
    (10_500_000, "it has 10.5 M parameters, this model 5.2 M, which is not comparable: 2.0 times"),
    (1_300_000, "it has 1.3 M parameters, this model 5.2 M, which is not comparable: 4.0 times"),
])
def test_another_size_is_said(parameters: int, said: str) -> None:
    assert headline(result(autoregressive=beside(parameters))).endswith(said)


def test_longer_texts_of_another_tokenizer_are_said() -> None:
    assert headline(result(autoregressive=beside(tokens_per_text=75.0))).endswith(
        "; the judge reads 75 tokens in a text of it, 60 in one of this model")
    assert headline(result(autoregressive=beside(tokens_per_text=62.0))).endswith("this model 5.2 M")
