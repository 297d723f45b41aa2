"""The least time that a training step can take on a device, part by part. No torch.

Each part does its arithmetic and moves its weights, gradients and states; the longer of the two is its floor.
Activations are left out, so nothing can be faster. A shape's arithmetic is that of `trainer/sizes.py`.
"""

from trainer.bench_floor import PartWork, Rates
from trainer.bench_train_cases import Scope
from trainer.config import TrainConfig, encoder_passes, grad_accum_steps
from trainer.encoder_shape import EncoderShape
from trainer.sizes import encoder_bytes, flops_per_token, head_rows, trained_parameters

# float32: the gradient is read for its norm, and again with weights and both moments, which are written; of
# the average both.
_READ, _WRITTEN = 4 + 4 + 3 * 4 + 4, 3 * 4 + 4
HEAD = "vocabulary_head"


def flops_of_step(config: TrainConfig, shape: EncoderShape, num_ranks: int, scope: Scope) -> dict[str, float]:
    """Useful operations of one rank's step by part, in the order in which they run.

    What is computed again for the backward pass is not useful. The denoiser's pass for self-conditioning
    counts by its probability.
    """
    each, tokens = flops_per_token(config, shape), num_tokens(config, num_ranks)
    share = config.token_loss_positions / config.data.sequence_length
    head = 6 * share * config.model.token_decoder_width * head_rows(config, shape)
    found = {"encoder": each.encoder, "self_conditioning": each.self_conditioning,
             "trainables": each.trained - head, HEAD: head}
    kept = {"encoder": ["encoder"], "trainables": [*found][1:], "joint": [*found]}[scope]
    return {part: tokens * flops for part, flops in found.items() if part in kept and flops}


def num_tokens(config: TrainConfig, num_ranks: int) -> int:
    """Tokens of one rank's step."""
    return config.tokens_per_step // num_ranks


def work_of_step(config: TrainConfig, shape: EncoderShape, num_ranks: int, scope: Scope,
                 rates: Rates) -> dict[str, PartWork]:
    """The work of each part of one rank's step.

    Args:
        config: Of the case.
        shape: Of its token encoder.
        num_ranks: That share the optimizer's state.
        scope: What of the step runs.
        rates: Of the device.
    """
    micro_batches = grad_accum_steps(config, num_ranks)
    bytes_of, value = _bytes_of_pass(config, shape), _value_bytes(config)
    found = {}
    for part, flops in flops_of_step(config, shape, num_ranks, scope).items():
        rate = rates.flops_per_s[_mode(part, config, rates)]
        passes = encoder_passes(config, num_ranks) if part == "encoder" else micro_batches
        found[part] = _work(passes, passes * bytes_of[part], flops, rates, rate)
    if scope != "encoder":
        total = sum(trained_parameters(config, shape).values())
        moved = (_READ + _WRITTEN) * -(-total // num_ranks) + value * total
        found["optimizer"] = _work(1, moved, 0.0, rates, 1.0)
    return found


def _work(passes: int, num_bytes: float, flops: float, rates: Rates, flops_per_s: float) -> PartWork:
    return PartWork(passes=passes, num_bytes=num_bytes, flops=flops,
                    read_s=num_bytes / rates.read_bytes_per_s, compute_s=flops / flops_per_s)


def _value_bytes(config: TrainConfig) -> int:
    return 2 if config.precision == "bf16" else 4


def _bytes_of_pass(config: TrainConfig, shape: EncoderShape) -> dict[str, float]:
    """Of one micro-batch: weights are read in both directions, gradients written."""
    parameters, value = trained_parameters(config, shape), _value_bytes(config)
    head = parameters[HEAD]
    blocks = encoder_bytes(config, shape) - 2 * shape.embedding_parameters  # of which few rows are read
    return {"encoder": blocks, "self_conditioning": value * parameters["denoiser"],
            "trainables": 3 * value * (sum(parameters.values()) - head), HEAD: 3 * value * head}


def _mode(part: str, config: TrainConfig, rates: Rates) -> str:
    """What a part is multiplied in, or the next best that the device has."""
    own = "fp32" if config.precision == "fp32" else "bf16"
    wanted = config.token_encoder.products if part == "encoder" else own
    return next(mode for mode in (wanted, own, *rates.flops_per_s) if mode in rates.flops_per_s)
