"""What a judge reads of rows of tokens. The one way there, for samples, baselines and held-out text alike.

Rows are read whole, as the field does (MDLM, Duo): what stands behind an end of text is text too, and the
end is the judge's own where it has one. Cut at the first end, rows would differ in length, and with it in
entropy and repetition. Shapes: N rows, L tokens.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer.quality import Judge, Row, text_scores
from trainer.trunk import quiet


class JudgeRows(NamedTuple):
    """Ids of the judge for each row: of its prompt, which are read only, and of the rest."""

    contexts: list[list[int]]
    rows: list[list[int]]


@dataclass(frozen=True)
class RowJudge:
    """A judge of rows in another tokenizer's ids.

    Attributes:
        judge: Who scores.
        tokenizer: Of the rows.
        end_of_text_id: Where one document ends and the next one begins.
    """

    judge: Judge
    tokenizer: Any
    end_of_text_id: int

    def rows(self, tokens_NL: Sequence[Row], num_prompt: int = 0) -> JudgeRows:
        """The judge's ids of whole rows, each cut to its `max_tokens`.

        A document becomes text in one piece, prompt included: apart, a word across the border would be
        two. The judge's token that reaches over the border belongs to the rest. Where a row begins inside
        a word, that word is left out: no text begins with a piece of one.

        Args:
            tokens_NL: Rows.
            num_prompt: Tokens of each that were given; no document ends among them.
        """
        rows = [list(row) for row in tokens_NL]
        dropped = [self._num_continuing(row) for row in rows]
        documents = [self._documents(row[num:]) for row, num in zip(rows, dropped, strict=True)]
        encoded = self._encoded(list(itertools.chain(*documents)))
        found = JudgeRows([], [])
        for row, num, texts in zip(rows, dropped, documents, strict=True):
            pieces = list(itertools.islice(encoded, len(texts)))
            border = _border(self._text(row[num:num_prompt]), texts[0]) if num < num_prompt else 0
            num_read = sum(end <= border for _, end in pieces[0][1]) if border else 0
            ids = self._joined([ids for ids, _ in pieces])
            found.contexts.append(ids[:num_read])
            found.rows.append(ids[num_read:])
        return found

    def scores(self, tokens_NL: Sequence[Row], reference: Sequence[Row] = (),
               num_prompt: int = 0) -> dict[str, float | None]:
        """All metrics of some rows: `text_scores`, and where they end.

        Args:
            tokens_NL: Rows.
            reference: Rows of the judge, for MAUVE.
            num_prompt: As in `rows`.
        """
        read = self.rows(tokens_NL, num_prompt)
        own = [row[num_prompt:] for row in tokens_NL]
        return (text_scores(self.judge, read.rows, reference, contexts=read.contexts if num_prompt else ())
                | endings(own, self.end_of_text_id))

    def _encoded(self, texts: list[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Ids of each text, and the characters that each of them stands for."""
        if not texts:
            return
        with quiet():
            found = self.judge.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        yield from zip(found["input_ids"], found["offset_mapping"], strict=True)

    def _joined(self, documents: list[list[int]]) -> list[int]:
        end = [] if self.judge.end_id is None else [self.judge.end_id]
        ids = documents[0] + [token for ids in documents[1:] for token in (*end, *ids)]
        return ids[:self.judge.max_tokens]

    def _documents(self, row: list[int]) -> list[str]:
        """Texts between the ends of a row; one more than there are ends, the last often empty."""
        ends = [place for place, token in enumerate(row) if token == self.end_of_text_id]
        return [self._text(row[first + 1:last])
                for first, last in itertools.pairwise((-1, *ends, len(row)))]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _num_continuing(self, row: list[int]) -> int:
        """How many tokens a row begins with that only go on with a word (WordPiece marks them)."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        prefix = getattr(getattr(backend, "model", None), "continuing_subword_prefix", None)
        if not prefix:
            return 0
        return sum(1 for _ in itertools.takewhile(
            lambda token: self.tokenizer.convert_ids_to_tokens(token).startswith(prefix), row))


def _border(prompt: str, whole: str) -> int:
    """How many characters of a text were its prompt's.

    Detokenizers leave blanks out, also where prompt and rest meet: other characters are counted then.
    """
    if whole.startswith(prompt):
        return len(prompt)
    wanted = sum(not sign.isspace() for sign in prompt)
    seen = itertools.accumulate(not sign.isspace() for sign in whole)
    return next((place for place, num in enumerate(seen, 1) if num == wanted), len(whole))


def endings(tokens_NL: Sequence[Row], end_of_text_id: int) -> dict[str, float | None]:
    """Where rows end, in their own tokens.

    Returns:
        tokens_to_end: before the first end of text, all of a row without one; mean over rows
        rows_with_end: share of rows, in [0, 1]
    """
    rows = [list(row) for row in tokens_NL]
    if not rows:
        return {"tokens_to_end": None, "rows_with_end": None}
    lengths = [row.index(end_of_text_id) if end_of_text_id in row else len(row) for row in rows]
    return {"tokens_to_end": sum(lengths) / len(rows),
            "rows_with_end": sum(end_of_text_id in row for row in rows) / len(rows)}
