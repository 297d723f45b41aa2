"""What one rank is: its process group, and the GPUs that are its own."""

import os

import torch
from torch import distributed as dist

from trainer.contract import ConfigError


def init_process_group() -> None:
    """gloo for what lies in host memory, nccl for the GPUs; no compiler needed."""
    import deepspeed.ops

    # On CPU, DeepSpeed would compile a shared-memory op at start-up: 75 s, and a compiler we cannot
    # count on. The table is private, so a version that lacks it is none of our business.
    table = getattr(deepspeed.ops, "__compatible_ops__", {})
    if "deepspeed_shm_comm" in table:
        table["deepspeed_shm_comm"] = False
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


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
