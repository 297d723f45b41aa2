"""Milliseconds on the GPU, between two events."""

import statistics
from collections.abc import Callable

import torch


def median_ms(work: Callable[[], object], times: int = 20) -> float:
    """The median, after one that does not count."""
    work()
    torch.cuda.synchronize()
    found = []
    for _ in range(times):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return statistics.median(found)


def graph_ms(work: Callable[[], object]) -> float:
    """The same, replayed as one CUDA graph."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return median_ms(graph.replay)
