"""Counts and arithmetic of sizes without torch, against the real modules on the meta device."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    PreTrainedConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from trainer.config import TrainConfig  # noqa: E402
from trainer.encoder_shape import KNOWN_CONFIGS, EncoderShape, encoder_shape, shape_of_config  # noqa: E402
from trainer.memory import JobSizes, saved_activations  # noqa: E402
from trainer.model import LatentDiffusionLM, draw_noise  # noqa: E402
from trainer.packed_blocks import packed_layout, parameter_shapes  # noqa: E402
from trainer.profiles import PROFILES  # noqa: E402
from trainer.sizes import block_bytes, flops_per_token, trained_parameters  # noqa: E402
from trainer.trunk import FAMILIES  # noqa: E402

SMALL = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
         "linear_key_head_dim": 16, "linear_value_head_dim": 32, "tie_word_embeddings": True}
VARIED = {
    "gpt2": GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=500, n_positions=96, n_inner=200),
    "bert": BertConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=100,
                       vocab_size=300, max_position_embeddings=64, type_vocab_size=3),
    "roberta": RobertaConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=300,
                             intermediate_size=100, max_position_embeddings=66, type_vocab_size=1),
    "xlm-roberta": XLMRobertaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                    intermediate_size=96, vocab_size=200, max_position_embeddings=80),
    "distilbert": DistilBertConfig(dim=48, n_layers=3, n_heads=4, hidden_dim=100, vocab_size=300,
                                   max_position_embeddings=64),
    "dense": Qwen3_5TextConfig(**SMALL, intermediate_size=160),
    "dense with biases": Qwen3_5TextConfig(**SMALL, intermediate_size=160, attention_bias=True),
    "dense, another pattern": Qwen3_5TextConfig(
        **SMALL, intermediate_size=96,
        layer_types=["full_attention", "linear_attention", "full_attention", "linear_attention"]),
    "mixture": Qwen3_5MoeTextConfig(**SMALL, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=2,
                                    shared_expert_intermediate_size=40),
}


def known_config(name: str) -> PreTrainedConfig:
    """What transformers makes of a table entry: keys that it lacks get transformers' own defaults."""
    told = dict(KNOWN_CONFIGS[name])
    return AutoConfig.for_model(told.pop("model_type"), **told)


def without_pooler(config: PreTrainedConfig) -> torch.nn.Module:
    has_pooler = config.model_type in ("bert", "roberta", "xlm-roberta")
    options = {"add_pooling_layer": False} if has_pooler else {}
    return AutoModel.from_config(config, **options)


def on_meta(config: PreTrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return without_pooler(config)


def blocks_of(model: torch.nn.Module) -> torch.nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def check_parameters(shape: EncoderShape, model: torch.nn.Module) -> None:
    blocks = blocks_of(model)
    assert [shape.block_parameters(index) for index in range(shape.num_blocks)] == [count(b) for b in blocks]
    final_norm = sum(count(getattr(model, name)) for name in ("norm", "ln_f") if hasattr(model, name))
    assert shape.embedding_parameters == count(model) - count(blocks) - final_norm
    embedding = model.get_input_embeddings()
    assert (shape.vocab_size, shape.hidden_size) == tuple(embedding.weight.shape)


@pytest.mark.parametrize("name", KNOWN_CONFIGS)
def test_known_encoders_have_the_parameters_of_their_modules(name):
    check_parameters(shape_of_config(KNOWN_CONFIGS[name]), on_meta(known_config(name)))


def test_every_family_that_is_trained_on_is_known_to_a_plan():
    assert all(shape_of_config({"model_type": kind}) for kind in FAMILIES)


@pytest.mark.parametrize("name", VARIED)
def test_defaults_of_a_family_are_those_of_transformers(name):
    config = type(VARIED[name])()
    check_parameters(shape_of_config({"model_type": config.model_type}), on_meta(config))


@pytest.mark.parametrize("name", VARIED)
def test_any_config_has_the_parameters_of_its_modules(name):
    check_parameters(shape_of_config(VARIED[name].to_dict()), on_meta(VARIED[name]))


def counted_flops_per_token(model: torch.nn.Module, length: int) -> float:
    """Forward pass of one sequence, as torch counts it.

    Eager attention: its products are plain matrix products. The triangular solves of the plain delta
    rule are not counted by torch; the fused kernels invert small blocks in a way of their own.
    """
    model.eval()
    tokens = torch.zeros(1, length, dtype=torch.long, device=model.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    return counter.get_total_flops() / length


@pytest.mark.parametrize(("name", "length"), [
    ("gpt2", 64), ("gpt2", 96), ("bert", 64), ("roberta", 64), ("distilbert", 64),
    # Whole chunks of 64: torch counts the padding of a torn one.
    ("dense", 64), ("dense", 128), ("dense, another pattern", 128), ("mixture", 64),
])
def test_arithmetic_of_an_encoder_is_what_torch_counts(name, length):
    config = VARIED[name]
    config._attn_implementation = config._experts_implementation = "eager"
    shape = shape_of_config(config.to_dict())
    expected = sum(2 * block.matrix_parameters + 4 * length * block.attention_width + block.recurrence_flops
                   for block in shape.blocks)
    assert expected == pytest.approx(counted_flops_per_token(without_pooler(config), length), rel=0.02)


# -- the trained parts

BASE = {"steps": 1, "micro_batch_size": 2, "global_batch_size": 2, "data": {"source": "python-docs"},
        "checkpoint": {"every_steps": 1}}
TINY = {"latent_width": 16, "width": 32, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 1,
        "denoiser_layers": 3, "token_decoder_layers": 2, "token_decoder_width": 24, "token_decoder_heads": 2}
LAYOUTS = [
    {}, {"num_latents": 5}, {"perceiver_block": "split"}, {"token_decoder_mlp": "plain"},
    {"denoiser_block": "plain"}, {"self_conditioning": False}, {"latent_norm": "running_std"},
    {"time_input": "log_snr"}, {"denoiser_positions": "rotary"}, {"qk_norm": False}, {"prompt": True},
    {"prompt": True, "denoiser_block": "plain", "qk_norm": False}, {"dropout": 0.1},
    # Equal widths: the split and plain layouts leave out their projections.
    {"latent_width": 32, "token_decoder_width": 32, "perceiver_block": "split", "denoiser_block": "plain",
     "self_conditioning": False},
    {"latent_width": 32, "perceiver_block": "split", "denoiser_block": "plain"},
    {"latent_width": 64, "denoiser_block": "plain", "self_conditioning": False},
    {"latent_width": 16, "width": 32, "denoiser_block": "plain", "self_conditioning": True},
]
HIDDEN_32 = shape_of_config({"model_type": "gpt2", "n_embd": 32, "vocab_size": 77, "n_layer": 4})


def tiny(layout: dict, **over: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {**BASE, "data": {"source": "python-docs", "sequence_length": 12},
         "token_encoder": {"name": "tiny", "prefix_token": False}, "model": {**TINY, **layout}, **over})


def by_part(config: TrainConfig, shape: EncoderShape, num_seen_ids: int | None = None) -> dict[str, int]:
    with torch.device("meta"):
        seen = torch.arange(num_seen_ids) if num_seen_ids else None
        model = LatentDiffusionLM(config, shape.hidden_size, seen, shape.vocab_size)
    counted = {name: count(part) for name, part in model.parts().items()}
    counted["vocabulary_head"] = count(model.token_decoder.head)
    counted["token_decoder"] -= counted["vocabulary_head"]
    assert sum(counted.values()) == count(model)
    return counted


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_has_the_parameters_of_its_modules(name):
    config = TrainConfig.model_validate({**BASE, "profile": name})
    shape = encoder_shape(config.token_encoder.name)
    seen = 9_000 if config.model.head_vocabulary == "seen" else None
    assert trained_parameters(config, shape, seen) == by_part(config, shape, seen)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_layout_has_the_parameters_of_its_modules(layout):
    config = tiny(layout)
    assert trained_parameters(config, HIDDEN_32) == by_part(config, HIDDEN_32)


@pytest.mark.parametrize(("name", "denoiser", "decoding", "total"), [
    ("seed-35b-a3b", 206e6, 912e6, 1.39e9), ("seed-27b", 1285e6, 3789e6, 6.75e9)])
def test_the_published_full_width_shapes_come_out(name, denoiser, decoding, total):
    config = TrainConfig.model_validate({**BASE, "profile": name})
    parts = trained_parameters(config, encoder_shape(config.token_encoder.name))
    assert parts["denoiser"] == pytest.approx(denoiser, rel=0.002)
    assert parts["latent_decoder"] + parts["token_decoder"] + parts["vocabulary_head"] == (
        pytest.approx(decoding, rel=0.002))
    assert sum(parts.values()) == pytest.approx(total, rel=0.003)


# 3/4 of positions are told.
WIDE = {"latent_width": 48, "width": 64, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 3,
        "denoiser_layers": 3, "token_decoder_layers": 2, "token_decoder_width": 96, "token_decoder_heads": 2}


@pytest.mark.parametrize("layout", [
    {}, {"num_latents": 8}, {"perceiver_block": "split"}, {"token_decoder_mlp": "plain"},
    {"denoiser_block": "plain"}, {"self_conditioning": False}, {"prompt": True},
    # Equal widths: no projections.
    {"latent_width": 64, "token_decoder_width": 80, "token_decoder_heads": 4, "perceiver_block": "split",
     "denoiser_block": "plain", "self_conditioning": False}], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_arithmetic_of_training_is_what_torch_counts(layout, recompute):
    config = TrainConfig.model_validate(
        {**BASE, "data": {"source": "python-docs", "sequence_length": 32}, "token_loss_fraction": 0.75,
         "token_encoder": {"name": "tiny", "prefix_token": False}, "model": {**WIDE, **layout},
         "activation_checkpointing": recompute,
         "diffusion": {"self_conditioning_probability": 1.0, "prompt_dropout": 0.0}})
    shape = shape_of_config({"model_type": "gpt2", "n_embd": 80, "vocab_size": 600, "n_layer": 4})
    torch.manual_seed(0)
    model = LatentDiffusionLM(config, shape.hidden_size, None, shape.vocab_size)
    noise = draw_noise(config, 0, 0, [0, 1], "cpu")
    tokens, hidden = torch.randint(0, 600, (2, 32)), torch.randn(2, 32, 80)
    # Attention as plain products, which torch counts the same on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, hidden, noise, 1.0, noise.uniform_B).total.backward()
    flops = flops_per_token(config, shape)
    told = (flops.trained + flops.self_conditioning + flops.recomputed) * tokens.numel()
    # The logits are written into room that is there already (`out=`), which torch does not count.
    logits = 2 * 2 * config.token_loss_positions * shape.vocab_size * config.model.token_decoder_width
    assert told - logits == pytest.approx(counter.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize("layout", [
    {}, {"num_latents": 8}, {"perceiver_block": "split"}, {"token_decoder_mlp": "plain"},
    {"denoiser_block": "plain"}, {"self_conditioning": False}, {"prompt": True},
    {"latent_width": 64, "token_decoder_width": 64, "token_decoder_heads": 4, "perceiver_block": "split",
     "denoiser_block": "plain", "self_conditioning": False}], ids=str)
def test_what_autograd_keeps_is_what_the_memory_plan_says(layout):
    # Without norms of queries and keys: what those keep differs between CPU and GPU kernels.
    config = TrainConfig.model_validate(
        {**BASE, "data": {"source": "python-docs", "sequence_length": 32}, "precision": "fp32",
         "token_encoder": {"name": "tiny", "prefix_token": False},
         "model": {**WIDE, "qk_norm": False, **layout}})
    shape = shape_of_config({"model_type": "gpt2", "n_embd": 80, "vocab_size": 600, "n_layer": 4})
    model = LatentDiffusionLM(config, shape.hidden_size, None, shape.vocab_size)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    noise = draw_noise(config, 0, 0, [0, 1], "cpu")
    tokens, hidden = torch.randint(0, 600, (2, 32)), torch.randn(2, 32, 80)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = model(tokens, hidden, noise, 1.0, noise.uniform_B).total
    found = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own)
    told = 2 * hidden.nbytes  # normalised states and predicted ones: inputs of the first loss
    planned = sum(saved_activations(JobSizes(config, shape, 1)).values())
    assert planned + told == pytest.approx(found, rel=0.04)
    assert total.requires_grad


# -- the frozen weights in their formats


@pytest.mark.parametrize("weights", ["bf16", "fp8", "nf4"])
@pytest.mark.parametrize("name", KNOWN_CONFIGS)
def test_bytes_of_frozen_weights_are_those_that_are_packed(name, weights):
    shape, model = shape_of_config(KNOWN_CONFIGS[name]), on_meta(known_config(name))
    kept = list(blocks_of(model))[:shape.kept_blocks(-3)]
    packed = [sum(entry.num_values * entry.dtype.itemsize + entry.num_scales * entry.scale_dtype.itemsize
                  for entry in packed_layout(parameter_shapes(block), weights).tensors) for block in kept]
    assert [block_bytes(shape, index, weights) for index in range(len(kept))] == packed
