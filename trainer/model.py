"""The four trained parts together: their losses, and which gradients each loss may send where.

Shapes: B batch, L tokens, K latents, D channels, P positions that the vocabulary loss looks at,
C self-conditioned samples.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention import BlockStack
from trainer.chance import keyed_generator
from trainer.config import TrainConfig
from trainer.denoiser import Denoiser
from trainer.diffusion import noised
from trainer.host_copies import to_device
from trainer.latent_scale import ExactBuffers, RunningScale
from trainer.latents import LatentDecoder, LatentEncoder, TokenDecoder
from trainer.prompt import PromptContext
from trainer.sizes import longest_prompt
from trainer.token_loss import IGNORED


class StepNoise(NamedTuple):
    """All randomness of one micro-batch.

    Attributes:
        uniform_B: In [0, 1), to be turned into times by the timestep sampler; over the whole global
            batch exactly one value falls into each of its equal parts.
        latent_BKD: Standard normal, for the diffusion.
        decoder_BKD: Standard normal, for the decoder's input.
        self_conditioned_B: True where the denoiser sees its own estimate. On the CPU, wherever the rest
            is: what runs depends on it, and asking the device would wait for it.
        positions_BP: Positions of the vocabulary loss, all different within a sample.
        prompt_length_B: Tokens of the prompt that the denoiser is told, int64; 0: none.
    """

    uniform_B: Tensor
    latent_BKD: Tensor
    decoder_BKD: Tensor
    self_conditioned_B: Tensor
    positions_BP: Tensor
    prompt_length_B: Tensor


class Losses(NamedTuple):
    """Losses of one micro-batch, float32 scalars, and the diffusion loss of each sample (detached).

    What is not a number stays visible in the part that it comes from; nothing raises.
    """

    total: Tensor
    hidden: Tensor
    token: Tensor
    diffusion: Tensor
    diffusion_B: Tensor


def draw_noise(config: TrainConfig, seed: int, step: int, sample_indices: Iterable[int],
               device: torch.device | str) -> StepNoise:
    """Noise of some samples of one step's global batch.

    Sample i of step s gets the same noise whichever rank, micro-batch or attempt asks for it. Only
    the kind of device matters, for the two normal tensors: they are drawn where they are used.

    Args:
        config: Shapes and probabilities.
        seed: Of the run.
        step: From 0.
        sample_indices: Positions in the global batch, each in [0, global_batch_size).
        device: Where the tensors go.
    """
    samples = [_draw_sample(config, seed, step, int(index), torch.device(device)) for index in sample_indices]
    noise = StepNoise(*(torch.stack(tensors) for tensors in zip(*samples, strict=True)))
    there = StepNoise(*(to_device(tensor, device) for tensor in noise))
    return there._replace(self_conditioned_B=noise.self_conditioned_B)


def _draw_sample(config: TrainConfig, seed: int, step: int, index: int,
                 device: torch.device) -> tuple[Tensor, ...]:
    choices = keyed_generator("cpu", seed, step, index, "choices")
    normals = keyed_generator(device, seed, step, index, "normals")
    shape = (config.num_latents, config.model.latent_width)
    uniform = (index + torch.rand((), generator=choices, dtype=torch.float64)) / config.global_batch_size
    coin = torch.rand((), generator=choices) < config.diffusion.self_conditioning_probability
    length = config.data.sequence_length
    positions = torch.randperm(length, generator=choices)[:config.token_loss_positions]
    latent, decoder = (torch.randn(shape, generator=normals, device=device) for _ in range(2))
    prompt_length = _draw_prompt_length(config, choices)
    return uniform.clamp(max=1 - 1e-7).float(), latent, decoder, coin, positions, prompt_length


def _draw_prompt_length(config: TrainConfig, generator: torch.Generator) -> Tensor:
    if not config.model.prompt:
        return torch.zeros((), dtype=torch.int64)
    is_dropped = torch.rand((), generator=generator) < config.diffusion.prompt_dropout
    length = torch.randint(1, longest_prompt(config) + 1, (), generator=generator)
    return length * ~is_dropped


def gated(z_BKD: Tensor, encoder_gate: float) -> Tensor:
    """The same latents; of a gradient with respect to them, the share `encoder_gate` passes."""
    return z_BKD.detach() + encoder_gate * (z_BKD - z_BKD.detach())


class LatentDiffusionLM(ExactBuffers):
    """Latent encoder, latent decoder, token decoder and denoiser.

    Args:
        config: Sizes, schedule and losses.
        hidden_size: d_h of the frozen token encoder.
        token_ids: Sorted ids that the head covers, or None for all.
        vocab_size: Rows of the token encoder's embedding; the head's size when it covers all.
    """

    hidden_mean: Tensor
    hidden_std: Tensor
    token_ids: Tensor | None

    def __init__(self, config: TrainConfig, hidden_size: int, token_ids: Tensor | None,
                 vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = LatentEncoder(config, hidden_size)
        self.decoder = LatentDecoder(config, hidden_size)
        self.token_decoder = TokenDecoder(config, hidden_size,
                                          vocab_size if token_ids is None else len(token_ids))
        self.denoiser = Denoiser(config, hidden_size)
        self.register_buffer("hidden_mean", torch.zeros(hidden_size))
        self.register_buffer("hidden_std", torch.ones(hidden_size))
        self.register_buffer("token_ids", None if token_ids is None else token_ids.long().clone())

    def parts(self) -> dict[str, nn.Module]:
        """The trained parts by name."""
        return {"latent_encoder": self.encoder, "latent_decoder": self.decoder,
                "token_decoder": self.token_decoder, "denoiser": self.denoiser}

    def compile_for_training(self) -> None:
        """Have torch compile the blocks of all parts, when the first batch comes."""
        for module in self.modules():
            if isinstance(module, BlockStack):
                module.compiles = True

    def set_statistics(self, mean_D: Tensor, std_D: Tensor) -> None:
        """Fix what `normalise` subtracts and divides by; measured once, before training."""
        self.hidden_mean.copy_(mean_D)
        self.hidden_std.copy_(std_D)

    def normalise(self, h_BLD: Tensor) -> Tensor:
        """Hidden states at mean 0 and standard deviation 1 in each channel, cut at +-`clip`, float32."""
        clip = self.config.token_encoder.clip
        return ((h_BLD.float() - self.hidden_mean) / self.hidden_std).clamp(-clip, clip)

    def targets(self, tokens: Tensor) -> Tensor:
        """Rows of the head for token ids, any shape; -100 for an id that it does not cover."""
        if self.token_ids is None:
            return tokens
        rows = torch.searchsorted(self.token_ids, tokens).clamp(max=len(self.token_ids) - 1)
        return torch.where(self.token_ids[rows] == tokens, rows, IGNORED)

    def prompt_context(self, h_BPD: Tensor, lengths_B: Tensor) -> PromptContext:
        """What the denoiser is told of prompts, from their hidden states as the token encoder gave them.

        Args:
            h_BPD: Hidden states, padded to one length; not normalised.
            lengths_B: Tokens of each prompt, 0 for none.

        Raises:
            ValueError: Padded prompts are longer than any in training, or `model.prompt` is off.
        """
        longest = longest_prompt(self.config)
        if h_BPD.shape[1] > longest:
            raise ValueError(f"a prompt of {h_BPD.shape[1]} tokens, but this model reads at most {longest}")
        return PromptContext(self.normalise(h_BPD), lengths_B)

    def end_step(self) -> None:
        """Close an optimizer step: a running scale of the latents takes in what the step has seen.

        Call it on every rank after each optimizer step: with `latent_norm: running_std` it is a
        collective, and every rank holds the same scale afterwards.
        """
        if isinstance(self.encoder.scale, RunningScale):
            self.encoder.scale.end_step()

    def forward(self, tokens_BL: Tensor, h_BLD: Tensor, noise: StepNoise, encoder_gate: float,
                u_B: Tensor, prompt_h_BPD: Tensor | None = None) -> Losses:
        """Losses of one micro-batch; their weighted sum is what is minimised.

        Args:
            tokens_BL: Token ids.
            h_BLD: Their hidden states from the token encoder, not normalised.
            noise: From `draw_noise`.
            encoder_gate: gamma(s), the share of the diffusion gradient that reaches the encoder.
            u_B: Diffusion times.
            prompt_h_BPD: Hidden states of the first tokens as they are without the tokens after them.
                None: those of `h_BLD`, which is the same for a causal token encoder.
        """
        settings = self.config.diffusion
        hbar_BLD = self.normalise(h_BLD)
        z_BKD = self.encoder(hbar_BLD)
        hhat_BLD = self.reconstruction(z_BKD, noise)
        # One of the two is measured only. Cross-entropy would push the latents of different texts far apart.
        by_token = settings.decoder_loss == "token"
        hidden = F.mse_loss(hhat_BLD.detach() if by_token else hhat_BLD, hbar_BLD)
        token = self.token_loss(hhat_BLD if by_token else hhat_BLD.detach(), tokens_BL, noise.positions_BP)
        prompt = self.prompt_of(h_BLD, noise, prompt_h_BPD)
        diffusion_B = self.diffusion_loss(gated(z_BKD, encoder_gate), noise.latent_BKD, u_B,
                                          noise.self_conditioned_B, prompt)
        diffusion = diffusion_B.mean()
        total = (settings.diffusion_weight * diffusion + settings.hidden_weight * hidden
                 + settings.token_weight * token)
        return Losses(total, hidden, token, diffusion, diffusion_B.detach())

    def reconstruction(self, z_BKD: Tensor, noise: StepNoise) -> Tensor:
        """Hidden states, normalised, that the latent decoder makes of latents under its noise."""
        return self.decoder(z_BKD + self.config.diffusion.decoder_noise_std * noise.decoder_BKD)

    def prompt_of(self, h_BLD: Tensor, noise: StepNoise, prompt_h_BPD: Tensor | None) -> PromptContext | None:
        """What the denoiser is told of the first tokens; see `forward`. None with `model.prompt` off."""
        if not self.config.model.prompt:
            return None
        first_BPD = h_BLD[:, :longest_prompt(self.config)] if prompt_h_BPD is None else prompt_h_BPD
        return self.prompt_context(first_BPD, noise.prompt_length_B)

    def token_loss(self, hhat_BLD: Tensor, tokens_BL: Tensor, positions_BP: Tensor) -> Tensor:
        """Mean cross-entropy in nats at some positions; ids that the head does not cover do not count."""
        return self.token_decoder(hhat_BLD, positions_BP, self.targets(tokens_BL.gather(1, positions_BP)))

    def diffusion_loss(self, z_BKD: Tensor, eps_BKD: Tensor, u_B: Tensor,
                       self_conditioned_B: Tensor | None = None,
                       prompt: PromptContext | None = None) -> Tensor:
        """Mean squared error of the predicted clean latent, for each sample: (B,).

        Without `self_conditioned_B` no sample is self-conditioned.
        """
        z_u = noised(z_BKD, eps_BKD, u_B, self.config.diffusion.tan_d)
        estimate = self._earlier_estimate(z_u, u_B, self_conditioned_B, prompt)
        return (self.denoiser(z_u, u_B, estimate, prompt) - z_BKD).square().mean(dim=(1, 2))

    @torch.no_grad()
    def _earlier_estimate(self, z_u: Tensor, u_B: Tensor, self_conditioned_B: Tensor | None,
                          prompt: PromptContext | None) -> Tensor:
        """The denoiser's own first prediction where a sample is self-conditioned, zeros elsewhere."""
        estimate = torch.zeros_like(z_u)
        if not self.config.model.self_conditioning or self_conditioned_B is None:
            return estimate
        chosen_C = self_conditioned_B.nonzero().squeeze(1)
        if len(chosen_C):
            chosen_C = to_device(chosen_C, z_u.device)
            told = None if prompt is None else PromptContext(*(part[chosen_C] for part in prompt))
            estimate[chosen_C] = self.denoiser(z_u[chosen_C], u_B[chosen_C], estimate[chosen_C], told)
        return estimate
