"""Does a run fit the memory of its hardware, where does its encoder lie, and if not, what would fit. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.errors import NoOfferError, RecipeError
from launcher.offers import GPU_KINDS, Offer
from launcher.recipe import Recipe
from trainer.config import Placement, TrainConfig, grad_accum_steps
from trainer.encoder_shape import EncoderShape
from trainer.memory import GIB, Memory, host_bytes_of_encoder, memory_per_gpu
from trainer.sizes import encoder_bytes

PLACES = {"gpu": "on the GPU", "next_gpu": "on the next GPU", "sharded": "split over the GPUs",
          "host": "in host memory", "auto": "anywhere"}
_LARGEST_PARTS = 3  # named in a refusal
# Of a node's host memory, for frozen weights: the rest is the system's, the data's and snapshots' (guess).
_HOST_SHARE = 0.7


@dataclass(frozen=True)
class Fit:
    """A config with its encoder's placement resolved, and how it lies on the hardware.

    Attributes:
        memory: None without a GPU, or when the encoder's size is not known.
    """

    config: TrainConfig
    ranks_per_node: int
    world_size: int
    memory: Memory | None


def fit(recipe: Recipe, shape: EncoderShape | None, offer: Offer) -> Fit:
    """Resolve the encoder's placement: of `gpu`, `sharded` and `host` the first that fits.

    Raises:
        RecipeError: The batch does not divide over the ranks, or a rank takes more GPUs than a node has.
        NoOfferError: Nothing fits; the fix is the first change that does.
    """
    choices = list(_choices(recipe.train, offer))
    fits = [_placed(recipe, config, shape, offer) for config in choices]
    for found in fits:
        if shape is None or _problem(found, shape, offer) is None:
            return found
    assert shape is not None
    # Of several placements the last one needs the least of the GPU.
    least = min(fits, key=lambda found: found.memory.needed_bytes if found.memory else 0)
    problem = _problem(least, shape, offer) or ""
    raise NoOfferError(f"recipe {recipe.name} does not fit: {problem}",
                       place=recipe.place("hardware", "train"), fix=_fix(recipe.train, shape, offer))


def _choices(config: TrainConfig, offer: Offer) -> Iterator[TrainConfig]:
    """The config with each placement that it may have, best first. `next_gpu` only when asked for."""
    asked = config.token_encoder.placement
    choices: list[Placement] = ["gpu"] if asked == "auto" else [asked]
    if asked == "auto" and offer.gpu is not None:
        choices += ["sharded", "host"] if offer.num_gpus > 1 else ["host"]
    return (_changed(config, token_encoder={"placement": placement}) for placement in choices)


def _changed(config: TrainConfig, **values: Any) -> TrainConfig:
    """The same with some values replaced; those of the encoder by their own names."""
    encoder = config.token_encoder.model_copy(update=values.pop("token_encoder", {}))
    return config.model_copy(update={**values, "token_encoder": encoder})


def _placed(recipe: Recipe, config: TrainConfig, shape: EncoderShape | None, offer: Offer) -> Fit:
    per_node = offer.ranks_per_node(config.gpus_per_rank)
    if per_node == 0:
        raise RecipeError(f"train.token_encoder.placement is {config.token_encoder.placement}, which takes "
                          f"{config.gpus_per_rank} GPUs, but {offer.label} is {offer.num_gpus}",
                          place=recipe.place("train", "token_encoder", "placement"),
                          fix="set it to auto, or take hardware with more GPUs")
    world_size = per_node * offer.num_nodes
    try:
        grad_accum_steps(config, world_size)
    except ValueError as error:
        problem, _, fix = str(error).partition(": set it ")
        raise RecipeError(f"train.{problem}", place=recipe.place("train", "global_batch_size"),
                          fix=f"set train.global_batch_size {fix}") from error
    memory = None
    if shape is not None and offer.gpu is not None:
        memory = memory_per_gpu(config, shape, world_size, per_node)
    return Fit(config, per_node, world_size, memory)


def _problem(found: Fit, shape: EncoderShape, offer: Offer) -> str | None:
    """Why a placed config cannot run on an offer; None if it can."""
    if found.memory is None:
        return _host_problem(_cpu_bytes(found, shape), offer)
    if offer.gpu_memory_gib is not None and not found.memory.fits(offer.gpu_memory_gib):
        parts = found.memory.fuller_parts
        largest = sorted(parts, key=lambda name: -parts[name])[:_LARGEST_PARTS]
        named = ", ".join(f"{name} {parts[name] / GIB:.1f}" for name in largest)
        return (f"with the encoder {PLACES[found.config.token_encoder.placement]} it needs "
                f"{found.memory.needed_bytes / GIB:.1f} GiB of each {offer.gpu}, which has "
                f"{offer.gpu_memory_gib:g} ({named})")
    return _host_problem(int(found.ranks_per_node * host_bytes_of_encoder(found.config, shape) / _HOST_SHARE),
                         offer)


def _host_problem(num_bytes: int, offer: Offer) -> str | None:
    if offer.host_memory_gib is None or num_bytes <= offer.host_memory_gib * GIB:
        return None
    return (f"it needs {num_bytes / GIB:.0f} GiB of host memory, and this machine has "
            f"{offer.host_memory_gib:g}")


def _cpu_bytes(found: Fit, shape: EncoderShape) -> int:
    """Host memory of all ranks without a GPU. On a CPU bf16 weights are held in float32."""
    doubled = 2 if found.config.token_encoder.weights == "bf16" else 1
    config = _changed(found.config, token_encoder={"placement": "gpu"})
    trained = memory_per_gpu(config, shape, found.world_size, found.ranks_per_node)
    encoder = encoder_bytes(found.config, shape) * doubled
    others = trained.allocated_bytes - trained.parts.get("token encoder", 0)
    return found.ranks_per_node * (encoder + others)


def _fix(config: TrainConfig, shape: EncoderShape, offer: Offer) -> str:
    """The first change that makes it fit, as what to type; else the smallest GPU that does."""
    for words, changed in _changes(config):
        if _some_placement_fits(changed, shape, offer):
            return f"add {words}"
    larger = _larger_gpu(config, shape, offer)
    if larger:
        return f"take a larger GPU: {larger} would do (gpu in hardware.train)"
    return "take more GPUs (gpu in hardware.train), or a smaller profile"


def _changes(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Changes to try, the cheapest in speed and quality first, then those that cost more."""
    # Divisors of the size keep the global batch divisible.
    size = config.micro_batch_size
    smaller = [size // part for part in range(2, size + 1) if size % part == 0]
    bases = [("", config)]
    if config.token_encoder.placement not in ("auto", "next_gpu"):
        bases.append(("--set train.token_encoder.placement=auto",
                      _changed(config, token_encoder={"placement": "auto"})))
    for name in ("fp8", "nf4"):
        if config.token_encoder.weights != "nf4" and name != config.token_encoder.weights:
            bases.append((f"--set train.token_encoder.weights={name}",
                          _changed(config, token_encoder={"weights": name, "placement": "auto"})))
    for words, base in bases:
        yield words, base
        yield from _lighter(words, base, smaller)


def _lighter(words: str, base: TrainConfig, smaller: list[int]) -> Iterator[tuple[str, TrainConfig]]:
    """One config with fewer sequences at a time, checkpointing, stage 2, and these together."""
    def said(*more: str) -> str:
        return " ".join(part for part in (words, *more) if part)

    for stage in sorted({base.zero_stage, 2}):
        stage_words = [] if stage == base.zero_stage else [f"--set train.zero_stage={stage}"]
        staged = _changed(base, zero_stage=stage)
        if stage_words:
            yield said(*stage_words), staged
        for size in smaller:
            yield (said(*stage_words, f"--set train.micro_batch_size={size}"),
                   _changed(staged, micro_batch_size=size))
        for size in [base.micro_batch_size, *smaller]:
            sized = [] if size == base.micro_batch_size else [f"--set train.micro_batch_size={size}"]
            yield (said(*stage_words, "--set train.activation_checkpointing=true", *sized),
                   _changed(staged, activation_checkpointing=True, micro_batch_size=size))


def _some_placement_fits(config: TrainConfig, shape: EncoderShape, offer: Offer) -> bool:
    for choice in _choices(config, offer):
        per_node = offer.ranks_per_node(choice.gpus_per_rank)
        world_size = per_node * offer.num_nodes
        try:
            memory = memory_per_gpu(choice, shape, world_size, per_node) if offer.gpu else None
        except ValueError:
            continue
        if _problem(Fit(choice, per_node, world_size, memory), shape, offer) is None:
            return True
    return False


def faster_format(found: Fit, shape: EncoderShape, offer: Offer) -> str | None:
    """A format that would keep on the GPU what is copied from host memory now, as what to type."""
    if found.memory is None or found.config.token_encoder.placement != "host":
        return None
    for name in ("fp8", "nf4"):
        config = _changed(found.config, token_encoder={"weights": name, "placement": "gpu"})
        if _some_placement_fits(config, shape, offer):
            return f"--set train.token_encoder.weights={name}"
    return None


def _larger_gpu(config: TrainConfig, shape: EncoderShape, offer: Offer) -> str | None:
    """The smallest GPU, as many as now, on which the config fits as it is."""
    if offer.gpu is None:
        return None
    for name, kind in sorted(GPU_KINDS.items(), key=lambda item: item[1].memory_gib):
        larger = offer.model_copy(update={"gpu": name, "gpu_memory_gib": kind.memory_gib})
        if _some_placement_fits(config, shape, larger):
            return f"{name}:{offer.num_gpus}"
    return None
