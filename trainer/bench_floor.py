"""The least time that a generation can take on a device, part by part. No torch.

Each pass of a part reads its weights once and does its arithmetic; the longer of the two is its floor. What
is read and written besides (activations, logits) is left out, so nothing can be faster.
"""

from pydantic import BaseModel, ConfigDict

from trainer.bench_cases import Case
from trainer.config import TrainConfig
from trainer.encoder_shape import EncoderShape
from trainer.sizes import generation_flops, generation_parameters

# Of one weight; scales are left out, but for those of each 16 weights in fp4.
BYTES_OF_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "fp4": 4.5 / 8}
HEAD = "vocabulary_head"


class Rates(BaseModel):
    """What this device can do, measured in the same run.

    Attributes:
        read_bytes_per_s: Of a program that only reads memory.
        flops_per_s: By mode, of a large product of matrices.
        read_how: What was read with, in words.
    """

    model_config = ConfigDict(frozen=True)
    read_bytes_per_s: float
    flops_per_s: dict[str, float]
    read_how: str


# Its maker's figures: of memory, and of dense products that are summed in float32.
_RTX5090 = Rates(read_bytes_per_s=1.79e12, read_how="its maker's figure",
                 flops_per_s={"fp32": 104.8e12, "bf16": 209.5e12, "fp8": 419e12, "fp4": 1676e12})


class PartWork(BaseModel):
    """What one part of a generation has to do: all its passes, the whole batch."""

    model_config = ConfigDict(frozen=True)
    passes: int
    num_bytes: float
    flops: float
    read_s: float
    compute_s: float

    @property
    def floor_s(self) -> float:
        """Reading and arithmetic can go on at once."""
        return max(self.read_s, self.compute_s)


def mode_of(part: str, mode: str) -> str:
    """How a part is held and multiplied in a mode: the head has no fp8 or fp4 (`trainer/fast/program.py`).

    Where a path holds matrices of blocks in more bytes than its mode says, that is no part of a limit: the
    persistent kernels have attention's outputs in bf16.
    """
    return "bf16" if mode in ("fp8", "fp4") and part == HEAD else mode


def work_of(case: Case, config: TrainConfig, shape: EncoderShape, rates: Rates,
            num_seen_ids: int | None = None) -> dict[str, PartWork]:
    """The work of each part, in the order in which they run.

    Args:
        case: Steps, batch and mode.
        config: Of the model, at the case's length.
        shape: Of its token encoder.
        rates: Of the device.
        num_seen_ids: Rows of the head where it covers only those.
    """
    weights = generation_parameters(config, shape, num_seen_ids)
    flops = generation_flops(config, shape, num_seen_ids)
    found = {}
    for part in ("denoiser", "latent_decoder", "token_decoder", HEAD):
        passes = case.steps if part == "denoiser" else 1
        held = mode_of(part, case.mode)
        num_bytes = passes * weights[part] * BYTES_OF_WEIGHT[held]
        operations = passes * flops[part] * case.batch
        found[part] = PartWork(passes=passes, num_bytes=num_bytes, flops=operations,
                               read_s=num_bytes / rates.read_bytes_per_s,
                               compute_s=operations / rates.flops_per_s[held])
    return found


def floor_s(work: dict[str, PartWork]) -> float:
    """Of a whole generation: its parts run one after the other."""
    return sum(part.floor_s for part in work.values())


def projected_rtx5090(tokens_per_s: float, work: dict[str, PartWork], mode: str,
                      rates: Rates) -> float | None:
    """What a speed comes to by the memory of an RTX 5090 alone; None where arithmetic bounds a part, here or
    there: a card may multiply faster for each byte that it reads than the other does."""
    if not all(_is_bound_by_reading(work, mode, device) for device in (rates, _RTX5090)):
        return None
    return tokens_per_s * _RTX5090.read_bytes_per_s / rates.read_bytes_per_s


def _is_bound_by_reading(work: dict[str, PartWork], mode: str, rates: Rates) -> bool:
    return all(part.num_bytes / rates.read_bytes_per_s >= part.flops / rates.flops_per_s[mode_of(name, mode)]
               for name, part in work.items())
