"""A 5-gram model with interpolated Kneser-Ney smoothing, as a baseline. Needs no GPU.

    python tests/baselines/ngram.py STORE OUT [--seed 0]

nltk.lm, which its tests compare it with, would take hours for these samples: here everything is arrays. A
temperature other than 1 needs every chance and is 30 times slower, which is no fault of the model: sharpened
counts could be stored once. So the speed of every setting is that of temperature 1.

Shapes: N rows, L tokens, G different n-grams of an order, C different contexts, V ids. A context is a
number in base V + 1, so four ids of 15 bits fit into 63 bits.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from prepared_rows import read_rows
from record import generation, options_of, speeds_of, write

ORDER = 5


@dataclass(frozen=True)
class Order:
    """Counts of one order: how often a word follows a context.

    Of the highest order they are plain; of lower ones, the number of different words before (Kneser-Ney).

    Attributes:
        contexts_C: Sorted.
        first_C: Where the words of a context begin; one more than there are contexts.
        words_G, counts_G: Of each context in turn; words sorted.
        sums_G: Running sum of discounted counts, over all contexts.
        discount: Taken off every count, n1 / (n1 + 2 n2) (Ney, Essen and Kneser, 1994); 0 without context.
    """

    contexts_C: np.ndarray
    first_C: np.ndarray
    words_G: np.ndarray
    counts_G: np.ndarray
    sums_G: np.ndarray
    discount: float


class KneserNey:
    """Interpolated Kneser-Ney over rows that begin with special ids.

    Args:
        rows_NL: Training rows of ids below `num_ids`; every id must occur.
        num_ids: V; that id itself is the special one.
        order: Longest n-gram.
        discount: For every order instead of the estimate.
    """

    def __init__(self, rows_NL: np.ndarray, num_ids: int, order: int = ORDER,
                 discount: float | None = None) -> None:
        if (num_ids + 1) ** (order - 1) >= 2**63:
            sys.exit(f"contexts of {order - 1} of {num_ids} ids do not fit into 63 bits")
        self.num_ids, self.order = num_ids, order
        self._orders = self._count(rows_NL, discount)
        self._start = np.full(order - 1, num_ids)

    @property
    def num_counts(self) -> int:
        """Different n-grams of all orders: what this model has for parameters."""
        return sum(len(order.words_G) for order in self._orders)

    def _count(self, rows_NL: np.ndarray, discount: float | None) -> list[Order]:
        """Orders 1 to the highest."""
        padded = np.pad(rows_NL, ((0, 0), (self.order - 1, 0)), constant_values=self.num_ids)
        grams = np.lib.stride_tricks.sliding_window_view(padded, self.order, axis=1).reshape(-1, self.order)
        keys, words = self._key(grams[:, :-1]), grams[:, -1]
        keys, words, counts = _unique(keys, words, np.ones(len(words), dtype=np.int64))
        orders = [_order(keys, words, counts, discount)]
        for n in range(self.order - 1, 0, -1):
            # Without its first word: each different n-gram of the order above counts once.
            keys, words, counts = _unique(keys % (self.num_ids + 1) ** (n - 1), words, np.ones_like(words))
            orders.append(_order(keys, words, counts, discount if n > 1 else 0.0))
        return orders[::-1]

    def _key(self, contexts: np.ndarray) -> np.ndarray:
        powers = (self.num_ids + 1) ** np.arange(contexts.shape[1] - 1, -1, -1, dtype=np.int64)
        return contexts.astype(np.int64) @ powers

    def probabilities(self, contexts: np.ndarray) -> np.ndarray:
        """Chances of every id after some contexts: (B, order - 1) ids -> (B, V)."""
        chances = np.zeros((len(contexts), self.num_ids))
        for n, (order, places, known) in enumerate(self._places(contexts)):
            if n == 0:
                chances[:] = np.bincount(order.words_G, order.counts_G, self.num_ids) / order.counts_G.sum()
                continue
            for row in np.flatnonzero(known):
                here = slice(order.first_C[places[row]], order.first_C[places[row] + 1])
                counts = order.counts_G[here]
                chances[row] *= order.discount * len(counts) / counts.sum()
                chances[row, order.words_G[here]] += (counts - order.discount).clip(min=0) / counts.sum()
        return chances

    def _places(self, contexts: np.ndarray) -> "list[tuple[Order, np.ndarray, np.ndarray]]":
        """Of each order, lowest first: where the contexts are, and which of them are there at all."""
        found = []
        for n, order in enumerate(self._orders):
            keys = self._key(contexts[:, self.order - 1 - n:])
            places = np.searchsorted(order.contexts_C, keys).clip(max=len(order.contexts_C) - 1)
            found.append((order, places, order.contexts_C[places] == keys))
        return found

    def heldout_loss(self, rows_NL: np.ndarray) -> float:
        """Mean negative log-likelihood of the known ids of rows, nats."""
        padded = np.pad(rows_NL, ((0, 0), (self.order - 1, 0)), constant_values=self.num_ids)
        grams = np.lib.stride_tricks.sliding_window_view(padded, self.order, axis=1).reshape(-1, self.order)
        grams = grams[grams[:, -1] < self.num_ids]
        return -float(np.log(self._likelihoods(grams[:, :-1], grams[:, -1])).mean())

    def _likelihoods(self, contexts: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The chance of one word after each context."""
        chances = np.zeros(len(words))
        for n, (order, places, known) in enumerate(self._places(contexts)):
            pairs = order.words_G + self.num_ids * np.repeat(np.arange(len(order.contexts_C)),
                                                             np.diff(order.first_C))
            wanted = words + self.num_ids * places
            at = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
            counts = np.where(pairs[at] == wanted, order.counts_G[at], 0)
            first, last = order.first_C[places], order.first_C[places + 1]
            totals = np.add.reduceat(order.counts_G, order.first_C[:-1])[places]
            mixed = (counts - order.discount).clip(min=0) / totals
            if n:
                mixed += order.discount * (last - first) / totals * chances
            chances = np.where(known, mixed, chances)
        return chances

    def sample(self, num: int, length: int, seed: int, temperature: float = 1.0) -> np.ndarray:
        """Rows (num, L)."""
        random = np.random.default_rng(seed)
        rows = np.tile(self._start, (num, 1))
        for _ in range(length):
            contexts = rows[:, len(rows[0]) - self.order + 1:]
            words = (self._draw(contexts, random) if temperature == 1.0
                     else _draw_from(self.probabilities(contexts) ** (1 / temperature), random))
            rows = np.column_stack([rows, words])
        return rows[:, self.order - 1:]

    def _draw(self, contexts: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """One word after each context, without working out the chances of all others.

        From the highest order down: a point on the context's counts is a word, or lies in what the
        discount took off; then the next order draws.
        """
        words = np.full(len(contexts), -1)
        for order, places, known in reversed(self._places(contexts)):
            first, last = order.first_C[places], order.first_C[places + 1]
            before = np.where(first > 0, order.sums_G[first - 1], 0.0)
            kept = order.sums_G[last - 1] - before
            points = random.random(len(words)) * (kept + order.discount * (last - first))
            hits = (words < 0) & known & (points < kept)
            at = np.searchsorted(order.sums_G, before + points, side="right")
            # Rounding of the running sum must not lead into a neighbour's words.
            words = np.where(hits, order.words_G[at.clip(first, last - 1)], words)
        return words


def _unique(keys: np.ndarray, words: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Different pairs, sorted, with their counts added up."""
    order = np.lexsort((words, keys))
    keys, words = keys[order], words[order]
    is_first = np.append(True, (np.diff(keys) != 0) | (np.diff(words) != 0))
    return keys[is_first], words[is_first], np.add.reduceat(counts[order], np.flatnonzero(is_first))


def _order(keys: np.ndarray, words: np.ndarray, counts: np.ndarray, discount: float | None) -> Order:
    if discount is None:
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = float(once / max(1, once + 2 * twice))
    contexts, first = np.unique(keys, return_index=True)
    return Order(contexts, np.append(first, len(keys)), words, counts,
                 np.cumsum((counts - discount).clip(min=0)), discount)


def _draw_from(weights_BV: np.ndarray, random: np.random.Generator) -> np.ndarray:
    sums_BV = weights_BV.cumsum(axis=1)
    points_B = random.random(len(sums_BV)) * sums_BV[:, -1]
    return (sums_BV <= points_B[:, None]).sum(axis=1).clip(max=sums_BV.shape[1] - 1)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Count, sample at every temperature, write the record."""
    options = options_of(__doc__ or "", argv)
    rows = read_rows(options.store, options.text, options.length)
    began = time.monotonic()
    model = KneserNey(rows.train_NL, rows.special)
    seconds = time.monotonic() - began

    def generate(temperature: float) -> Any:
        return lambda num, seed: model.sample(num, options.length, seed, temperature)

    speeds = speeds_of(generate(1.0), options.samples, options.seed)
    record = {
        "model": "ngram", "seed": options.seed, "device": "cpu", "steps": 1, "train_seconds": seconds,
        "parameters": model.num_counts,
        "heldout_perplexity": float(np.exp(model.heldout_loss(rows.heldout_NL))), "heldout_is": "exact",
        "generations": [generation(rows, generate(temperature), options.samples, options.seed,
                                   {"temperature": temperature}, "float64", speeds)
                        for temperature in options.temperatures]}
    write(options.out, record)
    return record


if __name__ == "__main__":
    main()
    sys.exit(0)
