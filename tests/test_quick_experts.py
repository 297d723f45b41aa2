"""A mixture of experts with its tokens in the order of experts, against transformers' loop over experts."""

import pytest

torch = pytest.importorskip("torch")

from transformers import Qwen3_5MoeTextConfig  # noqa: E402
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeSparseMoeBlock  # noqa: E402

from trainer.quick.experts import by_expert, mixed_by_experts  # noqa: E402
from trainer.quick.rows import Rows  # noqa: E402

NUM_TOKENS, WIDTH = 50, 32


def _block(num_experts: int, num_chosen: int) -> Qwen3_5MoeSparseMoeBlock:
    config = Qwen3_5MoeTextConfig(
        hidden_size=WIDTH, moe_intermediate_size=16, shared_expert_intermediate_size=24,
        num_experts=num_experts, num_experts_per_tok=num_chosen)
    config._experts_implementation = "eager"
    block = Qwen3_5MoeSparseMoeBlock(config).requires_grad_(False)
    chance = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.normal_(std=WIDTH ** -0.5, generator=chance)
    return block


@pytest.mark.parametrize(("num_experts", "num_chosen"), [(8, 2), (16, 8), (4, 4), (64, 1)])
def test_all_experts_at_once_are_those_of_the_loop(num_experts: int, num_chosen: int) -> None:
    block, chance = _block(num_experts, num_chosen), torch.Generator().manual_seed(1)
    x, residual = (torch.randn(NUM_TOKENS, WIDTH, generator=chance) for _ in range(2))
    found = mixed_by_experts(block, Rows(x), residual)
    assert torch.allclose(found, residual + block(x[None])[0], atol=1e-5)


def test_an_expert_that_nobody_chooses_has_no_rows_and_one_that_all_choose_has_all() -> None:
    expert_NK = torch.tensor([[3, 0], [3, 1], [3, 0]], dtype=torch.int32)
    routed = by_expert(expert_NK, torch.arange(6.0).view(3, 2), 5)
    assert routed.ends_E.tolist() == [2, 3, 3, 6, 6]
    assert routed.token_M.tolist() == [0, 2, 1, 0, 1, 2]
    assert routed.weight_M.tolist() == [1, 5, 3, 0, 2, 4]
    assert routed.row_NK.tolist() == [[3, 0], [4, 2], [5, 1]]
