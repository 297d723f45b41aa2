"""How fast a CUDA device reads its memory: a kernel that only reads. Imports triton."""

import torch
import triton
import triton.language as tl

# 4 GiB of int32: far more than any L2 cache.
_NUM_WORDS = 1 << 30
_BLOCK, _UNROLLED, _NUM_PROGRAMS, _NUM_WARPS = 2048, 4, 528, 8  # the best of those tried on an H200


@triton.jit
def _read(words, out, count, BLOCK: tl.constexpr, UNROLLED: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), tl.int32)
    for begin in range(first, count, step * UNROLLED):
        for i in tl.static_range(UNROLLED):
            at = begin + i * step + lanes
            found ^= tl.load(words + at, mask=at < count, other=0)
    tl.store(out + first + lanes, found)


def read_bytes_per_second(times: int = 20) -> float:
    """The fastest of some readings, between events on the device."""
    # Random: zeros take less power to move, and so may be read faster.
    words = torch.empty(_NUM_WORDS, dtype=torch.int32, device="cuda").random_()
    out = torch.empty(_NUM_PROGRAMS * _BLOCK, dtype=torch.int32, device="cuda")
    seconds = []
    for _ in range(times + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        _read[(_NUM_PROGRAMS,)](words, out, _NUM_WORDS, _BLOCK, _UNROLLED, num_warps=_NUM_WARPS)
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return words.nbytes / min(seconds[1:])
