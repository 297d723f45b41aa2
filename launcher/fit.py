"""Does a run fit the memory of its hardware, and where does its encoder lie. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from launcher.advice import Changes, changed_config, smaller_micro_batches, typed
from launcher.errors import DoesNotFitError, NoOfferError, RecipeError
from launcher.gpu_kinds import GPU_KINDS, gpu_kind, nearest_name
from launcher.offers import Offer
from launcher.recipe import Recipe
from trainer.config import Placement, TrainConfig, grad_accum_steps
from trainer.encoder_shape import EncoderShape
from trainer.memory import GIB, Memory, host_memory_per_node, memory_per_gpu, predicted_micro_batch
from trainer.sizes import encoder_bytes

PLACES = {"gpu": "on the GPU", "next_gpu": "on the next GPU", "sharded": "split over the GPUs",
          "host": "in host memory", "auto": "anywhere"}
_PLACEMENT = "train.token_encoder.placement"
_LARGEST_PARTS = 3  # named in a refusal


@dataclass(frozen=True)
class Fit:
    """A config with its encoder's placement resolved, and how it lies on the hardware.

    Attributes:
        memory: None without a GPU, or when the encoder's size is not known.
        host_memory: Bytes that a node needs beside its GPUs, by part; empty where `memory` is None.
    """

    config: TrainConfig
    ranks_per_node: int
    world_size: int
    memory: Memory | None
    host_memory: Mapping[str, int] = field(default_factory=dict)


def fit(recipe: Recipe, shape: EncoderShape | None, offer: Offer) -> Fit:
    """Resolve the encoder's placement: of `gpu`, `sharded` and `host` the first that fits.

    Raises:
        RecipeError: The batch does not divide over the ranks, or a rank takes more GPUs than a node has.
        DoesNotFitError: Nothing fits, or the GPU lacks the precision.
        NoOfferError: Nothing is known of the GPU.
    """
    _check_card(recipe, offer)
    choices = list(_choices(recipe.train, offer))
    fits = [_placed(recipe, config, shape, offer) for config in choices]
    for found in fits:
        if shape is None or _problem(found, shape, offer) is None:
            return found
    assert shape is not None
    # Of several placements the last one needs the least of the GPU.
    least = min(fits, key=lambda found: found.memory.needed_bytes if found.memory else 0)
    raise DoesNotFitError(f"recipe {recipe.name} does not fit: {_problem(least, shape, offer)}",
                          place=recipe.place("hardware", "train"),
                          fix="take more GPUs (gpu in hardware.train), or a smaller profile")


def is_copied_from_host(found: Fit) -> bool:
    """True if every micro-batch brings the encoder's blocks from host memory."""
    return found.memory is not None and found.config.token_encoder.placement == "host"


def _check_card(recipe: Recipe, offer: Offer) -> None:
    has_no_fp8 = offer.gpu is None or (offer.gpu in GPU_KINDS and not gpu_kind(offer.gpu).has_fp8)
    if recipe.train.token_encoder.products == "fp8" and has_no_fp8:
        raise DoesNotFitError(f"{offer.gpu or 'a CPU'} multiplies nothing in fp8, which Ada, Hopper and "
                              "newer GPUs do", place=recipe.place("hardware", "train"),
                              changes={"train.token_encoder.products": "bf16"})
    if offer.gpu is None:
        return
    if recipe.train.precision == "bf16" and not gpu_kind(offer.gpu).has_bf16:
        raise DoesNotFitError(f"{offer.gpu} has no bf16, which Ampere and newer GPUs have",
                              place=recipe.place("hardware", "train"), changes={"train.precision": "fp32"})
    if offer.gpu_memory_gib is not None:
        return
    near, index = nearest_name(offer.gpu), recipe.candidate_index(offer.infra, offer.accelerators) or 0
    key = f"hardware.train.{index}"
    changes: Changes = {f"{key}.gpu": f"{near}:{offer.num_gpus}"} if near else {f"{key}.gpu_memory_gib": 24}
    raise NoOfferError(f"{offer.gpu} is neither here nor a GPU whose memory is known",
                       place=recipe.place("hardware", "train"), changes=changes,
                       note=f"or add what one has, such as --set {key}.gpu_memory_gib=24" if near
                       else "or what one has")


def _choices(config: TrainConfig, offer: Offer) -> Iterator[TrainConfig]:
    """The config with each placement that it may have, best first. `next_gpu` only when asked for."""
    asked = config.token_encoder.placement
    choices: list[Placement] = ["gpu"] if asked == "auto" else [asked]
    if asked == "auto" and offer.gpu is not None:
        choices += ["sharded", "host"] if offer.num_gpus > 1 else ["host"]
    return (changed_config(config, {_PLACEMENT: placement}) for placement in choices)


def _placed(recipe: Recipe, config: TrainConfig, shape: EncoderShape | None, offer: Offer) -> Fit:
    per_node = offer.ranks_per_node(config.gpus_per_rank)
    if per_node == 0:
        raise RecipeError(f"{_PLACEMENT} is {config.token_encoder.placement}, which takes "
                          f"{config.gpus_per_rank} GPUs, but {offer.label} is {offer.num_gpus}",
                          place=recipe.place("train", "token_encoder", "placement"),
                          changes={_PLACEMENT: "auto"}, note="or take hardware with more GPUs")
    world_size = per_node * offer.num_nodes
    if config.probe_micro_batch:
        gpu_gib = offer.gpu_memory_gib if offer.gpu else None
        size = predicted_micro_batch(config, shape, world_size, per_node, gpu_gib)
        config = config.model_copy(update={"micro_batch_size": size})
    _check_batch(recipe, config, world_size)
    if shape is None or offer.gpu is None:
        return Fit(config, per_node, world_size, None)
    return Fit(config, per_node, world_size, memory_per_gpu(config, shape, world_size, per_node),
               host_memory_per_node(config, shape, world_size, per_node))


def _check_batch(recipe: Recipe, config: TrainConfig, world_size: int) -> None:
    try:
        grad_accum_steps(config, world_size)
    except ValueError as error:
        problem, _, fix = str(error).partition(": set it to ")
        near, _, note = fix.rstrip(")").partition(" (")
        changes: Changes = {"train.global_batch_size": int(near)}
        smaller = next((size for size in smaller_micro_batches(config)
                        if config.global_batch_size % (size * world_size) == 0), None)
        # A larger global batch is another run, and as many steps of it cost as much more.
        if smaller is not None and int(near) > config.global_batch_size:
            changes, note = {"train.micro_batch_size": smaller}, f"or {typed(changes)}"
        raise RecipeError(f"train.{problem}", place=recipe.place("train", "global_batch_size"),
                          changes=changes, note=note) from error


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
    # What processes take is a guess, and no reason to refuse.
    sure = sum(size for name, size in found.host_memory.items() if name != "processes")
    return _host_problem(sure, offer)


def _host_problem(num_bytes: int, offer: Offer) -> str | None:
    if offer.host_memory_gib is None or num_bytes <= offer.host_memory_gib * GIB:
        return None
    return (f"it needs {num_bytes / GIB:.0f} GiB of host memory, and this machine has "
            f"{offer.host_memory_gib:g}")


def _cpu_bytes(found: Fit, shape: EncoderShape) -> int:
    """Host memory of all ranks without a GPU. On a CPU bf16 weights are held in float32."""
    doubled = 2 if found.config.token_encoder.weights == "bf16" else 1
    config = changed_config(found.config, {_PLACEMENT: "gpu"})
    trained = memory_per_gpu(config, shape, found.world_size, found.ranks_per_node)
    encoder = encoder_bytes(found.config, shape) * doubled
    others = trained.allocated_bytes - trained.parts.get("token encoder", 0)
    return found.ranks_per_node * (encoder + others)
