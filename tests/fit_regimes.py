"""Fits the regimes of `launcher/regimes.py` to recorded availability, and prints them as that file has them.

    python -m tests.fit_regimes FILE.jsonl.gz

Expectation maximisation of a hidden Markov model (Baum-Welch) over pieces of five hours: within one, a
place is in one regime, whose losses and returns are Poisson by age; from one to the next it may change.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from launcher.regimes import AGE_EDGES_H, NUM_AGES, Regimes
from launcher.traces import Trace, read_traces

NUM_REGIMES = 3  # 1 to 16 were tried: held out, 2 to 8 are alike, more are worse
PIECE_H = 5.0
PRIOR_H = 2.0  # hours of what all places do, added to what each regime was seen to do
ITERATIONS = 60


def counts(trace: Trace) -> tuple[np.ndarray, np.ndarray, int]:
    """Changes and hours (pieces, 2 down or up, ages), and whether it was up at first."""
    states = np.repeat([is_up for is_up, _ in trace.runs], [length for _, length in trace.runs]).astype(int)
    looks = np.concatenate([np.arange(1, length + 1) for _, length in trace.runs])
    tick_h = trace.tick_s / 3600
    ages = np.searchsorted(np.array(AGE_EDGES_H) + 0.01, looks * tick_h)[:-1]
    pieces = (np.arange(len(states) - 1) * tick_h / PIECE_H).astype(int)
    shape = (pieces[-1] + 1 if len(pieces) else 1, 2, NUM_AGES)
    changes, hours = np.zeros(shape), np.zeros(shape)
    np.add.at(hours, (pieces, states[:-1], ages), tick_h)
    np.add.at(changes, (pieces, states[:-1], ages), states[1:] != states[:-1])
    return changes, hours, int(states[0])


def fit(traces: Sequence[Trace], num: int = NUM_REGIMES, seeds: Sequence[int] = (0, 1, 2)) -> Regimes:
    """The likeliest of several starts, the regime that is up least first."""
    seen = [counts(trace) for trace in traces]
    found, _ = max((_fit_once(seen, num, seed) for seed in seeds), key=lambda fitted: fitted[1])
    order = np.argsort((found.leave[:, 0] / found.leave.sum(axis=1)).mean(axis=1))
    return Regimes(found.leave[order], found.share[order], found.switch[order][:, order])


def _fit_once(seen: Sequence[tuple[np.ndarray, np.ndarray, int]], num: int, seed: int
              ) -> tuple[Regimes, float]:
    lengths = np.array([len(changes) for changes, _, _ in seen])
    exists = np.arange(lengths.max()) < lengths[:, None]  # (windows, pieces)
    changes, hours = (np.concatenate([each[part] for each in seen]) for part in (0, 1))
    first = np.array([is_up for _, _, is_up in seen])
    overall = (changes.sum(axis=0) + 0.1) / (hours.sum(axis=0) + 0.1)
    belongs = _first_guess(seen, num, np.random.default_rng(seed))
    moves, likelihood = np.full((num, num), 0.1 / num) + 0.9 * np.eye(num), -np.inf
    for _ in range(ITERATIONS):
        leave = ((np.einsum("ck,cua->kua", belongs, changes) + PRIOR_H * overall)
                 / (np.einsum("ck,cua->kua", belongs, hours) + PRIOR_H))
        begins = belongs[np.cumsum(lengths) - lengths]
        share = np.stack([begins[first == is_up].sum(axis=0) + 0.5 for is_up in (0, 1)], axis=1)
        share /= share.sum()
        log_chance = np.einsum("cua,kua->ck", changes, np.log(leave)) - np.einsum("cua,kua->ck", hours, leave)
        belongs, moved, likelihood = _pass(log_chance, exists, share.T[first], moves)
        moves = (moved + 0.05) / (moved + 0.05).sum(axis=1, keepdims=True)
    return Regimes(leave, share, moves / PIECE_H * (1 - np.eye(num))), likelihood


def _first_guess(seen: Sequence[tuple[np.ndarray, np.ndarray, int]], num: int, rng: np.random.Generator
                 ) -> np.ndarray:
    """(pieces, K): windows near one of K windows, by the share of time up and by changes an hour."""
    features = np.array([[hours[:, 1].sum() / hours.sum(), np.log(changes.sum() / hours.sum() + 0.02) / 4]
                         for changes, hours, _ in seen])
    middles = features[rng.choice(len(features), num, replace=False)]
    nearest = ((features[:, None] - middles) ** 2).sum(axis=2).argmin(axis=1)
    return np.repeat(np.eye(num)[nearest] * 0.9 + 0.1 / num, [len(changes) for changes, _, _ in seen], axis=0)


def _pass(log_chance: np.ndarray, exists: np.ndarray, start: np.ndarray, moves: np.ndarray
          ) -> tuple[np.ndarray, np.ndarray, float]:
    """Forward and backward through all windows at once: chances of regimes, moves, log-likelihood."""
    most = log_chance.max(axis=1, keepdims=True)
    chance = np.ones((*exists.shape, len(moves)))
    chance[exists] = np.exp(log_chance - most)
    ahead, behind = np.empty_like(chance), np.ones_like(chance)
    likelihood, before = float(most.sum()), start
    for piece in range(exists.shape[1]):
        joint = before * chance[:, piece]
        total = joint.sum(axis=1, keepdims=True)
        likelihood += float(np.log(total)[exists[:, piece]].sum())
        ahead[:, piece] = joint / total
        before = ahead[:, piece] @ moves
    moved = np.zeros_like(moves)
    for piece in reversed(range(exists.shape[1] - 1)):
        after = np.where(exists[:, piece + 1, None], chance[:, piece + 1] * behind[:, piece + 1], 1.0)
        behind[:, piece] = after @ moves.T
        behind[:, piece] /= behind[:, piece].sum(axis=1, keepdims=True)
        pairs = ahead[:, piece, :, None] * moves * after[:, None]
        moved += (pairs / pairs.sum(axis=(1, 2), keepdims=True))[exists[:, piece + 1]].sum(axis=0)
    both = ahead * behind
    return (both / both.sum(axis=2, keepdims=True))[exists], moved, likelihood


def main(path: str) -> None:
    """Print the table."""
    found = fit(read_traces(Path(path))[0])
    for name in ("leave", "share", "switch"):
        digits = 2 if name == "leave" else 3
        print(f"{name}=np.array({np.round(getattr(found, name), digits).tolist()})")


if __name__ == "__main__":
    main(*sys.argv[1:])
