"""What a persistent kernel is told to do, done by plain arithmetic: an interpreter of its phases.

Written from the rules that persistent.cu and layout.py state in words, in NumPy and float64; it shares no
code with what packs weights and chains phases.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

NUM_CTAS, NUM_HEADS, NUM_TILES = 128, 8, 16


def unswizzled(blocks: np.ndarray) -> np.ndarray:
    """Blocks of 128 bytes a row as they were: row r, 16-byte unit u lies at unit u XOR (r mod 8)."""
    rows = np.arange(blocks.shape[-2])[:, None]
    at = np.arange(8)[None] ^ rows % 8
    units = blocks.reshape(*blocks.shape[:-1], 8, -1)
    at = at.reshape(*[1] * (blocks.ndim - 2), -1, 8, 1)
    return np.take_along_axis(units, at, axis=-2).reshape(blocks.shape)


def unpaired(tiles: np.ndarray, num_columns: int) -> np.ndarray:
    """Rows (128 x num_columns, K) of a map whose K is split over a pair, in the order of the CTAs that finish
    them; columns that were filled up with zeros are left out."""
    ctas, blocks, rows, columns = tiles.shape
    halves = unswizzled(tiles).transpose(0, 2, 1, 3).reshape(ctas // 2, 2, rows, blocks * columns)
    whole = np.concatenate([halves[:, 0], halves[:, 1]], axis=-1)  # pair, row, K
    group_cta = whole.reshape(ctas // 2, 2, 2, rows // 4, -1)
    return group_cta.transpose(0, 2, 1, 3, 4).reshape(ctas, rows // 2, -1)[:, :num_columns].reshape(
        ctas * num_columns, -1)


def untiled(tiles: np.ndarray) -> np.ndarray:
    """A map (W, K) into the residual stream: CTA 16 a + 2 s + b has rows of tile 2 a + b and part s of K."""
    _, blocks, rows, columns = tiles.shape
    own = unswizzled(tiles).transpose(0, 2, 1, 3).reshape(8, 8, 2, rows, blocks * columns)
    return own.transpose(0, 2, 3, 1, 4).reshape(NUM_TILES * rows, 8 * blocks * columns)


def numbers(phase: Any) -> np.ndarray:
    """The tiles of a phase's matrix: bf16, or bytes of e4m3."""
    import torch

    matrix = phase.map.matrix
    return (matrix.view(torch.float8_e4m3fn) if matrix.dtype == torch.uint8 else matrix).double().numpy()


def scaled(rows: np.ndarray, phase: Any) -> np.ndarray:
    """Rows of a map as they are meant."""
    return rows if phase.map.scale is None else rows * phase.map.scale.double().numpy()[:, None]


class PhaseMachine:
    """The state that phases change: stream, noisy latents, queries, keys, values, inner channels of the MLP.

    Args:
        phases: Of the kernel.
        begin: What the stream is before the first: z0, and what is added to it.
        gain: Of the first norm.
        context: That keys and values are made of, normalised.
    """

    def __init__(self, phases: Sequence[Any], begin: tuple[np.ndarray, np.ndarray], gain: np.ndarray,
                 context: np.ndarray | None) -> None:
        self.z, added = begin
        self.stream, self.gain, self.context = self.z + added, gain, context
        self.width = self.stream.shape[1]
        self.keys_values: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.queries = self.hidden = self.found = np.zeros(0)
        for phase in phases:
            self._columns = [column.double().numpy() for column in phase.columns]
            getattr(self, f"_{phase.kind.name.lower()}")(phase)

    def _qkv(self, phase: Any) -> None:
        parts = self._heads(self._normed(phase, 3), 3)
        self.queries, self.keys_values[0] = parts[0] * self._columns[2], (parts[1], parts[2])
        self._unscaled = parts[0]

    def _query(self, phase: Any) -> None:
        self._unscaled = self._heads(self._normed(phase, 1), 1)[0]
        self.queries = self._unscaled * self._columns[2]

    def _keys_values(self, phase: Any) -> None:
        rows = scaled(unpaired(numbers(phase), 2 * self.width // NUM_CTAS), phase)
        parts = self._heads(self.context @ rows.T + self._columns[0], 2)
        self.keys_values[phase.map.context] = parts[0], parts[1]

    def _up(self, phase: Any) -> None:
        from torch import from_numpy
        from torch.nn.functional import gelu

        self.hidden = gelu(from_numpy(self._normed(phase, 4))).numpy()

    def _gate(self, phase: Any) -> None:
        gate = self._normed(phase, 4)
        self.hidden = gate / (1 + np.exp(-gate))

    def _gated_up(self, phase: Any) -> None:
        self.hidden = self.hidden * self._normed(phase, 4)

    def _attend(self, phase: Any) -> None:
        keys, values = self.keys_values[phase.map.context]
        scores = np.einsum("qhd,khd->hqk", self.queries / _rms(self._unscaled), keys / _rms(keys))
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        self._add(np.einsum("hqk,khd->qhd", shares, values).reshape(-1, self.width), phase)

    def _down(self, phase: Any) -> None:
        self._add(self.hidden, phase)

    def _end_step(self, phase: Any) -> None:
        self._add(self.hidden, phase)
        estimate = self.stream * self._columns[2]
        self.z = phase.end.keep * self.z + phase.end.take * estimate
        self.stream = self.z + phase.end.positions_KW.double().numpy() + self._columns[3]

    def _end(self, phase: Any) -> None:
        self._add(self.hidden, phase)
        self.found = self.stream * self._columns[2]

    def _add(self, read: np.ndarray, phase: Any) -> None:
        self.stream = self.stream + read @ scaled(untiled(numbers(phase)), phase).T + self._columns[0]
        self.gain = self._columns[1]

    def _normed(self, phase: Any, num_parts: int) -> np.ndarray:
        """A map behind a norm, from what the kernel has: the stream times the gain, and its statistics."""
        rows = scaled(unpaired(numbers(phase), num_parts * self.width // NUM_CTAS), phase)
        mean = self.stream.mean(1, keepdims=True)
        deviation = np.sqrt(self.stream.var(1, keepdims=True) + 1e-5)
        bias, colsum = self._columns[:2]
        return ((self.stream * self.gain) @ rows.T - mean * colsum) / deviation + bias

    def _heads(self, finished: np.ndarray, num_parts: int) -> np.ndarray:
        """Parts (num_parts, positions, heads, channels): 16 CTAs share a head, each has channels of all."""
        by_cta = finished.reshape(len(finished), NUM_HEADS, NUM_CTAS // NUM_HEADS, num_parts, -1)
        return by_cta.transpose(3, 0, 1, 2, 4).reshape(num_parts, len(finished), NUM_HEADS, -1)


def _rms(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).mean(-1, keepdims=True))
