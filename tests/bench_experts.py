"""A mixture of experts, forward: ours beside transformers' own ways and a published fused kernel, in one run.

    python -m tests.bench_experts [--tokens N] [--small]

One block's router, experts and shared expert of Qwen3.6-35B-A3B with random weights. `liger` wants
liger-kernel, whose Triton kernels are tuned when first called. Medians of ten; how far each is from ours.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import Qwen3_5MoeTextConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeSparseMoeBlock

from trainer.bench_train_timing import time_each
from trainer.quick.experts import mixed_by_experts
from trainer.quick.rows import Rows

_WARM_UPS, _TIMES = 3, 10
_LIBRARY = ("grouped_mm", "eager")  # `batched_mm` copies an expert for each row
Way = Callable[[Tensor], Tensor]


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, action="append", help="default: 8,192 and 32,768")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = Qwen3_5MoeTextConfig(**({"hidden_size": 64, "num_experts": 8, "num_experts_per_tok": 2,
                                      "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
                                     if options.small else {}))
    block = _random_block(config, device, dtype)
    for num_tokens in options.tokens or ((64,) if options.small else (8_192, 32_768)):
        x_ND = torch.randn(num_tokens, config.hidden_size, device=device, dtype=dtype)
        flops = 2 * num_tokens * _weights_of_a_token(config)
        told = None
        for name, way in _ways(block, config):
            found_ND, seconds = _timed(way, x_ND, device)
            told = found_ND if told is None else told
            off = float((found_ND - told).norm() / told.norm())
            print(f"{num_tokens:>6} tokens  {name:<24} {1e3 * seconds:>9.3f} ms  "
                  f"{flops / seconds / 1e12:>7.1f} TFLOP/s  off by {off:.4f}", flush=True)


def _ways(block: Qwen3_5MoeSparseMoeBlock, config: Qwen3_5MoeTextConfig) -> Iterator[tuple[str, Way]]:
    yield "ours", lambda x_ND: mixed_by_experts(block, Rows(x_ND), torch.zeros_like(x_ND))
    for name in _LIBRARY:
        config._experts_implementation = name
        yield f"transformers, {name}", lambda x_ND: block(x_ND[None])[0]
    if torch.cuda.is_available() and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

        block.experts.forward = lambda x_ND, chosen_NK, weights_NK: LigerFusedMoEFunction.apply(
            x_ND, block.experts.gate_up_proj, block.experts.down_proj, chosen_NK.int(), weights_NK)
        yield "liger", lambda x_ND: block(x_ND[None])[0]
        del block.experts.forward


def _random_block(config: Qwen3_5MoeTextConfig, device: torch.device,
                  dtype: torch.dtype) -> Qwen3_5MoeSparseMoeBlock:
    config._experts_implementation = "eager"
    with torch.device(device):
        block = Qwen3_5MoeSparseMoeBlock(config).to(dtype).requires_grad_(False)
    torch.manual_seed(0)
    for weight in block.parameters():
        weight.normal_(0, weight.shape[-1] ** -0.5)
    return block


def _weights_of_a_token(config: Qwen3_5MoeTextConfig) -> int:
    """That it is multiplied by: router, its experts, the shared expert and its gate."""
    inner = (config.num_experts_per_tok * config.moe_intermediate_size
             + config.shared_expert_intermediate_size)
    return config.hidden_size * (config.num_experts + 3 * inner + 1)


@torch.inference_mode()
def _timed(way: Way, x_ND: Tensor, device: torch.device) -> tuple[Tensor, float]:
    """What it gives, and the median of its seconds."""
    for _ in range(_WARM_UPS):
        found_ND = way(x_ND)
    seconds = time_each(lambda _: way(x_ND), _TIMES, device, lambda: False)
    return found_ND.float(), statistics.median(seconds)


if __name__ == "__main__":
    main()
