"""Plan + templates -> Task: finished SkyPilot YAML and its digest. Same bytes for the same plan.

A task is a pipeline: a header document with the run's name, then one document per machine,
which SkyPilot 0.14.1 runs one after the other.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from launcher.course import ELSEWHERE, ON_COURSE, Course
from launcher.course_plan import course_of, rented_apart
from launcher.errors import LdlmError
from launcher.gpu_kinds import GPU_KINDS
from launcher.offers import WITH_LIST_PRICES, Offer
from launcher.plan import Plan
from launcher.recipe import Recipe, checkout_folder
from launcher.running_costs import address_usd_per_hour, disk_usd_per_hour
from launcher.saves import rates_of
from launcher.store_prices import request_usd_per_gb, sent_usd_per_gb
from launcher.uncounted import has_uncounted_network
from launcher.vast_search import IMAGE, KEY, settings_of
from trainer.config import TrainConfig
from trainer.contract import Document, Env, TaskOffer

# Where nobody has named one: lint refuses the task, and a node could open no such store.
NO_STORE = "none://set-one-with-ldlm-init"
_WITH_DISK = ("vast", "azure", "gcp")
CPUS = "8+"  # of a machine that prepares text: tokenizing takes all of them (guess)
_ORDINARY_GIB = 32
# What installing takes of a disk, pip's own copies included: torch with CUDA 8 GB, without 1.6 (guess, both).
_ENVIRONMENT_GIB, _CPU_ENVIRONMENT_GIB = 10, 3
_TOKEN_BYTES = 4  # in a shard, at most
_LOCAL_RESTARTS = 2  # after crashes without a newer checkpoint; three in a row are enough (guess)
_WITH_SPOT = ("azure", "gcp")


class Needs(NamedTuple):
    """What a plan counts on, and SkyPilot's own words do not ask for; None: nothing of the kind."""

    host_memory_gib: int | None = None
    upload_mbit_s: int | None = None


_NO_NEEDS = Needs()


@dataclass(frozen=True)
class Templates:
    """Text of sky/train.yaml and sky/bench.yaml."""

    train: str
    bench: str

    @classmethod
    def load(cls, folder: Path | None = None) -> Self:
        """Read them from sky/ of the checkout, or from another folder."""
        found = folder or checkout_folder() / "sky"
        return cls(*((found / f"{document}.yaml").read_text(encoding="utf-8") for document in Document))


@dataclass(frozen=True)
class Task:
    """Finished SkyPilot YAML: a header, then train and bench, one after the other; or one of them."""

    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text, as 64 hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def documents(self) -> list[dict[str, Any]]:
        """The documents as parsed, header first."""
        return list(yaml.safe_load_all(self.text))

    def document(self, which: Document) -> dict[str, Any]:
        """One document by its name."""
        return next(found for found in self.documents()[1:] if found["name"] == which)


def render(plan: Plan, recipe: Recipe, templates: Templates, workdir: Path) -> Task:
    """Fill the templates from a plan. Without a store the task can be read, and not be launched.

    Args:
        workdir: Absolute path of the checkout; it is what travels to the nodes.

    Raises:
        LdlmError: A hole of a template is left, or a template is not a mapping.
    """
    documents: list[dict[str, Any]] = [{"name": plan.run_id}]
    texts = {Document.TRAIN: templates.train, Document.BENCH: templates.bench}
    for which in [Document.BENCH] if plan.only_benchmark else Document:
        documents.append(_fill(which, texts[which], plan.candidates(which), _envs(plan, recipe, which),
                               workdir, plan.run_id, _needs(plan) if which is Document.TRAIN else _NO_NEEDS))
    return _task(documents)


def render_prepare(template: str, offer: Offer, envs: Mapping[str, str], workdir: Path) -> Task:
    """Fill sky/prepare.yaml: the task that prepares a text on the nodes of an offer.

    Args:
        envs: Values of the template's envs.
        workdir: Absolute path of the checkout; it is what travels to the nodes.

    Raises:
        LdlmError: A hole of the template is left, or the template is not a mapping.
    """
    return _task([{"name": "prepare"}, _fill("prepare", template, (offer,), envs, workdir, None, cpus=CPUS)])


def _task(documents: list[dict[str, Any]]) -> Task:
    return Task(yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True))


def _envs(plan: Plan, recipe: Recipe, which: Document) -> dict[str, str | None]:
    """Everything the programs on the nodes are told; an empty text means: none.

    Of several candidates the first one's envs are the task's own, and what differs elsewhere stands in one of
    its own; a node finds out where it is.
    """
    offers, deadline = rented_apart(plan.candidates(which)), plan.deadline_of(which)
    course = _course(plan, recipe, which)
    told = [_envs_of(plan, recipe, which, offer) for offer in offers]
    places = [TaskOffer(offer.infra, offer.spot,
                        {name: value for name, value in envs.items() if value != told[0][name]})
              for offer, envs in zip(offers, told, strict=True)]
    return {
        Env.RUN_ID: plan.run_id,
        Env.STORE: recipe.store or NO_STORE,
        Env.TRAIN_CONFIG: _resolved(plan, recipe).model_dump_json(),
        # One process: the benchmark is of one GPU.
        Env.RANKS_PER_NODE: str(plan.ranks_per_node if which is Document.TRAIN else 1),
        **told[0],
        Env.LIST_PRICES: told[0][Env.LIST_PRICES] or None,
        Env.REQUESTS_PRICE: f"{request_usd_per_gb(recipe.store):g}",
        Env.MAX_COST: str(plan.max_cost_usd - plan.uncounted_usd),
        # The benchmark may spend what training leaves for it.
        Env.BENCH_RESERVE: str(plan.bench_reserve_usd) if which is Document.TRAIN else "0",
        Env.MAX_HOURS: "" if plan.max_hours is None else f"{plan.max_hours:g}",
        Env.BENCH_RESERVE_HOURS: f"{plan.bench_reserve_hours if which is Document.TRAIN else 0:g}",
        Env.DEADLINE: deadline.isoformat() if deadline else "",
        Env.WAIT: f"{_wait_hours(recipe, which, course):g}",
        Env.COURSE: course.model_dump_json(exclude_none=True) if course else None,
        Env.BENCH_HOURS: f"{recipe.limits.bench_hours:g}",
        Env.TORCH_INDEX: offers[0].torch_index,
        Env.OFFERS: TaskOffer.write_all(places) if places[1:] else None,
    }


def _course(plan: Plan, recipe: Recipe, which: Document) -> Course | None:
    """Of training alone: what it has come to by the deadline is benchmarked, in hours of its own."""
    if which is Document.BENCH or plan.only_benchmark:
        return None
    needs = _needs(plan)
    return course_of(plan, recipe, lambda offer: _envs_of(plan, recipe, which, offer),
                     lambda offer: _wishes(offer, plan.run_id, needs) if offer.cloud == "vast" else None)


def _wait_hours(recipe: Recipe, which: Document, course: Course | None) -> float:
    """How long a document may be without a machine; one on a course, as long as the policy lets it."""
    if course is None:
        return recipe.limits.wait_hours_for(which)
    return math.ceil(course.hours * 100) / 100


def _envs_of(plan: Plan, recipe: Recipe, which: Document, offer: Offer) -> dict[str, str]:
    """What nodes are told of the offer that they are."""
    price, rates = offer.most_usd_per_hour, rates_of(offer, recipe.store)
    return {
        Env.GPU: offer.accelerators or "",
        Env.GPU_MEMORY: f"{offer.gpu_memory_gib:g}" if offer.accelerators and offer.gpu_memory_gib else "",
        Env.DISK: str(_disk_gib(plan, recipe.train, which, offer) or ""),
        Env.PRICE: "" if price is None else str(price),
        Env.UPLOAD_PRICE: f"{rates.upload_usd_per_gb:g}",
        Env.HOURS_TO_LOSS: f"{rates.hours_to_loss:g}",
        Env.PEAK_TFLOPS: _peak_tflops(offer, recipe.train),
        Env.OFFER: offer.label,
        Env.LIST_PRICES: _list_prices(offer, recipe.store),
    }


def _list_prices(offer: Offer, store: str | None) -> str:
    """What a machine costs beside its hours; empty where nobody bills that, or a contract tells it."""
    if offer.cloud not in WITH_LIST_PRICES:
        return ""
    sent = Decimal(0) if has_uncounted_network(offer) else sent_usd_per_gb(offer.infra, store)
    rates = {"disk_usd_per_hour": disk_usd_per_hour(offer), "sent_usd_per_gb": sent,
             "address_usd_per_hour": address_usd_per_hour(offer)}
    return json.dumps({name: f"{usd:.8f}" for name, usd in rates.items()})


def _disk_gib(plan: Plan, config: TrainConfig, which: Document, offer: Offer) -> int:
    """What a rented node's disk holds: torch and, to train, frozen weights and text. Checkpoints go from
    memory to the store, and back into memory."""
    if offer.cloud not in _WITH_DISK:
        return 0
    gib = float(_ENVIRONMENT_GIB if offer.gpu else _CPU_ENVIRONMENT_GIB)
    if which is Document.TRAIN:
        gib += min(config.data.cache_gib, plan.tokens * _TOKEN_BYTES / 2**30)
        if plan.sizes and plan.sizes.encoder.fetch_s:
            gib += plan.sizes.encoder.source_bytes / 2**30
    return math.ceil(gib)


def _peak_tflops(offer: Offer, config: TrainConfig) -> str:
    """Of all GPUs of an offer; empty without one, and where its kind is not known."""
    kind = GPU_KINDS.get(offer.gpu or "")
    if kind is None:
        return ""
    each = kind.bf16_tflops if config.precision == "bf16" else kind.fp32_tflops
    return f"{each * offer.num_gpus * offer.num_nodes:g}"


def _resolved(plan: Plan, recipe: Recipe) -> TrainConfig:
    """The recipe's config with the plan's word on where the encoder lies."""
    encoder = recipe.train.token_encoder.model_copy(update={"placement": plan.encoder_placement})
    return recipe.train.model_copy(update={"token_encoder": encoder})


def _fill(which: str, template: str, offers: Sequence[Offer], envs: Mapping[str, str | None], workdir: Path,
          run_id: str | None, needs: Needs = _NO_NEEDS, cpus: str | None = None) -> dict[str, Any]:
    document = yaml.safe_load(template)
    if not isinstance(document, dict) or not isinstance(document.get("resources"), dict):
        raise LdlmError("is no template of a task", place=f"sky/{which}.yaml", fix="restore it from git")
    _put(document, {"workdir": str(workdir), "num_nodes": offers[0].num_nodes,
                    "config": _config(offers, run_id, needs)})
    _put(document["resources"],
         _in_order([_resources(offer, needs.host_memory_gib, cpus) for offer in rented_apart(offers)]))
    _put(document["resources"]["job_recovery"],
         {"strategy": ON_COURSE if envs.get(Env.COURSE) else ELSEWHERE,
          "max_restarts_on_errors": _LOCAL_RESTARTS if offers[0].is_local else 0})
    _put(document.setdefault("envs", {}), envs)
    holes = list(leftover_nulls(document))
    if holes:
        raise LdlmError(f"holes are left: {', '.join(holes)}", place=f"sky/{which}.yaml",
                        fix="fill them in launcher/render.py or take them out of the template")
    return document


def _put(block: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Fill the holes of one block; a value of None takes the key out. Only holes are filled."""
    for key, value in values.items():
        if key in block and block[key] is None:
            if value is None:
                del block[key]
            else:
                block[key] = value


def _needs(plan: Plan) -> Needs:
    memory = plan.sizes.host_memory if plan.sizes else None
    return Needs(memory.needed_gib if memory else None, plan.saves.upload_mbit_s if plan.saves else None)


def _resources(offer: Offer, memory_gib: int | None, cpus: str | None) -> dict[str, Any]:
    image = offer.image or (IMAGE if offer.cloud == "vast" else None)
    docker = image and offer.cloud in ("vast", "k8s") and not image.startswith("docker:")
    return {
        "infra": None if offer.is_local else offer.infra,  # SkyPilot rejects `local`
        "accelerators": None if offer.is_local else offer.accelerators,
        "cpus": None if offer.is_local or offer.gpu else cpus or f"{offer.cpu_ranks}+",
        # On Vast the flag silently rents on-demand: the bid in `config` is what counts there.
        "use_spot": True if offer.spot and offer.cloud in _WITH_SPOT else None,
        "image_id": f"docker:{image}" if docker else image,
        "max_hourly_cost": _price_cap(offer),
        "memory": _memory(offer, memory_gib),
        "disk_size": offer.disk_gib if offer.cloud in _WITH_DISK else None,
    }


def _price_cap(offer: Offer) -> float | None:
    """Of one machine, by SkyPilot's catalog: what plan and nodes count; by a margin runs would pass caps."""
    if offer.cloud not in WITH_LIST_PRICES or offer.price_usd_per_hour is None:
        return None
    return float(offer.price_usd_per_hour / offer.num_nodes)


def _in_order(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Resources of several candidates: what they share, and in order what each has of its own."""
    first, *others = each
    if not others:
        return {**first, "ordered": None}
    shared = {key: value for key, value in first.items()
              if key != "infra" and all(other[key] == value for other in others)}
    return {**dict.fromkeys(first), **shared, "ordered": [
        {key: value for key, value in one.items() if key not in shared and value is not None}
        for one in each]}


def _memory(offer: Offer, needed_gib: int | None) -> str | None:
    """Host memory to ask for. Slurm and Kubernetes give out what their own rules say."""
    if needed_gib is None or offer.cloud not in _WITH_DISK:
        return None
    # SkyPilot's list of Vast says 64 GiB of every machine: there our own search asks. On GCP a small wish
    # would replace the 8 CPUs and 32 GiB that SkyPilot gives a GPU by itself.
    return f"{needed_gib}+" if offer.cloud != "vast" and needed_gib > _ORDINARY_GIB else None


def _config(offers: Sequence[Offer], run_id: str | None, needs: Needs) -> dict[str, Any] | None:
    """Of a task, and so of all its candidates: those on Vast are asked for in the same words."""
    offer = next((offer for offer in offers if offer.cloud == "vast"), None)
    return {"vast": {"create_instance_kwargs": _wishes(offer, run_id, needs)}} if offer else None


def _wishes(offer: Offer, run_id: str | None, needs: Needs) -> dict[str, Any]:
    """What Vast is asked for."""
    bid = {} if offer.bid_usd_per_hour is None else {"bid_price": float(offer.bid_usd_per_hour)}
    return bid | {KEY: settings_of(offer, run_id, *needs)}


def leftover_nulls(value: Any, path: str = "") -> Iterator[str]:
    """Paths of every null in a document (`resources.infra`); SkyPilot loads some of them silently."""
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from leftover_nulls(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leftover_nulls(inner, f"{path}[{index}]")


class _Dumper(yaml.SafeDumper):
    """Block text for scripts, and no aliases: each document stands alone."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
