"""What the reader of a plan must not overlook, the gravest first. Pure."""

from collections.abc import Iterator, Mapping
from decimal import Decimal

from launcher import console
from launcher.advice import Changes, changed_config, smaller_micro_batches, typed
from launcher.alternatives import Choice
from launcher.cloud_prices import egress_usd_per_gb, hides_its_region
from launcher.cost import Range
from launcher.estimate import Case, Estimate
from launcher.fit import Fit, is_copied_from_host
from launcher.gpu_kinds import GPU_KINDS
from launcher.offers import Offer
from launcher.recipe import Recipe
from launcher.self_end import of_no_switch
from trainer.config import TrainConfig
from trainer.contract import Document
from trainer.cuda import cuda_of_torch, oldest_driver
from trainer.encoder_shape import EncoderShape
from trainer.memory import GIB, Memory, memory_per_gpu

# A CPU for longer than a day, a GPU for longer than a season: nobody means that (guess, both).
_LONG_HOURS = {"CPU": 24, "GPU": 2160}
# The furthest that a peak of memory was above its prediction: recipes/LOG.md, one H100, 2026-11-24.
_PREDICTED_TOO_LOW = 0.022
# SkyPilot 0.14.1 takes `custom-gpu-ubuntu-v2`, a community image without a version; where that has no region,
# ubuntu-hpc 2204 of August 2023, with 535.54. ubuntu-hpc 2404 has 580 since January 2026 (azhpc-images#478).
_OF_AZURE, _IMAGE_OF_AZURE = 535, "microsoft-dsvm:ubuntu-hpc:2404:latest"
_WARM_UP_SHARE = 10  # of a run's steps, as in the paper's 50,000 of some 500,000 (guess)


def plan_warnings(case: Case, estimate: Estimate, instead: Choice | None) -> Iterator[str]:
    """Warnings of a plan: what was not checked, what it is not, where it may stop.

    Args:
        instead: What costs clearly less than copying the encoder from host memory, where the plan does.
    """
    recipe, shape, train, fitted = case.recipe, case.shape, case.offers[Document.TRAIN], estimate.fitted
    yield from _of_hopeless_hours(recipe, train, estimate.hours)
    yield from _of_what_is_not_known(recipe, shape, train)
    yield from _of_idle_gpus(train, fitted)
    yield from _of_prices(case.offers)
    yield from _of_regions(case.offers[Document.TRAIN], recipe.store)
    yield from _of_drivers(case.offers)
    yield from of_no_switch(case.offers.values())
    bench = case.offers[Document.BENCH]
    if bench.gpu != "RTX5090":
        yield f"the benchmark runs on {bench.label}: its figures are not RTX 5090 figures"
    spent_usd = case.done.spent_usd if case.done else Decimal(0)
    yield from _of_limits(recipe, estimate, spent_usd)
    yield from _of_warm_ups(recipe.train)
    yield from _of_memory(recipe, train, fitted, instead)
    if shape is not None and fitted.memory is not None:
        yield from _of_little_left(train, fitted, fitted.memory, shape)


def _of_hopeless_hours(recipe: Recipe, train: Offer, hours: Range) -> Iterator[str]:
    at_most = _LONG_HOURS["GPU" if train.gpu else "CPU"]
    if hours.mid < at_most:
        return
    days = float(hours.mid) / 24
    time = f"~{days / 365:,.0f} years" if days > 730 else f"~{days:,.0f} days"
    rented = next((found.infra for found in recipe.hardware.train if not found.is_local), None)
    if train.gpu:
        fix = "more or larger GPUs, or fewer train.steps"
    else:
        how = f"--infra {rented}" if rented else "gpu in hardware.train; --infra vast rents one"
        fix = f"a GPU ({how})"
    yield f"this would take {time} on {train.hardware}; what would do: {fix}"


def _of_idle_gpus(train: Offer, fitted: Fit) -> Iterator[str]:
    each = fitted.config.gpus_per_rank
    used = fitted.ranks_per_node * each
    idle = train.num_gpus - used
    if train.gpu and idle > 0:
        paid = ", and is paid for" if not train.is_local else ""
        yield (f"{idle} of {train.num_gpus} GPUs stays idle{paid}: a rank takes {each}; "
               f"take {train.gpu}:{used} or {train.gpu}:{used + each}")


def _of_what_is_not_known(recipe: Recipe, shape: EncoderShape | None, train: Offer) -> Iterator[str]:
    name = recipe.train.token_encoder.name
    if shape is None:
        yield (f"the encoder {name} is not known here: whether it fits was not checked, and time and dollars "
               "are without it")
    if train.lacks:
        yield f"{train.lacks}; this plan is for a machine of yours that has {train.accelerators}"
    if train.gpu is not None and train.gpu not in GPU_KINDS:
        yield f"the speed of {train.gpu} is not known, so the time is a guess for a middling card"


def _of_prices(offers: Mapping[Document, Offer]) -> Iterator[str]:
    yield from dict.fromkeys(f"{one.label}: {one.too_low}" for one in offers.values() if one.too_low)
    for label in dict.fromkeys(offer.label for offer in offers.values() if offer.price_usd_per_hour is None):
        yield f"the price of {label} is not known, so neither are the dollars"
    if offers[Document.TRAIN].price_is_simulated:
        yield "the price is simulated: nobody sends a bill for this machine"
    if any(offer.bid_usd_per_hour is not None for offer in offers.values()):
        yield "the price is the bid, the most the GPU hour can cost; disk and network come on top, and " \
              "count towards the cap"
    if any(_is_most_on_demand(offer) for offer in offers.values()):
        yield "the price on demand is the most an hour can cost, with its disk; network comes on " \
              "top, and counts towards the cap"
    for label in dict.fromkeys(offer.label for offer in offers.values() if _is_only_said(offer)):
        yield f"the price of {label} is the recipe's word: no region is taken that is listed above it"


def _of_regions(train: Offer, store: str | None) -> Iterator[str]:
    if store and hides_its_region(train.infra, store):
        usd = egress_usd_per_gb(train.infra, store)
        yield (f"the store's URL does not say in which region it is, so that uploads count ${usd:.3f} a GB, "
               f"as if they left {train.cloud}; if it is that of the machines, say so: {store}?region=REGION")


def _of_drivers(offers: Mapping[Document, Offer]) -> Iterator[str]:
    """On GCP SkyPilot's image has driver 580; Vast is searched by it."""
    for offer in dict.fromkeys(offers.values()):
        cuda = cuda_of_torch(offer.torch_index)
        if offer.cloud == "azure" and offer.gpu and not offer.image and oldest_driver(cuda) > _OF_AZURE:
            yield (f"torch's CUDA {cuda[0]}.{cuda[1]} takes driver {oldest_driver(cuda)}, and that of "
                   "SkyPilot's image on Azure is not known: an older one ends the launch after three "
                   f"machines. What would do: image {_IMAGE_OF_AZURE} (never run), or a torch_index of "
                   "CUDA 12")


def _is_most_on_demand(offer: Offer) -> bool:
    """Vast is searched for nothing dearer."""
    return (offer.cloud == "vast" and not offer.spot and offer.price_usd_per_hour is not None
            and offer.listed is None)


def _is_only_said(offer: Offer) -> bool:
    return (offer.price_usd_per_hour is not None and offer.cloud != "vast"
            and not offer.price_is_simulated and offer.listed is None)


def _of_limits(recipe: Recipe, estimate: Estimate, spent_usd: Decimal) -> Iterator[str]:
    cap, deadline, most = recipe.limits.max_cost_usd, recipe.limits.deadline_hours, recipe.limits.max_hours
    usd, hours, training = estimate.usd, estimate.hours, estimate.training_hours
    if usd is not None and spent_usd + usd.high > cap:
        yield (f"may stop at its cap of {console.dollars(cap)}: the high estimate is "
               f"{console.dollars(spent_usd + usd.high)}")
    if deadline is not None and float(training.high) > deadline:
        yield f"may stop at its deadline of {deadline:g} h: the high estimate is {training.high:.2f} h"
    if most is not None and float(hours.high) > most:
        yield f"may stop at its {most:g} paid hours: the high estimate is {hours.high:.2f} h"


def _of_warm_ups(config: TrainConfig) -> Iterator[str]:
    """Those that most of a run would pass in; runs of minutes on a vocabulary of their own want them so."""
    if config.model.head_vocabulary == "seen":
        return
    given = {"train.diffusion.encoder_warmup_steps": config.diffusion.encoder_warmup_steps,
             "train.optimizer.warmup_steps": config.optimizer.warmup_steps}
    long = [key for key, steps in given.items() if 2 * steps > config.steps]
    if long:
        named = " and ".join(f"{key} ({given[key]:,})" for key in long)
        shorter = typed(dict.fromkeys(long, max(1, config.steps // _WARM_UP_SHARE)))
        yield (f"{named} {'are' if long[1:] else 'is'} more than half of the run's {config.steps:,} steps; "
               f"a tenth: {shorter}")


def _of_little_left(train: Offer, fitted: Fit, memory: Memory, shape: EncoderShape) -> Iterator[str]:
    has, config = (train.gpu_memory_gib or 0) * GIB, fitted.config
    # A start that tries sizes finds out what fits.
    if not has or config.probe_micro_batch or memory.needed_bytes <= has * (1 - _PREDICTED_TOO_LOW):
        return
    smaller = next(iter(smaller_micro_batches(config)), None)
    fix = ""
    if smaller is not None:
        changes: Changes = {"train.micro_batch_size": smaller}
        less = memory_per_gpu(changed_config(config, changes), shape, fitted.world_size,
                              fitted.ranks_per_node)
        fix = f"; {typed(changes)} needs {less.needed_bytes / GIB:.1f}"
    yield (f"it needs {memory.needed_bytes / GIB:.1f} of {train.gpu_memory_gib:g} GiB of a {train.gpu}, and "
           f"predictions were up to {_PREDICTED_TOO_LOW:.1%} too low{fix}")


def _of_memory(recipe: Recipe, train: Offer, fitted: Fit, instead: Choice | None) -> Iterator[str]:
    if is_copied_from_host(fitted) and recipe.train.token_encoder.placement == "auto":
        better = f"; cheaper: {instead.words}" if instead else ""
        yield f"the encoder does not fit the GPU and is copied to it for every micro-batch{better}"
    needed = sum(fitted.host_memory.values())
    if train.host_memory_gib is not None and needed > train.host_memory_gib * GIB:
        yield (f"host memory may run out: about {needed / GIB:.0f} GiB are needed, and this machine has "
               f"{train.host_memory_gib:g}")
