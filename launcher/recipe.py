"""Recipe YAML -> strict frozen Recipe, or an error that names the line to change.

Recipes are found in the checkout that this file lies in: nothing is shipped as package data, so
`ldlm` is installed editable (`pip install -e .`) or run from the checkout.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from launcher.errors import RecipeError, UsageError
from launcher.gpu_kinds import GPU_KINDS, known_name, nearest_name
from launcher.infra import is_within, read_infra
from launcher.recipe_files import file_problems, found_folder, text_from_here
from launcher.recipe_source import Problem, Source, apply_override, read_source
from launcher.recipe_words import explain, innermost
from trainer.config import PositiveFloat, PositiveInt, Section, TrainConfig
from trainer.contract import Document
from trainer.rental_terms import MOST_USD

_MAX_PROBLEMS = 5  # more at once is a wall of text
# The options of the command line behind which a limit stands.
LIMIT_OPTIONS = {"max_cost_usd": "--max-cost", "max_hours": "--max-hours", "deadline_hours": "--deadline",
                 "deadline": "--deadline"}
HIGHEST_LIMIT = 1_000_000  # of dollars and of hours: keeps a date within the calendar
OWN = ("local", "slurm")  # machines of the user's own: they may have no GPU, and nobody sends a bill for them
_PRICED = (*OWN, "vast", "azure", "gcp")  # where an hour's price is what the user says


def checkout_folder() -> Path:
    """Root of the checkout: the folder that holds launcher/, recipes/ and sky/."""
    return Path(__file__).resolve().parent.parent


def _decimal(value: Any, info: ValidationInfo) -> Any:
    # YAML has no decimals: 0.1 arrives as a float, and its shortest text is what was written.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return Decimal(str(value)) if number or (info.mode == "json" and isinstance(value, str)) else value
    except InvalidOperation:
        return value


def _known_cloud(infra: str) -> str:
    try:
        return read_infra(infra)
    except UsageError as error:
        raise ValueError(f"{error.problem}: {error.fix}") from error


def _spelled(gpu: str) -> str:
    name, _, number = gpu.partition(":")
    return f"{known_name(name)}:{number}"


def _utc(value: Any) -> Any:
    """A date and time as UTC, which it is where it does not say; what is none stays as it is."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"{value!r} is no date and time: write it like 2026-12-01T08:00Z") from error
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        return value
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# What a command line says of limits, by their names in a recipe; None: there is none.
LimitChanges = Mapping[str, Decimal | datetime | None]
GpuName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*:[1-9][0-9]*$"), AfterValidator(_spelled)]
UsdPerHour = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=MOST_USD)]
PositiveUsd = Annotated[Decimal, BeforeValidator(_decimal), Field(gt=0)]


class Candidate(Section):
    """One hardware choice of a recipe, in SkyPilot's language."""

    infra: Annotated[str, AfterValidator(_known_cloud)] = Field(
        description="`local`, `vast`, `azure`, `gcp/us-central1`, `slurm/NAME`, `k8s/CONTEXT`")
    gpu: GpuName | None = Field(
        None, description="SkyPilot's name and number per node, `RTX5090:1`; local: null takes one or none")
    gpu_memory_gib: PositiveFloat | None = Field(
        None, description="of one GPU, where ldlm does not know it by its name")
    num_nodes: PositiveInt = 1
    spot: bool = Field(False, description="azure and gcp; on vast a bid says so instead")
    bid_usd_per_hour: PositiveUsd | None = Field(None, description="vast: rent interruptible, up to this")
    bid: Literal["auto"] | None = Field(
        None, description="vast: bid what `launcher/bids.py` advises by the market, at each rental anew")
    most_bid_usd_per_hour: PositiveUsd | None = Field(
        None, description="vast: a bid follows the market up to this, also while it holds a machine; with "
                          "bid: auto the most of an hour on demand, too")
    cpu_ranks: PositiveInt | None = Field(
        None, description="local, slurm: ranks of a node when there is no GPU; local: null is 2")
    price_usd_per_hour: UsdPerHour | None = Field(
        None, description="local, slurm: what an hour of all nodes is charged at; local: null is 0; "
                          "azure, gcp: the most that an hour of all nodes together may cost by SkyPilot's "
                          "catalog; "
                          "vast: rent on demand, up to this with the disk")
    on_demand_usd_per_hour: UsdPerHour | None = Field(
        None, description="local: what the saving is measured by")
    image: str | None = Field(None, description="of docker on vast and k8s, of a machine elsewhere")
    torch_index: str | None = Field(
        None, description="URL of one more index of wheels, whose name says its CUDA (.../cu126): a torch "
                          "for older drivers; null: the locked one of CUDA 13.0, which takes driver 580")
    disk_gib: PositiveInt = 100

    @property
    def is_local(self) -> bool:
        """True for the machine that the launcher runs on."""
        return self.infra == "local"

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        for clouds, names in ((OWN, ("cpu_ranks",)), (_PRICED, ("price_usd_per_hour",)),
                              (("local",), ("on_demand_usd_per_hour",)),
                              (("vast",), ("bid_usd_per_hour", "bid", "most_bid_usd_per_hour"))):
            given = [name for name in names if getattr(self, name) is not None]
            if given and self.cloud not in clouds:
                raise ValueError(f"{given[0]} is for infra {' and '.join(clouds)}, not {self.infra}: "
                                 f"remove {given[0]}")
        if self.bid_usd_per_hour is not None and self.price_usd_per_hour is not None:
            raise ValueError("bid_usd_per_hour rents an interruptible machine, price_usd_per_hour one on "
                             "demand: set one of them to null")
        self._check_bid()
        if self.price_usd_per_hour == 0 and self.cloud not in OWN:
            raise ValueError(f"price_usd_per_hour is 0 on {self.cloud}, which bills: add --set "
                             "{where}.price_usd_per_hour=USD, the most that an hour may cost; credits are "
                             "dollars, too")
        if self.torch_index is not None and self.is_local:
            raise ValueError("torch_index is for machines that install torch: remove torch_index")
        if self.spot and self.cloud not in ("azure", "gcp"):
            instead = "set bid_usd_per_hour instead of spot" if self.cloud == "vast" else "remove spot"
            raise ValueError(f"{self.infra} has no spot machines for SkyPilot: {instead}")
        if self.num_nodes > 1 and self.cloud in ("local", "vast"):
            raise ValueError(f"{self.infra} runs on one node, not {self.num_nodes}: set num_nodes to 1")
        if self.gpu is None and not self.is_local and not (self.cloud in OWN and self.cpu_ranks):
            raise ValueError(f"{self.infra} needs a gpu: set gpu to something like RTX5090:1")
        self._check_gpu()
        return self

    def _check_bid(self) -> None:
        """Refuse what leaves open how much may be bid."""
        own, most = self.bid_usd_per_hour, self.most_bid_usd_per_hour
        if self.bid and (own is not None or self.price_usd_per_hour is not None):
            raise ValueError("bid: auto says what is paid, and so does another price: set one to null")
        if self.bid and most is None:
            raise ValueError("bid: auto needs a limit: add --set {where}.most_bid_usd_per_hour=USD")
        if most is not None and not self.takes_bids:
            raise ValueError("most_bid_usd_per_hour is for bids: add --set {where}.bid=auto")
        if most is not None and own is not None and most < own:
            raise ValueError(f"most_bid_usd_per_hour is {most}, below the bid of {own}: set it to {own} or "
                             "more")

    @property
    def takes_bids(self) -> bool:
        """True where an interruptible machine of Vast is rented."""
        return self.bid is not None or self.bid_usd_per_hour is not None

    def _check_gpu(self) -> None:
        """Refuse a slip of the finger: it is no card whose memory could be guessed."""
        name, _, number = (self.gpu or "").partition(":")
        if not name or self.is_local or self.gpu_memory_gib is not None or name in GPU_KINDS:
            return
        near = nearest_name(name)
        known = "" if near else f" ({', '.join(GPU_KINDS)})"
        meant = f"did you mean --set {{where}}.gpu={near}:{number}? Else " if near else ""
        raise ValueError(f"{name} is no GPU that ldlm knows{known}: {meant}add what one has, such as --set "
                         "{where}.gpu_memory_gib=24")

    @property
    def cloud(self) -> str:
        """First part of infra: `gcp` of `gcp/us-central1`."""
        return self.infra.partition("/")[0]


Candidates = Annotated[tuple[Candidate, ...], Field(strict=False, min_length=1)]


class Hardware(Section):
    """What may carry each document of the task, in order of preference."""

    train: Candidates
    bench: Candidates


PolicyName = Literal["ours", "uniform-progress", "greedy", "on-demand", "spot-only"]


class Limits(Section):
    """Where a run stops by itself."""

    max_cost_usd: PositiveUsd = Field(description="over all attempts and the benchmark")
    max_hours: PositiveFloat | None = Field(
        None, description="paid for, over all attempts and the benchmark; null: no such limit")
    deadline_hours: PositiveFloat | None = Field(None, description="from submission; null: none")
    deadline: Annotated[datetime | None, BeforeValidator(_utc)] = Field(
        None, description="a date and time, UTC, `2026-12-01T08:00Z`; of both deadlines the earlier counts")
    policy: PolicyName = Field("ours", description="between spot and on demand where a deadline decides: a "
                                                   "name of `ldlm simulate --policy`")
    # All guesses: a night is too long to find nothing, and a benchmark can be made another day.
    wait_hours: PositiveFloat = Field(6, description="without a machine to train on, each time; then it ends")
    bench_wait_hours: PositiveFloat = Field(1, description="the same for the benchmark's machine")
    bench_hours: PositiveFloat = Field(1, description="for the benchmark with its set-ups; then it ends")

    def wait_hours_for(self, document: Document) -> float:
        """How long a document of the task may be without a machine."""
        return self.wait_hours if document is Document.TRAIN else self.bench_wait_hours

    def deadline_at(self, now: datetime) -> datetime | None:
        """When training stops itself, of a run that is submitted now."""
        hours = self.deadline_hours
        by_hours = now + timedelta(hours=hours) if hours else None
        return min(filter(None, (by_hours, self.deadline)), default=None)

    def changed(self, limits: LimitChanges) -> Self:
        """The same with some limits replaced, by name."""
        return self.model_copy(update={name: float(value) if isinstance(value, Decimal) and "hours" in name
                                       else value for name, value in limits.items()})


class Recipe(Section):
    """What to train, on what, within which limits."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9.-]*$", max_length=40)]
    summary: str
    train: TrainConfig
    hardware: Hardware
    limits: Limits
    store: str | None = Field(None, description="URL of the object store; null: the launcher's default")
    canary: bool = Field(False, description="its launch takes the machine away once, while it trains, and "
                                            "judges afterwards whether all went as promised")
    _source: Source | None = PrivateAttr(None)

    def place(self, *where: str | int) -> str:
        """Where a value was written: `recipes/smoke.yaml:12`, `--set train.steps=1`; else the recipe."""
        return self._source.place(where) if self._source else self.name

    def candidate_index(self, infra: str, gpu: str | None) -> int | None:
        """Which candidate of `hardware.train` is at this place with these GPUs; None if none is."""
        return next((index for index, found in enumerate(self.hardware.train) if found.gpu == gpu
                     and is_within(infra, found.infra)), None)


@dataclass(frozen=True)
class RecipeSummary:
    """One line of `ldlm recipes`. `problem` says why a file is no recipe, else None."""

    name: str
    path: Path
    summary: str
    problem: str | None = None


def list_recipes(folder: Path | None = None) -> list[RecipeSummary]:
    """Every file of recipes/, by name; a broken one is listed with its problem."""
    found = []
    for path in sorted((folder or checkout_folder() / "recipes").glob("*.yaml")):
        try:
            found.append(RecipeSummary(path.stem, path, load_recipe(str(path)).summary))
        except RecipeError as error:
            found.append(RecipeSummary(path.stem, path, "", problem=str(error)))
    return found


def load_recipe(name_or_path: str, overrides: Sequence[str] = (),
                limits: LimitChanges | None = None,
                settings: Mapping[str, str] | None = None, settings_place: str = "") -> Recipe:
    """Load a recipe by its name (`smoke`) or by the path of a .yaml file.

    Args:
        name_or_path: A name is looked up in recipes/ of the checkout.
        overrides: `--set` items such as `train.steps=100`; the value is YAML, the path dotted,
            elements of lists by number (`hardware.train.0.price_usd_per_hour=0.7`).
        limits: What `LIMIT_OPTIONS` say, by their names in a recipe.
        settings: What the user has said for all recipes: YAML by dotted name. Options win over it.
        settings_place: Where that stands.

    Raises:
        RecipeError: With file and line, and up to five problems at once.
        UsageError: An override is not KEY=VALUE.
    """
    path, shown = _find(name_or_path)
    source = read_source(path, shown)
    for name, text in (settings or {}).items():
        apply_override(source, f"{name}={text}", settings_place)
    for item in overrides:
        apply_override(source, text_from_here(item, checkout_folder()))
    for name, value in (limits or {}).items():
        text = f"{value:f}" if isinstance(value, Decimal) else value.isoformat() if value else "null"
        apply_override(source, f"limits.{name}={text}", f"{LIMIT_OPTIONS[name]} {text}")
    problems, recipe = list(source.problems), None
    try:
        recipe = Recipe.model_validate(source.data)
    except ValidationError as error:
        found = [explain(detail, source, Recipe) for detail in innermost(error.errors(include_url=False))]
        told = {problem.place for problem in problems}
        problems += [problem for problem in found if problem.place not in told]
    if recipe is not None:
        recipe = _with_own_encoder(recipe)
        recipe._source = source
        problems += _file_problems(recipe)
    if recipe is None or problems:
        raise _error(problems, shown)
    return recipe


def _with_own_encoder(recipe: Recipe) -> Recipe:
    """The recipe with a model's folder by its whole path where it is named from the working directory.

    Nodes work in the checkout, so what is named from there stays; to them any other name is one of the Hub.
    """
    name = found_folder(recipe.train.token_encoder.name, checkout_folder())
    encoder = recipe.train.token_encoder.model_copy(update={"name": name})
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"token_encoder": encoder})})


def read_recorded(data: bytes, shown: str) -> Recipe:
    """A recipe as a run has recorded it: only options can change it, so these are the places of its limits.

    Args:
        data: JSON.
        shown: Where it stands.

    Raises:
        ValueError: It is no recipe of this version.
    """
    recipe = Recipe.model_validate_json(data)
    recipe._source = Source(shown, places={("limits", name): option
                                           for name, option in LIMIT_OPTIONS.items()})
    return recipe


def check_files(recipe: Recipe) -> None:
    """Look at a recipe's text and encoder again, as loading it did. Raises RecipeError."""
    if problems := list(_file_problems(recipe)):
        raise _error(problems, recipe.name)


def _find(name_or_path: str) -> tuple[Path, str]:
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        path, shown = Path(name_or_path), name_or_path
    else:
        shown = f"recipes/{name_or_path}.yaml"
        path = checkout_folder() / shown
    if path.exists():
        return path, shown
    known = sorted(found.stem for found in (checkout_folder() / "recipes").glob("*.yaml"))
    near = difflib.get_close_matches(path.stem, known, n=1)
    others = f"the recipes are: {', '.join(known)}"
    raise RecipeError("there is no such recipe", place=shown,
                      fix=f"did you mean {near[0]}? {others}" if near else others)


def _file_problems(recipe: Recipe) -> Iterator[Problem]:
    is_local = any(candidate.is_local for candidate in recipe.hardware.train)
    for where, text, fix in file_problems(recipe.train, checkout_folder(), is_local):
        yield Problem(recipe.place(*where), text, fix)


def _error(problems: Sequence[Problem], shown: str) -> RecipeError:
    if len(problems) == 1:
        (only,) = problems
        return RecipeError(only.text, place=only.place, fix=only.fix)
    lines = [f"{len(problems)} problems"]
    for problem in problems[:_MAX_PROBLEMS]:
        lines.append(f"  {problem.place}: {problem.text}")
        lines += [f"    fix: {problem.fix}"] if problem.fix else []
    if len(problems) > _MAX_PROBLEMS:
        lines.append(f"  and {len(problems) - _MAX_PROBLEMS} more")
    return RecipeError("\n".join(lines), place=shown)
