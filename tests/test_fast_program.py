"""The fast path computes what the reference does: every layout, solver and way of guiding, on the CPU."""

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import HIDDEN_SIZE, LAYOUTS, VOCABULARY, name_of, tiny_config, tiny_model  # noqa: E402

from trainer.diffusion import TimestepSampler  # noqa: E402
from trainer.fast.generator import FastGenerator  # noqa: E402
from trainer.fast.program import FastModel  # noqa: E402
from trainer.fast.weights import Mode  # noqa: E402
from trainer.generate import Generator, decode, sample_latents  # noqa: E402
from trainer.prompt import PromptContext  # noqa: E402

END = 9
DEEP = {"decoder_layers": 2, "denoiser_layers": 2, "token_decoder_layers": 2}
SEEN = torch.arange(3, 33, 2)


def _generator(layout=None, token_ids=None, num_tokens=VOCABULARY - 4, **sampling) -> Generator:
    """Two layers of everything, no number where it starts: gains of 1 and shifts of 0 would hide errors."""
    config = tiny_config(DEEP | (layout or {}), sampling={"steps": 3} | sampling)
    model = tiny_model(config, token_ids).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    warp = TimestepSampler(10, 0.999, 1)
    warp.probabilities = torch.linspace(2.0, 0.2, 10, dtype=torch.float64) / 11
    return Generator(config, model, warp, num_tokens, END)


def _fast(generator: Generator, mode: Mode = "fp32") -> FastGenerator:
    return FastGenerator(**vars(generator), fast=FastModel(generator, mode, None))


def _prompt(generator: Generator, num: int) -> PromptContext | None:
    if not generator.config.model.prompt:
        return None
    hidden = torch.randn(num, 4, HIDDEN_SIZE, generator=torch.Generator().manual_seed(4))
    return generator.model.prompt_context(hidden, torch.tensor([3, 0, 4])[:num])


def _errors(generator: Generator, num: int, mode: Mode = "fp32") -> tuple[float, float]:
    """Relative error of the latents, and the share of tokens that are the same."""
    context = _prompt(generator, num)
    model = generator.model
    latents = sample_latents(model, range(num), 7, generator.config.sampling, generator.warp, context)
    tokens = decode(model, latents, generator.num_tokens)
    found = _fast(generator, mode).generated(range(num), 7, context)
    error = (found.latents_BKD - latents).norm() / latents.norm()
    return float(error), float((found.tokens_BL == tokens).float().mean())


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_every_layout_gives_the_latents_and_tokens_of_the_reference(layout, num) -> None:
    error, same = _errors(_generator(layout), num)
    assert error < 1e-5 and same == 1


WAYS = [{"solver": solver, "grid": grid} for solver in ("ddim", "ancestral", "sde")
        for grid in ("uniform", "warped")]
WAYS += [{"steps": 1}, {"temperature": 0.5}]
WAYS += [{"self_conditioning_guidance": weight} for weight in (0.0, 2.0)]


@pytest.mark.parametrize("sampling", WAYS, ids=str)
def test_every_way_of_sampling_gives_the_latents_and_tokens_of_the_reference(sampling) -> None:
    error, same = _errors(_generator(**sampling), 3)
    assert error < 1e-5 and same == 1


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("block", ["adaln", "plain"])
def test_prompts_of_every_length_are_heard_as_by_the_reference(block, weight) -> None:
    generator = _generator({"prompt": True, "denoiser_block": block}, prompt_guidance=weight,
                           self_conditioning_guidance=1.5)
    error, same = _errors(generator, 3)
    assert error < 1e-5 and same == 1
    plain, told = (_fast(generator).generated(range(3), 7, context).latents_BKD
                   for context in (None, _prompt(generator, 3)))
    assert torch.equal(plain, told) == (weight == 0)


def test_a_head_of_seen_tokens_gives_their_ids_and_padded_rows_give_none() -> None:
    generator = _generator(token_ids=SEEN)
    assert _errors(generator, 3)[1] == 1
    assert torch.isin(_fast(generator).generated(range(3), 7).tokens_BL, SEEN).all()
    padded = _generator()
    with torch.no_grad():
        padded.model.token_decoder.head.bias[-4:] = 1e4
    assert _errors(padded, 3)[1] == 1
    assert (_fast(padded).generated(range(3), 7).tokens_BL < VOCABULARY - 4).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_one_pass_in_bfloat16_is_off_by_no_more_than_a_hundredth(layout) -> None:
    error, _ = _errors(_generator(layout, steps=1), 3, "bf16")
    assert 1e-4 < error < 1e-2


@pytest.mark.parametrize(("mode", "least", "most"), [("bf16", 1e-4, 1e-2), ("fp8", 3e-2, 2e-1),
                                                     ("fp4", 2e-1, 5e-1)])
@pytest.mark.parametrize("block", ["adaln", "plain"])
def test_ten_passes_are_off_by_a_hundredth_at_most_in_bfloat16_a_fifth_in_fp8_half_in_fp4(
        block, mode, least, most) -> None:
    """With matrices that keep the size of what they read; others here blow errors up from pass to pass."""
    generator = _generator({"denoiser_block": block, "width": 64, "latent_width": 64}, steps=10)
    chance = torch.Generator().manual_seed(0)
    for parameter in generator.model.denoiser.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=chance)
    error, same = _errors(generator, 3, mode)
    print(f"{block}, {mode}: error {error:.4f}, same tokens {same:.3f}")
    assert least < error < most


def test_weights_that_need_no_other_dtype_are_not_copied_and_the_reference_is_left_alone() -> None:
    generator = _generator()
    before = {name: tensor.clone() for name, tensor in generator.model.state_dict().items()}
    fast = FastModel(generator, "fp32", None)
    fast.lay_out()
    own, originals = fast.denoiser.blocks[0].mlp.up.weight, generator.model.denoiser.blocks[0].mlp[0].weight
    assert own.data_ptr() == originals.data_ptr()
    FastModel(generator, "bf16", None).lay_out()
    after = generator.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
