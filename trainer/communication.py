"""What ranks tell each other in one step, in bytes. No torch.

Follows DeepSpeed 0.19.8 as `deepspeed_config` sets it (float32 reductions in every stage; stage 2 reduces the
gradients of every micro-batch by an all-reduce too, and keeps its share) and `trainer/block_feeds.py`.
"""

from dataclasses import dataclass

from trainer.config import TrainConfig, encoder_passes, grad_accum_steps
from trainer.encoder_shape import EncoderShape
from trainer.sizes import block_bytes, num_trained

_GRADIENT_BYTES = 4  # of a number in a reduction, whatever the precision


@dataclass(frozen=True)
class Communication:
    """Bytes that one rank sends in one step; it receives as many.

    Attributes:
        gradients: To sum them over all ranks.
        weights: What the optimizer has moved of its share, to all others.
        encoder: Frozen blocks, to the ranks of its node; 0 unless it is sharded.
    """

    gradients: int
    weights: int
    encoder: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.gradients + self.weights + self.encoder


def communication_bytes(config: TrainConfig, shape: EncoderShape, world_size: int,
                        ranks_per_node: int) -> Communication:
    """What a step's collectives send, each by the least that any algorithm sends (a ring does).

    Left out are the padding of flat vectors, norms, sums over bins of time, and verdicts: some hundred bytes.

    Args:
        config: Its encoder's placement is resolved.
        shape: Of the token encoder.
        world_size: Ranks; the global batch divides over them.
        ranks_per_node: Among which a sharded encoder is split.
    """
    to_gather = (world_size - 1) / world_size  # of what everybody has in the end
    num, value = num_trained(config, shape), 2 if config.precision == "bf16" else 4
    reductions = grad_accum_steps(config, world_size) if config.zero_stage == 2 else 1
    return Communication(
        gradients=round(reductions * 2 * to_gather * _GRADIENT_BYTES * num),
        weights=round(to_gather * value * num),
        encoder=encoder_passes(config, world_size) * gathered_bytes(config, shape, ranks_per_node))


def gathered_bytes(config: TrainConfig, shape: EncoderShape, ranks_per_node: int) -> int:
    """What one rank sends for one forward pass of a sharded encoder; 0 for others."""
    encoder = config.token_encoder
    if encoder.placement != "sharded":
        return 0
    packed = sum(block_bytes(shape, index, encoder.weights)
                 for index in range(shape.kept_blocks(encoder.layer)))
    return packed * (ranks_per_node - 1) // ranks_per_node
