"""One text of 64 tokens with nearly all of its weights read by two persistent kernels: denoiser and decoders.

Shapes: B 1, K latents and as many tokens, W width, S steps.
"""

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import TrainConfig
from trainer.fast.denoiser import told_times
from trainer.fast.persistent.kernel import PersistentKernel
from trainer.fast.persistent.layout import blocks_of, swizzled
from trainer.fast.persistent.packing import Packed, packed
from trainer.fast.persistent.phases import End, Sublayer, chained
from trainer.fast.persistent.shape import NUM_CTAS, NUM_LATENTS, NUM_SUMMED_PARTS, SHAPES, WIDTHS, Shape
from trainer.fast.program import FastModel, Generated
from trainer.fast.weights import RoundedNorm
from trainer.prompt import PromptContext
from trainer.sampler import SOLVERS, grid_of, solver_steps


class PersistentProgram:
    """A program for which `why_not` and `why_not_here` have nothing to say.

    Raises:
        RuntimeError: A kernel did not compile, or the driver refused it.
    """

    def __init__(self, config: TrainConfig, model: FastModel) -> None:
        shape = SHAPES[config.model.width, model.mode == "fp8"]
        self._model, self._temperature = model, config.sampling.temperature
        with torch.inference_mode():
            if model.packed is None:
                model.packed = packed(model.generator.model, shape)
            self._denoiser = _denoiser(config, model, model.packed, shape)
            self._decoder = _decoder(model, model.packed, shape)
        decoders = model.generator.model
        self._positions = decoders.decoder.perceiver.positions.float()
        self._dtype = torch.float8_e4m3fn if shape.is_fp8 else torch.bfloat16
        self._norm = RoundedNorm(decoders.token_decoder.norm, torch.bfloat16)

    @torch.inference_mode()
    def __call__(self, keys_B2: Tensor, prompt: PromptContext | None) -> Generated:
        model = self._model
        self._denoiser.z0.copy_(model.noise(keys_B2, 0)[0] * self._temperature)
        self._denoiser.launch()
        self._decoder.context.copy_(self._context())
        self._decoder.launch()
        features_1KW = self._norm(self._decoder.latents[None])
        return Generated(self._denoiser.latents[None], model.tokens(features_1KW))

    def _context(self) -> Tensor:
        """What the latent decoder reads of the latents, as the kernel wants it."""
        width = self._denoiser.latents.shape[1:]
        context_KW = F.layer_norm(self._denoiser.latents, width) + self._positions
        read_KW = F.layer_norm(context_KW, width).to(self._dtype)
        if self._dtype == torch.float8_e4m3fn:  # as bytes: torch does not move its numbers about
            read_KW = read_KW.view(torch.uint8)
        return swizzled(blocks_of(read_KW).transpose(0, 1))


def why_not(config: TrainConfig, hidden_size: int, batch: int, has_prompt: bool) -> str | None:
    """What of a model or of what is asked for the kernels do not compute; None: they compute it."""
    sizes = config.model
    wants = {
        "one text at a time": batch == 1 and not has_prompt,
        f"{NUM_LATENTS} tokens and latents": config.data.sequence_length == config.num_latents == NUM_LATENTS,
        f"one width of {' or '.join(map(str, WIDTHS))}": sizes.width in WIDTHS and {
            hidden_size, sizes.latent_width, sizes.token_decoder_width} == {sizes.width},
        f"{NUM_SUMMED_PARTS} heads": {sizes.num_heads, sizes.token_decoder_heads} == {NUM_SUMMED_PARTS},
        "plain denoiser blocks with learned positions":
            (sizes.denoiser_block, sizes.denoiser_positions) == ("plain", "learned"),
        "no self-conditioning": not sizes.self_conditioning,
        "split Perceiver blocks": sizes.perceiver_block == "split",
        "normalised queries and keys": sizes.qk_norm,
        "steps of ddim": config.sampling.solver == "ddim"}
    return next((want for want, is_given in wants.items() if not is_given), None)


def why_not_here(device: torch.device) -> str | None:
    """What of a device keeps the kernels from it; None: they run."""
    if device.type != "cuda":
        return "no CUDA device"
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return "no cuda.bindings, which torch for CUDA brings"
    name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if (major, minor) != (9, 0):
        return f"{name} has capability {major}.{minor}, not 9.0"
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    return None if num_sms >= NUM_CTAS else f"{name} has {num_sms} SMs, not {NUM_CTAS}"


def _denoiser(config: TrainConfig, model: FastModel, own: Packed, shape: Shape) -> PersistentKernel:
    denoiser = model.generator.model.denoiser
    grid = grid_of(config.sampling, model.generator.warp)
    times = [told_1W[0] for told_1W in told_times(denoiser, grid[:-1].to(denoiser.positions.device))]
    mixes = [SOLVERS["ddim"](step) for step in solver_steps(grid, config.diffusion.tan_d)]
    gain_W, positions_KW = denoiser.output.weight.float(), denoiser.positions.float()
    ends = [End(gain_W, mix.keep, mix.take, positions_KW, time_W)
            for mix, time_W in zip(mixes, times[1:], strict=False)] + [End(gain_W)]
    phases = chained([], [placed for end in ends for placed in _ended(own.denoiser, end)])
    return PersistentKernel(shape, phases, positions_KW, times[0], own.denoiser[0].gain_W)


def _decoder(model: FastModel, own: Packed, shape: Shape) -> PersistentKernel:
    """Latent decoder and token decoder, up to the norm before the head."""
    whole = model.generator.model
    first_W = own.latent_decoder[0].gain_W
    ones_W, zeros_W = torch.ones_like(first_W), torch.zeros_like(first_W)
    between = End(ones_W, 0.0, 1.0, whole.token_decoder.positions.float(), zeros_W)
    phases = chained(own.latents, [*_ended(own.latent_decoder, between),
                                   *_ended(own.token_decoder, End(ones_W))])
    return PersistentKernel(shape, phases, whole.decoder.perceiver.queries.float(), zeros_W, first_W)


def _ended(sublayers: list[Sublayer], end: End) -> list[tuple[Sublayer, End | None]]:
    return [*((sublayer, None) for sublayer in sublayers[:-1]), (sublayers[-1], end)]
