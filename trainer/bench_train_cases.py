"""Which training steps a benchmark times: what was typed, as a config of the trainer. No torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from trainer.config import Products, TrainConfig, WeightFormat
from trainer.contract import ConfigError

# What runs: the whole step, the step on hidden states that are simply there, or the frozen encoder alone.
Scope = Literal["joint", "trainables", "encoder"]
_SCOPES: dict[Scope, str] = {"joint": "joint step", "trainables": "trainables", "encoder": "encoder"}
_MANY_STEPS = 10**6  # more than any benchmark takes


class TrainCase(BaseModel):
    """One step to time. Two results are compared where all of it is the same.

    Attributes:
        length: Tokens of a sequence.
        micro_batch: Sequences at a time.
        num_micro_batches: In one optimizer step.
        weights: How the encoder's are held.
        products: What its blocks multiply in.
        compiles: The trained blocks, by torch, where a GPU has Triton.
        num_ranks: Of which this is the first, with its share of the optimizer's state.
        ranks_are_real: torchrun has started the others; else they are imagined, and nothing is sent.
        placement: Of the encoder: whole on every GPU, or split over all.
        encoder_micro_batch: Sequences that the encoder reads at a time; None: one micro-batch.
    """

    model_config = ConfigDict(frozen=True)
    profile: str
    scope: Scope
    length: int
    micro_batch: int
    num_micro_batches: int
    weights: WeightFormat
    products: Products = "bf16"
    zero_stage: Literal[1, 2] = 1
    num_ranks: int = 1
    ranks_are_real: bool = False
    placement: Literal["gpu", "sharded"] = "gpu"
    compiles: bool = False
    encoder_micro_batch: int | None = None

    @property
    def num_tokens(self) -> int:
        """Of one step on this rank."""
        return self.num_micro_batches * self.micro_batch * self.length

    def __str__(self) -> str:
        held = "" if self.scope == "trainables" else f", encoder {self.weights}"
        held += " multiplied" if self.products == "fp8" else ""
        held += ", split" if self.placement == "sharded" else ""
        held += f", {self.encoder_micro_batch} at a time" if self.encoder_micro_batch else ""
        state = "" if self.scope == "encoder" else f", ZeRO {self.zero_stage}"
        ranks = f", rank 0 of {self.num_ranks}" if self.num_ranks > 1 else ""
        ranks = f", {self.num_ranks} ranks" if self.ranks_are_real else ranks
        compiled = ", compiled" if self.compiles else ""
        return (f"{self.profile} {_SCOPES[self.scope]}, {self.num_micro_batches} x {self.micro_batch} x "
                f"{self.length} tokens{held}{state}{ranks}{compiled}")


def profile_config(name: str) -> TrainConfig:
    """What a profile trains, for no text and with an encoder on this GPU.

    Raises:
        ConfigError: It cannot be trained.
    """
    return _config({"profile": name, "steps": _MANY_STEPS, "data": {"source": "none"},
                    "token_encoder": {"placement": "gpu"}}, name)


def config_of(case: TrainCase) -> TrainConfig:
    """The trainer's config of a case. Raises ConfigError."""
    sequences = case.micro_batch * case.num_micro_batches * case.num_ranks
    return _config({
        "profile": case.profile, "steps": _MANY_STEPS,
        "data": {"source": "none", "sequence_length": case.length},
        "token_encoder": {"placement": case.placement, "weights": case.weights, "products": case.products,
                          "micro_batch_size": case.encoder_micro_batch},
        "zero_stage": case.zero_stage, "compile": case.compiles,
        "micro_batch_size": case.micro_batch, "global_batch_size": sequences}, case.profile)


def _config(values: dict[str, object], name: str) -> TrainConfig:
    try:
        return TrainConfig.model_validate(values)
    except ValueError as error:
        raise ConfigError(f"the profile {name} cannot be used: {error}", place="--preset",
                          fix="give other sizes") from error
