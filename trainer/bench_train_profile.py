"""Which kernels a training step spends its time in, by torch's profiler, in groups that name a lever.

On a GPU only the device is watched: to watch the host, too, would slow it down, and gaps would be its own.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch.profiler import ProfilerActivity, profile

from trainer.bench_limits import wait_for

# The first pattern that a kernel's name holds decides; names are of CUDA, cuBLAS, CUTLASS, Triton and aten.
_GROUPS: dict[str, str] = {
    "copies": r"memcpy|memset|copy_kernel|direct_copy|aten::copy_|aten::to$|CatArray|aten::cat$|aten::clone",
    "optimizer": r"multi_tensor|foreach|adam|lerp",
    "linear attention": r"delta_rule|chunk_|gdn|l2norm|solve_tril|recompute_w_u|cumsum|causal_conv|conv[12]d"
                        r"|conv_depthwise|convol|wy_fast",
    "experts": r"Grouped|GroupProblem|grouped_mm|moe|expert|^_combined$|^_choose$",
    "vocabulary loss": r"^_summed$|^_differentiated$",
    "attention": r"flash|fmha|attention|cudnn.*sdpa|softmax_warp|dot_do_o|convert_dq",
    "matrix products": r"gemm|nvjet|cublas|cutlass|splitK|wgmma|aten::(add|b|ba)?mm$|aten::linear|dot_k",
    "sorting and indexing": r"sort|topk|index|gather|scatter|radix|histogram|nonzero|embedding|bincount",
    "random numbers": r"distribution|philox|aten::(normal_|randn|random_)",
    "reductions and norms": r"norm|GammaBeta|reduce|softmax|mean|aten::sum|aten::max",
    "element-wise": r"elementwise|vectorized|triton_|pointwise|^_gated|aten::",
}
OTHER = "other"


class Kernel(BaseModel):
    """All calls of one kernel."""

    model_config = ConfigDict(frozen=True)
    name: str
    group: str
    num_calls: int
    total_s: float


class Kernels(BaseModel):
    """One step by its kernels.

    Attributes:
        wall_s: From the first kernel's begin to the last one's end.
        idle_s: Of that in which none ran.
        groups: Seconds of each, the longest first; they overlap where streams do.
        kernels: The longest first.
    """

    model_config = ConfigDict(frozen=True)
    wall_s: float
    idle_s: float
    groups: dict[str, float]
    kernels: tuple[Kernel, ...]


class Ran(NamedTuple):
    """One call of a kernel, in seconds of any clock."""

    name: str
    begin: float
    end: float


def kernels_of(work: Callable[[], object], device: torch.device) -> Kernels:
    """What some work runs on the device; on a CPU, operations of torch by the time of their own."""
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]
    with profile(activities=activities, acc_events=True):  # the first one has to load what watches
        torch.zeros(1, device=device)
        wait_for(device)
    with profile(activities=activities, acc_events=True) as profiler:
        work()
        wait_for(device)
    events = [event for event in profiler.events() if not getattr(event, "is_user_annotation", False)]
    return summed(_on_device(events) if is_cuda else _on_cpu(events))


def _on_device(events: Iterable[Any]) -> list[Ran]:
    cuda = torch.autograd.DeviceType.CUDA
    return [Ran(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6) for event in events
            if event.device_type == cuda]


def _on_cpu(events: Iterable[Any]) -> list[Ran]:
    """Operations hold others: each is taken to end when its own time is over."""
    return [Ran(event.name, event.time_range.start / 1e6,
                event.time_range.start / 1e6 + event.self_cpu_time_total / 1e6) for event in events]


def summed(ran: Iterable[Ran]) -> Kernels:
    """Calls by kernel and by group, and the time between them."""
    in_order = sorted(ran, key=lambda call: call.begin)
    totals: dict[str, tuple[int, float]] = {}
    idle, busy_until = 0.0, in_order[0].begin if in_order else 0.0
    began = busy_until
    for name, begin, end in in_order:
        num, total = totals.get(name, (0, 0.0))
        totals[name] = num + 1, total + end - begin
        idle += max(0.0, begin - busy_until)
        busy_until = max(busy_until, end)
    kernels = [Kernel(name=name, group=group_of(name), num_calls=num, total_s=total)
               for name, (num, total) in totals.items()]
    groups: dict[str, float] = {}
    for kernel in kernels:
        groups[kernel.group] = groups.get(kernel.group, 0.0) + kernel.total_s
    return Kernels(wall_s=busy_until - began, idle_s=idle,
                   groups=dict(sorted(groups.items(), key=lambda item: -item[1])),
                   kernels=tuple(sorted(kernels, key=lambda kernel: -kernel.total_s)))


def group_of(name: str) -> str:
    """The group of a kernel by its name."""
    fitting = (group for group, pattern in _GROUPS.items() if re.search(pattern, name, re.IGNORECASE))
    return next(fitting, OTHER)
