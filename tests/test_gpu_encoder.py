"""The frozen language model on a CUDA device: fast kernels, padding, packed and travelling weights.

Run with `pytest -m gpu -s tests/test_gpu_encoder.py`; it prints the errors that it measures.
"""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from torch import distributed as dist  # noqa: E402
from transformers.models.qwen3_5 import modeling_qwen3_5  # noqa: E402
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe  # noqa: E402

from tests.random_encoders import save_model, tokenizer  # noqa: E402
from trainer import placement as places  # noqa: E402
from trainer.config import TokenEncoderConfig  # noqa: E402
from trainer.packed_blocks import decode, is_quantised, pack, packed_layout  # noqa: E402
from trainer.token_encoder import TokenEncoder, load_token_encoder, open_token_encoder  # noqa: E402
from trainer.trunk import family_of  # noqa: E402
from trainer.weight_sources import EncoderSource  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
LENGTH = 200
_RULE = "torch_chunk_gated_delta_rule"
# Widths at which the kernels are really used: heads of 128 channels as in every Qwen3.5.
_SHAPE: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 512, "num_hidden_layers": 9, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 128, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_num_key_heads": 4, "linear_num_value_heads": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints in bf16 of a dense model and a mixture, eight blocks kept of nine."""
    torch.manual_seed(0)
    models = {
        "dense": transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(
            intermediate_size=1024, **_SHAPE)),
        "moe": transformers.Qwen3_5MoeForCausalLM(transformers.Qwen3_5MoeTextConfig(
            # Every expert is chosen: untrained routers are undecided, and rounding alone then picks other
            # experts (measured: an error of 20 % in bf16, whatever computes it).
            moe_intermediate_size=128, shared_expert_intermediate_size=128, num_experts=8,
            num_experts_per_tok=8, **_SHAPE))}
    made = {}
    for name, model in models.items():
        made[name] = tmp_path_factory.mktemp(name)
        model.bfloat16().save_pretrained(made[name])
        tokenizer(cls=False).save_pretrained(made[name])
    made["gpt2"] = save_model(tmp_path_factory.mktemp("gpt2"), "gpt2", dtype=torch.bfloat16)
    return made


def load(folder: Path, device: str = "cuda", **settings: object) -> TokenEncoder:
    config = TokenEncoderConfig.model_validate({"name": str(folder), "layer": -2, **settings})
    return load_token_encoder(config, device)


def some_tokens(seed: int = 0, rows: int = 4) -> torch.Tensor:
    return torch.randint(1, 500, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def torch_path(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Whatever is loaded and run in this test computes as transformers does, linear attention by torch."""
    monkeypatch.setattr(places, "why_not_quick", lambda *_: "transformers is wanted")
    for module in (modeling_qwen3_5, modeling_qwen3_5_moe):
        monkeypatch.setattr(module, _RULE, getattr(module, _RULE).__wrapped__)
    return monkeypatch


def relative_error(states: torch.Tensor, reference: torch.Tensor) -> float:
    states, reference = states.cpu().double(), reference.cpu().double()
    return ((states - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_fast_kernels_are_as_near_to_float32_as_the_torch_path(family: str, folders: dict[str, Path],
                                                               torch_path: pytest.MonkeyPatch) -> None:
    tokens = some_tokens()
    reference = load(folders[family], "cpu").hidden_states(tokens)
    plain = load(folders[family]).hidden_states(tokens)
    torch_path.undo()
    encoder = load(folders[family])
    fast = encoder.hidden_states(tokens)
    errors = relative_error(fast, reference), relative_error(plain, reference)
    print(f"\n{family}: {encoder.linear_attention} {errors[0]:.5f}, torch {errors[1]:.5f} from float32; "
          f"{relative_error(fast, plain):.5f} from each other")
    assert encoder.linear_attention == "fla"
    assert errors[0] < max(1.5 * errors[1], 0.02) and errors[1] < 0.05


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_padding_on_the_right_leaves_real_positions_as_they_are(family: str,
                                                                folders: dict[str, Path]) -> None:
    encoder, tokens, lengths = load(folders[family]), some_tokens(), torch.tensor([LENGTH, 130, 64, 1])
    states, other = encoder.prompt_states(tokens, lengths), tokens.clone()
    for row, length in enumerate(lengths.tolist()):
        other[row, length:] = 7
        alone = encoder.hidden_states(tokens[row:row + 1, :length])
        print(f"\n{family}, {length} tokens: {relative_error(states[row, :length], alone[0]):.6f}")
        assert relative_error(states[row, :length], alone[0]) < 0.02
        assert not states[row, length:].any()
    assert torch.equal(encoder.prompt_states(other, lengths), states)


@pytest.mark.parametrize("family", ["dense", "moe", "gpt2"])
@pytest.mark.parametrize("held_as", ["bf16", "fp8", "nf4"])
def test_packed_and_travelling_weights_equal_weights_decoded_up_front(family: str, held_as: str,
                                                                      folders: dict[str, Path]) -> None:
    tokens = [some_tokens(seed) % 16 if family == "gpt2" else some_tokens(seed) for seed in range(6)]
    tokens = [rows[:, :9] if family == "gpt2" else rows for rows in tokens]
    reference = load(folders[family])
    for block in family_of(reference._trunk.config).block_list(reference._trunk):
        for name, parameter in block.named_parameters():
            if held_as != "bf16" and is_quantised(name, tuple(parameter.shape)):
                parameter.copy_(decoded(parameter.cpu(), held_as))
    expected = [reference.hidden_states(rows) for rows in tokens]
    for placement in ("gpu", "host"):
        encoder = load(folders[family], weights=held_as, placement=placement)
        for rows, states in zip(tokens * 3, expected * 3, strict=True):
            assert torch.equal(encoder.hidden_states(rows), states), placement


def decoded(weights: torch.Tensor, held_as: Any) -> torch.Tensor:
    layout, slot_layout = (packed_layout({"w": tuple(weights.shape)}, form) for form in (held_as, "bf16"))
    slot = torch.zeros(slot_layout.num_bytes, dtype=torch.uint8)
    decode(pack({"w": weights}, layout, "cpu"), layout, slot, slot_layout)
    return slot_layout.tensors[0].values(slot).view(weights.shape)


@pytest.mark.parametrize("held_as", ["bf16", "nf4"])
def test_shares_are_gathered_by_nccl(held_as: str, folders: dict[str, Path], tmp_path: Path) -> None:
    expected = load(folders["moe"], weights=held_as).hidden_states(some_tokens())
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1,
                            device_id=torch.device("cuda", 0))
    try:
        encoder = load(folders["moe"], weights=held_as, placement="sharded")
        for _ in range(5):
            assert torch.equal(encoder.hidden_states(some_tokens()), expected)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("held_as", ["fp8", "nf4"])
def test_decoding_a_large_block_takes_less_than_64_mib_beside_it(held_as: Any) -> None:
    shapes = {"experts": (64, 1024, 2048)}
    layout, slot_layout = packed_layout(shapes, held_as), packed_layout(shapes, "bf16")
    packed = torch.zeros(layout.num_bytes, dtype=torch.uint8, device="cuda")
    slot = torch.zeros(slot_layout.num_bytes, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    decode(packed, layout, slot, slot_layout)
    extra_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(10):
        decode(packed, layout, slot, slot_layout)
    end.record()
    torch.cuda.synchronize()
    print(f"\n{held_as}: {extra_mib:.1f} MiB of temporaries, "
          f"{64 * 1024 * 2048 * 10 / begin.elapsed_time(end) / 1e6:.0f} G weights/s")
    assert extra_mib < 64


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_an_encoder_on_the_next_gpu_answers_on_the_training_gpu(folders: dict[str, Path]) -> None:
    config = TokenEncoderConfig(name=str(folders["moe"]), layer=-2, weights="nf4", placement="next_gpu")
    source = EncoderSource(config, None, print)
    encoder = open_token_encoder(config, source, "cuda:0", encoder_device="cuda:1")
    encoder.load()
    states = encoder.hidden_states(some_tokens().to("cuda:0"))
    assert states.device == torch.device("cuda:0")
    assert torch.equal(states, load(folders["moe"], weights="nf4").hidden_states(some_tokens()))


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
                    reason="needs products in fp8")
@pytest.mark.parametrize("family", ["dense", "moe"])
def test_products_in_fp8_are_off_by_a_few_percent_and_the_same_wherever_weights_lie(
        family: str, folders: dict[str, Path]) -> None:
    tokens = some_tokens()
    wanted = load(folders[family]).hidden_states(tokens)
    held = load(folders[family], weights="fp8").hidden_states(tokens)
    found = load(folders[family], weights="fp8", products="fp8").hidden_states(tokens)
    errors = relative_error(held, wanted), relative_error(found, wanted)
    print(f"\n{family}: held in fp8 {errors[0]:.4f}, multiplied in fp8 {errors[1]:.4f} from bf16")
    assert errors[0] < errors[1] < 0.2
    travelling = load(folders[family], weights="fp8", products="fp8", placement="host")
    assert torch.equal(travelling.hidden_states(tokens), found)
