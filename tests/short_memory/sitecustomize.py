"""Put on PYTHONPATH by a test: a rank whose memory holds few sequences at a time, as MEMORY_HOLDS says.

`N:RANK` lets that rank run out of memory when it tries more than N. `N:RANK:STEP` does not then, but when it
trains with more, from that step on. All that fits takes a second, so that a larger micro-batch is the faster.
"""

import math
import os
import sys

if os.environ.get("RANK") and "trainer.rank" in " ".join(sys.orig_argv):
    import torch

    import trainer.micro_batch as micro_batch
    import trainer.step as step

    holds, rank, *after = (int(part) for part in os.environ["MEMORY_HOLDS"].split(":"))
    is_short = int(os.environ["RANK"]) == rank
    try_one, time_one, train_one = (micro_batch.Trial._pass, micro_batch.Trial.seconds,
                                    step.forward_and_backward)

    def run_out() -> None:
        """The device's part."""
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def try_what_fits(self: micro_batch.Trial, size: int) -> int:
        """As it is, up to the end of the memory."""
        if is_short and not after and size > holds:
            run_out()
        return try_one(self, size)

    def a_second(self: micro_batch.Trial, size: int) -> float:
        """Whatever this machine does beside it."""
        return math.inf if math.isinf(time_one(self, size)) else 1.0

    def train_what_fits(job: object, number: int, positions: range, *tensors: torch.Tensor) -> object:
        """As it is, until memory gets short."""
        if is_short and after and number >= after[0] and len(positions) > holds:
            run_out()
        return train_one(job, number, positions, *tensors)

    micro_batch.Trial._pass, micro_batch.Trial.seconds = try_what_fits, a_second
    step.forward_and_backward = train_what_fits
