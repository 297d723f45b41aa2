"""The encoder's blocks by our kernels, on a GPU, against transformers' own in float32.

Run with `pytest -m gpu -s tests/test_gpu_quick.py`; it prints the errors that it measures.
"""

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch.nn.functional as F  # noqa: E402
from transformers.models.qwen3_5 import modeling_qwen3_5  # noqa: E402
from transformers.models.qwen3_5.modeling_qwen3_5 import (  # noqa: E402
    Qwen3_5RMSNorm,
    Qwen3_5RMSNormGated,
    apply_rotary_pos_emb,
    l2norm,
)
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe  # noqa: E402

from trainer.quick import experts  # noqa: E402
from trainer.quick.blocks import quicken, why_not_quick  # noqa: E402
from trainer.quick.rows import Rows  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
_RULE = "torch_chunk_gated_delta_rule"
_SHAPE = {"vocab_size": 512, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
          "num_key_value_heads": 2, "head_dim": 256, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
          "linear_num_key_heads": 4, "linear_num_value_heads": 8}


def _trunk(kind: str):
    torch.manual_seed(0)
    if kind == "dense":
        config = transformers.Qwen3_5TextConfig(intermediate_size=1024, **_SHAPE)
        trunk = transformers.Qwen3_5TextModel(config)
    else:
        # Every expert is chosen: untrained routers are undecided, and rounding alone would choose others.
        config = transformers.Qwen3_5MoeTextConfig(
            moe_intermediate_size=128, shared_expert_intermediate_size=128, num_experts=8,
            num_experts_per_tok=8, **_SHAPE)
        trunk = transformers.Qwen3_5MoeTextModel(config)
    trunk.requires_grad_(False).eval()
    for name, parameter in trunk.named_parameters():
        if "norm" in name and parameter.ndim == 1:  # as drawn they are all 0 or 1
            torch.nn.init.normal_(parameter, mean=float(parameter.mean()), std=0.2)
    return trunk, config


def _states(trunk, tokens):
    masks = dict.fromkeys(trunk.config.layer_types)
    with torch.inference_mode():
        return trunk(input_ids=tokens, attention_mask=masks, use_cache=False)[0]


def _is_rounded(rows: Rows, wanted) -> None:
    """To e4m3 with a scale for each row: by half of the last of three bits, or half of the least step."""
    scale = wanted.float().abs().amax(dim=1, keepdim=True) / 448
    least = torch.finfo(torch.float32).tiny / 448
    torch.testing.assert_close(rows.scale_N1, scale.clamp(min=least), rtol=1e-2, atol=0)
    found = rows.codes.float() * rows.scale_N1
    assert ((found - wanted).abs() <= 0.07 * wanted.abs() + 2**-9 * scale).all()


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_quick_blocks_are_as_near_to_float32_as_those_of_transformers(kind: str, monkeypatch) -> None:
    trunk, config = _trunk(kind)
    tokens = torch.randint(1, 500, (3, 200), generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patch:  # fla's kernels do not run on a CPU
        for module in (modeling_qwen3_5, modeling_qwen3_5_moe):
            patch.setattr(module, _RULE, getattr(module, _RULE).__wrapped__)
        reference = _states(trunk, tokens)
    plain = copy.deepcopy(trunk).bfloat16().cuda()
    slow = _states(plain, tokens.cuda())
    assert why_not_quick(config, torch.device("cuda")) is None
    quicken(plain.layers)
    found = _states(plain, tokens.cuda())
    errors = [float((states.float().cpu() - reference).norm() / reference.norm()) for states in (found, slow)]
    print(f"\n{kind}: quick {errors[0]:.5f}, transformers {errors[1]:.5f} from float32")
    assert errors[0] < 1.2 * errors[1] + 1e-4 and errors[1] < 0.05


def test_kernels_between_products_are_what_torch_computes() -> None:
    from trainer.quick import experts_kernels as kernels

    chance = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(777, 256, device="cuda", generator=chance)
    for found, wanted in zip(kernels.choose(logits, 8), experts.choose(logits, 8), strict=True):
        torch.testing.assert_close(found, wanted)
    for columns, weight in ((512, torch.rand(777, device="cuda", generator=chance)), (17_408, None)):
        gate, up = torch.randn(777, 2 * columns, device="cuda", generator=chance).bfloat16().chunk(2, dim=1)
        wanted = experts.gated(gate, up, weight, False).plain
        torch.testing.assert_close(kernels.gated(gate, up, weight, False).plain, wanted)
        _is_rounded(kernels.gated(gate, up, weight, True), wanted)
    mixed = torch.randn(64, 2048, device="cuda", generator=chance).bfloat16()
    rows = torch.randperm(64, device="cuda", generator=chance).int().view(8, 8)
    shared, residual = torch.randn(2, 8, 2048, device="cuda", generator=chance).bfloat16()
    opened = torch.randn(8, 1, device="cuda", generator=chance).bfloat16()
    torch.testing.assert_close(kernels.combined(mixed, rows, shared, opened, residual),
                               experts.combined(mixed, rows, shared, opened, residual))


def test_heads_are_normalised_and_turned_as_by_transformers() -> None:
    from trainer.quick.mixer_kernels import gated_by, normed_and_turned

    chance = torch.Generator("cuda").manual_seed(0)
    both = torch.randn(2, 70, 6, 512, device="cuda", generator=chance)
    heads, gate = both.bfloat16().chunk(2, dim=-1)
    angles = torch.randn(2, 70, 32, device="cuda", generator=chance).repeat(1, 1, 2)
    norm = Qwen3_5RMSNorm(256).cuda().requires_grad_(False)
    norm.weight.normal_(std=0.2, generator=chance)
    normed = norm(heads.float()).transpose(1, 2)
    wanted = apply_rotary_pos_emb(normed, normed, angles.cos(), angles.sin())[0].transpose(1, 2)
    found = normed_and_turned(heads, norm.weight, angles.cos(), angles.sin(), norm.eps)
    torch.testing.assert_close(found, wanted.bfloat16())
    wanted = (heads.float() * F.sigmoid(gate.float())).flatten(0, 1).flatten(1)
    torch.testing.assert_close(gated_by(heads, gate, False).plain, wanted.bfloat16())
    _is_rounded(gated_by(heads, gate, True), wanted)


def test_norms_and_convolutions_are_those_of_transformers() -> None:
    from trainer.quick.norm_kernels import convolved_heads, gated_norm, normed

    chance = torch.Generator("cuda").manual_seed(0)
    x, residual = torch.randn(2, 33, 2048, device="cuda", generator=chance).bfloat16()
    x[3] = residual[3] = 0
    norm, gated = Qwen3_5RMSNorm(2048).cuda(), Qwen3_5RMSNormGated(128).cuda()
    for part in (norm, gated):
        part.requires_grad_(False).weight.normal_(generator=chance)
    both = x.float() + residual.float()
    rows, stream = normed(x, residual, norm.weight, norm.eps, True)
    torch.testing.assert_close((rows.plain, stream), (norm(both).bfloat16(), both.bfloat16()))
    _is_rounded(rows, norm(both))
    rows, stream = normed(x, None, norm.weight, norm.eps, False)
    torch.testing.assert_close(rows.plain, norm(x.float()).bfloat16())
    assert stream is x and rows.codes is None
    heads, gate = torch.randn(2, 300, 12, 128, device="cuda", generator=chance).bfloat16()
    wanted = gated(heads.float(), gate.float()).flatten(1)
    torch.testing.assert_close(gated_norm(heads, gate, gated.weight, gated.variance_epsilon, False).plain,
                               wanted.bfloat16())
    _is_rounded(gated_norm(heads, gate, gated.weight, gated.variance_epsilon, True), wanted)
    wide = torch.randn(2, 70, 3 * 512, device="cuda", generator=chance).bfloat16()[..., 512:1024]
    weight = torch.randn(512, 4, device="cuda", generator=chance).bfloat16()
    shifted = F.pad(wide.float().transpose(1, 2), (3, 0))
    wanted = F.silu(F.conv1d(shifted.double(), weight.double()[:, None], groups=512)).float().transpose(1, 2)
    wanted = wanted.unflatten(-1, (-1, 128))
    torch.testing.assert_close(convolved_heads(wide, weight, 128, False), wanted.bfloat16())
    torch.testing.assert_close(convolved_heads(wide, weight, 128, True), l2norm(wanted).bfloat16())
