"""Frozen weights in fewer bits, and weights that are brought to the device block by block.

Expected codes come from numpy and from the formats' own definitions, never from the code under test.
"""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import distributed as dist  # noqa: E402

from tests.random_encoders import save_model  # noqa: E402
from trainer import quantise  # noqa: E402
from trainer.config import TokenEncoderConfig  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.encoder_weights import Checkpoint  # noqa: E402
from trainer.packed_blocks import (  # noqa: E402
    SCALES,
    decode,
    is_quantised,
    pack,
    packed_layout,
    unpacked,
)
from trainer.token_encoder import load_token_encoder  # noqa: E402
from trainer.trunk import empty_trunk, family_of  # noqa: E402

# QLoRA, arXiv 2305.14314, appendix E, typed from the paper.
PAPER_NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0], dtype=np.float32)
# 1 sign, 4 exponent bits with bias 7, 3 of the fraction; exponent 15 with fraction 7 is no number.
FP8 = np.array([(-1) ** (bits >> 7) * (2.0 ** ((bits >> 3 & 15) - 7) * (1 + (bits & 7) / 8) if bits >> 3 & 15
                                       else 2.0 ** -6 * (bits & 7) / 8)
                if bits & 127 != 127 else np.nan for bits in range(256)])


@pytest.fixture(autouse=True, params=[256, quantise._PIECE], ids=["many pieces", "one piece"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "_PIECE", request.param)


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.3


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().numpy()


def nf4_by_hand(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(code of each weight, scale of each 64, decoded): the nearest of the 16 values, one by one."""
    blocks = values.reshape(-1, 64).astype(np.float32)
    scales = as_numpy(torch.from_numpy(np.abs(blocks).max(axis=1)).bfloat16())
    scaled = blocks / np.where(scales > 0, scales, 1)[:, None]
    codes = np.abs(scaled[..., None] - PAPER_NF4).argmin(axis=-1)
    return codes.ravel(), scales, (PAPER_NF4[codes] * scales[:, None]).reshape(values.shape)


def fp8_by_hand(values: np.ndarray) -> np.ndarray:
    """Decoded weights: each row scaled so that its largest is 448, each to the nearest fp8 value."""
    rows = values.reshape(-1, values.shape[-1]).astype(np.float32)
    scales = (np.abs(rows).max(axis=1) / np.float32(448))[:, None]
    scaled = rows / np.where(scales > 0, scales, 1)
    # Of two values that are as near, the one with the even fraction: argmin takes what stands first.
    finite = np.concatenate([FP8[0::2], FP8[1::2][~np.isnan(FP8[1::2])]]).astype(np.float32)
    return (finite[np.abs(scaled[..., None] - finite).argmin(axis=-1)] * scales).reshape(values.shape)


def test_nf4_codes_are_the_nearest_values_of_the_paper() -> None:
    matrix = weights(24, 128)
    matrix[3] = 0.0
    codes, scales = torch.empty(24 * 64, dtype=torch.uint8), torch.empty(48, dtype=torch.bfloat16)
    quantise.encode_nf4(matrix, codes, scales)
    by_hand, scales_by_hand, decoded_by_hand = nf4_by_hand(matrix.numpy())
    pairs = codes.numpy()
    assert np.array_equal(np.stack([pairs >> 4, pairs & 15], axis=1).ravel(), by_hand)
    assert np.array_equal(as_numpy(scales), scales_by_hand)
    decoded = torch.empty(24 * 128)
    quantise.decode_nf4(codes, scales, decoded)
    assert np.array_equal(decoded.numpy(), decoded_by_hand.ravel())


def test_nf4_errs_by_at_most_half_a_step_of_its_block() -> None:
    matrix = weights(64, 64)
    _, scales, _ = nf4_by_hand(matrix.numpy())
    codes, held = torch.empty(2048, dtype=torch.uint8), torch.empty(64, dtype=torch.bfloat16)
    quantise.encode_nf4(matrix, codes, held)
    decoded = torch.empty(4096)
    quantise.decode_nf4(codes, held, decoded)
    widest_step = np.diff(PAPER_NF4).max()
    error = np.abs(decoded.view(64, 64).numpy() - matrix.numpy())
    # The scale itself is rounded to 8 bits: 2^-8 of it on top.
    assert (error <= scales[:, None] * (widest_step / 2 + 2.0**-8)).all()
    assert error.max() > 0


def test_fp8_codes_are_the_nearest_values_of_the_format() -> None:
    matrix = weights(3, 8, 64)
    matrix[1, 2] = 0.0
    codes, scales = torch.empty(3 * 8 * 64, dtype=torch.float8_e4m3fn), torch.empty(24)
    quantise.encode_fp8(matrix, codes, scales)
    decoded = torch.empty(3 * 8 * 64)
    quantise.decode_fp8(codes, scales, decoded)
    assert np.allclose(decoded.view(3, 8, 64).numpy(), fp8_by_hand(matrix.numpy()), rtol=1e-6, atol=0)
    error = (decoded.view(3, 8, 64) - matrix).abs()
    # 4 significant bits: half of 2^-3, or half of the smallest step where numbers have no exponent left.
    assert (error <= torch.maximum(matrix.abs() * 2.0**-4, scales.view(3, 8, 1) * 2.0**-10) * 1.001).all()


def test_decoding_to_bf16_is_decoding_to_float32_within_its_precision() -> None:
    matrix = weights(24, 128)
    for held_as in ("nf4", "fp8"):
        layout = packed_layout({"w": (24, 128)}, held_as)
        packed = pack({"w": matrix}, layout, "cpu")
        decoded = []
        for dtype in (torch.bfloat16, torch.float32):
            slot_layout = packed_layout({"w": (24, 128)}, "bf16", dtype)
            slot = torch.zeros(slot_layout.num_bytes, dtype=torch.uint8)
            decode(packed, layout, slot, slot_layout)
            decoded.append(slot_layout.tensors[0].values(slot).float())
        assert torch.allclose(decoded[0], decoded[1], rtol=2.0**-7, atol=0)


def test_layout_of_a_mixture_block_keeps_small_and_steering_tensors_as_they_are(tmp_path: Path) -> None:
    config = Checkpoint(save_model(tmp_path, "moe-vl"), -2, "x").config
    block = family_of(config).block_list(empty_trunk(config))[0]
    shapes = {name: tuple(parameter.shape) for name, parameter in block.named_parameters()}
    quantised = {name for name, shape in shapes.items() if is_quantised(name, shape)}
    assert quantised == {
        "linear_attn.in_proj_qkv.weight", "linear_attn.in_proj_z.weight", "linear_attn.out_proj.weight",
        "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.shared_expert.gate_proj.weight",
        "mlp.shared_expert.up_proj.weight", "mlp.shared_expert.down_proj.weight"}
    for held_as, bits in (("nf4", 4 + 16 / 64), ("fp8", None), ("bf16", 16)):
        layout = packed_layout(shapes, held_as)
        spans = sorted(span for entry in layout.tensors for span in (
            (entry.offset, entry.num_values * entry.dtype.itemsize),
            (entry.scale_offset, entry.num_scales * entry.scale_dtype.itemsize)) if span[1])
        assert all(start + length <= after for (start, length), (after, _) in zip(spans, spans[1:]))  # noqa: B905
        assert all(start % 256 == 0 for start, _ in spans) and layout.num_bytes >= sum(spans[-1])
        if bits:
            experts = next(entry for entry in layout.tensors if entry.name.endswith("gate_up_proj"))
            stored = experts.num_values * experts.dtype.itemsize + 2 * experts.num_scales
            assert stored * 8 == 4 * 32 * 32 * bits


def test_what_comes_packed_is_taken_as_it_is() -> None:
    shapes = {"w": (24, 128), "norm": (24,)}
    for held_as in ("nf4", "fp8", "bf16"):
        layout = packed_layout(shapes, held_as)
        packed = pack({"w": weights(24, 128), "norm": weights(24)}, layout, "cpu")
        named = unpacked(packed, layout)
        assert (f"w{SCALES}" in named) == (held_as != "bf16") and named["norm"].shape == (24,)
        assert torch.equal(pack(named, layout, "cpu"), packed)


# -- encoders with packed or travelling weights -----------------------------------------------------------


def hidden(folder: Path, held_as: str = "bf16", placement: str = "gpu") -> torch.Tensor:
    config = TokenEncoderConfig.model_validate(
        {"name": str(folder), "layer": -2, "weights": held_as, "placement": placement})
    encoder = load_token_encoder(config, "cpu")
    tokens = torch.randint(3, 16, (2, 9), generator=torch.Generator().manual_seed(0))
    first, second = encoder.hidden_states(tokens), encoder.hidden_states(tokens)
    assert torch.equal(first, second)
    return first


@pytest.mark.parametrize("family", ["gpt2", "qwen", "moe-vl", "bert"])
def test_bf16_on_the_host_is_bit_identical_to_resident(tmp_path: Path, family: str) -> None:
    folder = save_model(tmp_path, family)
    assert torch.equal(hidden(folder, placement="host"), hidden(folder))


@pytest.mark.parametrize("family", ["gpt2", "qwen", "moe-vl", "bert"])
@pytest.mark.parametrize("held_as", ["nf4", "fp8"])
def test_quantised_encoder_computes_with_the_weights_decoded_by_hand(tmp_path: Path, family: str,
                                                                     held_as: str) -> None:
    folder = save_model(tmp_path, family)
    config = TokenEncoderConfig(name=str(folder), layer=-2)
    reference = load_token_encoder(config, "cpu")
    for block in family_of(reference._trunk.config).block_list(reference._trunk):
        for name, parameter in block.named_parameters():
            values = as_numpy(parameter.bfloat16())
            if is_quantised(name, values.shape):
                values = nf4_by_hand(values)[2] if held_as == "nf4" else fp8_by_hand(values)
            parameter.copy_(torch.from_numpy(values))
    tokens = torch.randint(3, 16, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = reference.hidden_states(tokens)
    assert torch.allclose(hidden(folder, held_as), expected, atol=1e-6)
    assert torch.equal(hidden(folder, held_as, "host"), hidden(folder, held_as))
    assert not torch.allclose(expected, hidden(folder), atol=1e-3)


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks make of a model, and the model."""
    out = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, (save_model(out / "model", "moe-vl"), out), nprocs=2)
    return out


def test_shares_of_two_ranks_make_whole_blocks(by_ranks: Path) -> None:
    for held_as in ("bf16", "nf4"):
        for rank in range(2):
            found = torch.load(by_ranks / f"{held_as}-{rank}.pt")
            assert torch.equal(found, hidden(by_ranks / "model", held_as))


def test_ranks_on_nodes_of_their_own_share_with_nobody(by_ranks: Path) -> None:
    assert torch.equal(torch.load(by_ranks / "alone-1.pt"), hidden(by_ranks / "model", "nf4"))


def _rank(rank: int, folder: Path, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2)
    for held_as in ("bf16", "nf4"):
        torch.save(hidden(folder, held_as, "sharded"), out / f"{held_as}-{rank}.pt")
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    torch.save(hidden(folder, "nf4", "sharded"), out / f"alone-{rank}.pt")
    dist.destroy_process_group()


def test_shares_without_ranks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="several processes under torchrun"):
        hidden(save_model(tmp_path, "gpt2"), placement="sharded")


def test_a_sharded_encoder_says_that_all_ranks_must_call_it(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        config = TokenEncoderConfig(name=str(save_model(tmp_path / "m", "gpt2")), placement="sharded")
        assert load_token_encoder(config, "cpu").is_collective
    finally:
        dist.destroy_process_group()
