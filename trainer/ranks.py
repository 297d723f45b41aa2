"""What one rank is: its process group, and the GPUs that are its own."""

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed as dist

from trainer.contract import ConfigError, LdlmError

_T = TypeVar("_T")


def init_process_group(backend: str | None = None, **rendezvous: Any) -> None:
    """Join the other ranks; no compiler needed.

    Args:
        backend: None: gloo for what lies in host memory, nccl for the GPUs.
        rendezvous: As of torch; by default what torchrun has put into the environment.
    """
    import deepspeed.ops

    # On CPU, DeepSpeed would compile a shared-memory op at start-up: 75 s, and a compiler we cannot
    # count on. The table is private, so a version that lacks it is none of our business.
    table = getattr(deepspeed.ops, "__compatible_ops__", {})
    if "deepspeed_shm_comm" in table:
        table["deepspeed_shm_comm"] = False
    usual = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend or usual, **rendezvous)


def meet() -> None:
    """Return when every rank has come here. A collective."""
    dist.all_reduce(torch.zeros(1))


def by_first_rank(work: Callable[[], _T]) -> _T:
    """What rank 0 has found, on every rank. A collective.

    Raises:
        LdlmError: On every rank, where rank 0's work has raised one.
    """
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            found = [work()]
        except LdlmError as error:
            found = [error]
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], LdlmError):
        raise found[0]
    return found[0]


def own_devices(gpus_per_rank: int) -> list[torch.device]:
    """The GPUs of this rank, the one that it trains on first; without any GPU, the CPU.

    Raises:
        ConfigError: The node has fewer GPUs than its ranks take.
    """
    if not torch.cuda.is_available():
        return [torch.device("cpu")] * gpus_per_rank
    first = int(os.environ["LOCAL_RANK"]) * gpus_per_rank
    if first + gpus_per_rank > torch.cuda.device_count():
        raise ConfigError(f"rank {os.environ['LOCAL_RANK']} of this node takes {gpus_per_rank} GPUs from "
                          f"number {first}, but the node has {torch.cuda.device_count()}",
                          place="token_encoder.placement",
                          fix="launch with fewer ranks, or with `placement: gpu`, which takes one each")
    torch.cuda.set_device(first)
    # DeepSpeed puts its engine on the GPU with this number.
    os.environ["LOCAL_RANK"] = str(first)
    return [torch.device("cuda", first + i) for i in range(gpus_per_rank)]


class TorchPeers:
    """The ranks of the process group, for `trainer/commit.py`."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._store: dist.Store = dist.distributed_c10d._get_default_store()

    def gather(self, own: _T) -> list[_T]:
        """What every rank has said, by rank. A collective."""
        seen = [own] * self.world_size
        dist.all_gather_object(seen, own)
        return seen

    def tell_failure(self, key: str) -> None:
        """Let the others find a failure under its name."""
        self._store.set(key, "failed")

    def has_failed(self, key: str) -> bool:
        """Whether somebody has told of it."""
        return self._store.check([key])


class Shared(NamedTuple):
    """Something that must be the same on every rank.

    Attributes:
        what: In words.
        fingerprint: Equal where it is the same.
    """

    what: str
    fingerprint: str


def require_same(by_place: Mapping[str, Shared]) -> None:
    """Refuse to train where ranks would not do the same. A collective.

    Args:
        by_place: Which setting of the recipe each comes from; the same settings on every rank.

    Raises:
        ConfigError: One differs, on every rank alike; names where.
    """
    own = (socket.gethostname(), [shared.fingerprint for shared in by_place.values()])
    seen = [own] * dist.get_world_size()
    dist.all_gather_object(seen, own)
    first_host, expected = seen[0]
    for index, (place, shared) in enumerate(by_place.items()):
        others = [f"rank {rank} ({host})" for rank, (host, found) in enumerate(seen)
                  if found[index] != expected[index]]
        if others:
            raise ConfigError(f"{shared.what} on {', '.join(others)} is not the one on rank 0 ({first_host})",
                              place=place, fix="bring the same files to every node, or put them into the "
                                               "store (`ldlm data prepare`, `ldlm weights mirror`)")
