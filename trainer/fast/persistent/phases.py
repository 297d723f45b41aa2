"""What a persistent kernel does in turn: maps of sublayers, each with what it reads and what comes after it.

Shapes: W width, C 128 CTAs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class Kind(IntEnum):
    """As in shape.cuh; `persistent.cu` says what each does."""

    QKV = 0
    ATTEND = 1
    UP = 2
    DOWN = 3
    END_STEP = 4
    END = 5
    KEYS_VALUES = 6
    QUERY = 7
    GATE = 8
    GATED_UP = 9


@dataclass(frozen=True)
class Map:
    """A linear map as the kernel reads it.

    Args:
        kind: Of a map into the residual stream that ends nothing: DOWN or ATTEND.
        matrix: (C, blocks of K, rows, 64) in bf16, or bytes of e4m3, 128 in a row; see layout.py.
        columns: Float32 numbers of its columns, as far as they belong to it.
        scale: What each row of an e4m3 matrix is to be multiplied by, float32, in the order of `columns`.
        context: Which context it makes or reads keys and values of, from 1; 0: those of the stream itself.
    """

    kind: Kind
    matrix: Tensor
    columns: tuple[Tensor, ...]
    context: int = 0
    scale: Tensor | None = None


@dataclass(frozen=True)
class Sublayer:
    """Attention or an MLP: maps one after the other, the last into the residual stream.

    Args:
        gain_W: Of the norm before the first map.
        maps: In order.
    """

    gain_W: Tensor
    maps: tuple[Map, ...]


@dataclass(frozen=True)
class End:
    """Of a step: the stream times `gain_W` is the estimate, z becomes keep z + take estimate, and the stream
    begins again as z + positions + time. Without `time_W`: of all, and the estimate is the result."""

    gain_W: Tensor
    keep: float = 0.0
    take: float = 0.0
    positions_KW: Tensor | None = None
    time_W: Tensor | None = None


@dataclass(frozen=True)
class Phase:
    """A map in its place.

    Args:
        kind: Of the map, or END_STEP, END.
        map: What is computed.
        columns: All of them.
        dep: Phase that writes what it reads; the number of phases: the start before them.
        keys_dep: Phase that writes the keys and values it reads.
        end: What it ends.
    """

    kind: Kind
    map: Map
    columns: tuple[Tensor, ...]
    dep: int
    keys_dep: int
    end: End | None = None


def chained(contexts: Sequence[Map], sublayers: Sequence[tuple[Sublayer, End | None]]) -> list[Phase]:
    """Phases of sublayers in order, after those that make keys and values of a context.

    Args:
        contexts: Their keys and values, the first those of context 1.
        sublayers: And what each ends. The last ends all.
    """
    start = len(contexts) + sum(len(sublayer.maps) for sublayer, _ in sublayers)
    phases = [Phase(found.kind, found, found.columns, start, start) for found in contexts]
    gains = [sublayer.gain_W for sublayer, _ in sublayers]
    stream = start
    for (sublayer, end), next_gain_W in zip(sublayers, [*gains[1:], gains[-1]], strict=True):
        phases.extend(_placed(sublayer, end, next_gain_W, len(phases), stream))
        stream = len(phases) - 1
    return phases


def _placed(sublayer: Sublayer, end: End | None, next_gain_W: Tensor, first: int,
            stream: int) -> Iterator[Phase]:
    *before, last = sublayer.maps
    for found in before:
        yield Phase(found.kind, found, found.columns, stream, stream)
    columns = (*last.columns, next_gain_W)
    if end is not None:
        columns += (end.gain_W,) if end.time_W is None else (end.gain_W, end.time_W)
    dep = first + len(before) - 1
    keys_dep = last.context - 1 if last.context else dep
    yield Phase(_ending(last.kind, end), last, columns, dep, keys_dep, end)


def _ending(kind: Kind, end: End | None) -> Kind:
    if end is None:
        return kind
    return Kind.END if end.time_W is None else Kind.END_STEP
