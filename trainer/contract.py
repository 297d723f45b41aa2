"""Words that launcher and trainer share: errors, exit codes, environment names, names in the run folder.

Standard library only: both halves, and the node supervisor that must start before torch, import it.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

SHARDS = "shards:"  # begins the name of a prepared text


def set_option(key: str, value: object) -> str:
    """How a value of the recipe is typed: `--set train.zero_stage=2`.

    Args:
        key: Dotted name from the top of the recipe.
    """
    return f"--set {key}={str(value).lower() if isinstance(value, bool) else value}"


# In the home folder of a machine of Vast: what can speak for it there, and what asks it to say that it is the
# wrong one.
VAST_SWITCH, WRONG_MACHINE = ".ldlm_deadman", ".ldlm_wrong_machine"
CREDIT_USED_UP = "the credit is used up"  # why an attempt there ends whose account has prepaid nothing more
MAX_WRONG_MACHINES = 3  # of one start of a run; then the offer itself is wrong, or the recipe
STOP_GRACE_S = 120.0  # from our own engine's SIGTERM to its SIGKILL, for a last checkpoint (guess)
CLOCK_SKEW = timedelta(minutes=1)  # by which clocks of two machines may differ; more is a wrong one (guess)
FIX = "\n  fix: "  # between what is wrong and what to type, where an error is one text


class LdlmError(Exception):
    """Something a user can put right: what is wrong, where, and what to type.

    Attributes:
        cli_exit_code: Exit code of the `ldlm` command when this ends it.
        node_exit_code: Exit code of a node when this ends its trainer.
    """

    cli_exit_code: ClassVar[int] = 1
    node_exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, place: str | None = None, fix: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.place = place
        self.fix = fix

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        return f"{where}{self.problem}" + (f"{FIX}{self.fix}" if self.fix else "")


class ExitCode(IntEnum):
    """What a node's exit code tells the engine. Anything else is a crash that has no name yet.

    Source: SkyPilot counts codes of 1 to 255; 69, 70, 75, 77 and 78 are EX_UNAVAILABLE, EX_SOFTWARE,
    EX_TEMPFAIL, EX_NOPERM and EX_CONFIG of sysexits.h, and nothing on the way (torchrun, bash) uses them.
    """

    FINISHED = 0  # finished, or stopped on purpose at a limit: `outcome.json` says which
    SUPERSEDED = 69  # a later attempt owns the run: nothing was saved, and nothing follows
    BROKEN = 70  # diverged, an invariant broke, or no newer checkpoint in three attempts: do not retry
    RECOVER = 75  # checkpoint committed, or it hung: run me again
    STOPPED = 77  # checkpoint committed, and a person asked for it: nothing follows
    BAD_CONFIG = 78  # recipe or data is wrong: a retry spends money on the same mistake


class RankEnd(NamedTuple):
    """How one rank ended. torchrun exits 1 whatever its workers returned, so this travels as a file."""

    code: int
    reason: str

    def write(self, folder: Path, rank: int) -> None:
        """Leave it for the node supervisor, whole or not at all."""
        path = folder / f"rank-{rank}.json"
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(self._asdict()))
        draft.replace(path)

    @staticmethod
    def listen(folder: Path, pid: int) -> None:
        """Say that this rank's process hears SIGTERM from now on."""
        (folder / f"listening-{pid}").touch()

    @staticmethod
    def listening(folder: Path) -> set[int]:
        """Process ids of the ranks that hear SIGTERM."""
        return {int(path.name.removeprefix("listening-")) for path in folder.glob("listening-*")}

    @classmethod
    def read_all(cls, folder: Path) -> list[Self]:
        """The ends that ranks have left in a folder."""
        return [cls(**json.loads(path.read_text())) for path in sorted(folder.glob("rank-*.json"))]


class ConfigError(LdlmError):
    """The recipe, its data or its models are wrong: no retry can help."""

    cli_exit_code = 3
    node_exit_code = ExitCode.BAD_CONFIG


class StoreError(LdlmError):
    """The object store cannot be reached, read or written."""

    cli_exit_code = 6


class AwayError(StoreError):
    """The object store does not answer, or not to this machine: later, or on another one, it may."""


class Outcome(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    LIMIT = "limit"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    BAD_CONFIG = "bad_config"
    NO_CAPACITY = "no_capacity"
    LOST = "lost"


class Env:
    """Environment variables that a task sets for the programs on its nodes."""

    RUN_ID = "LDLM_RUN_ID"
    STORE = "LDLM_STORE"  # URL; the run folder is <store>/<run_id>
    TRAIN_CONFIG = "LDLM_TRAIN_CONFIG"  # TrainConfig as JSON
    RANKS_PER_NODE = "LDLM_RANKS_PER_NODE"
    GPU = "LDLM_GPU"  # what the plan pays for, e.g. "RTX5090:1"; empty: no GPU
    GPU_MEMORY = "LDLM_GPU_MEMORY_GIB"  # of one GPU, that the plan counts on; empty: not known
    DISK = "LDLM_DISK_GIB"  # that must be free for what is installed and fetched; empty: not asked for
    PRICE = "LDLM_PRICE_USD_PER_HOUR"  # of the whole node group
    UPLOAD_PRICE = "LDLM_UPLOAD_USD_PER_GB"  # to the store, its requests included
    REQUESTS_PRICE = "LDLM_REQUESTS_USD_PER_GB"  # of it, what does not depend on the machine
    HOURS_TO_LOSS = "LDLM_HOURS_TO_LOSS"  # until such a machine is lost, before the run has seen any
    PEAK_TFLOPS = "LDLM_PEAK_TFLOPS"  # of all its GPUs in the precision of the run; empty: not known
    LIST_PRICES = "LDLM_LIST_PRICES"  # of a machine that nobody tells its contract: `ListPrices` as JSON
    MAX_COST = "LDLM_MAX_COST_USD"
    BENCH_RESERVE = "LDLM_BENCH_RESERVE_USD"  # part of the cap that is kept for the benchmark
    MAX_HOURS = "LDLM_MAX_HOURS"  # paid for, over all attempts; empty: no such limit
    BENCH_RESERVE_HOURS = "LDLM_BENCH_RESERVE_HOURS"  # part of them that is kept for the benchmark
    DEADLINE = "LDLM_DEADLINE"  # UTC, ISO 8601
    WAIT = "LDLM_WAIT_HOURS"  # how long the task may be without a machine
    BENCH_HOURS = "LDLM_BENCH_HOURS"  # how long the benchmark may take, all its attempts together
    OFFER = "LDLM_OFFER"  # where and what, for the record
    OFFERS = "LDLM_OFFERS"  # of a task that may run in several places: each as a `TaskOffer`, as JSON
    COURSE = "LDLM_COURSE"  # of a run with a deadline: what decides between spot and on demand, as JSON
    TORCH_INDEX = "PIP_EXTRA_INDEX_URL"  # pip's own name: where a torch of another CUDA comes from
    # Set by the local engine, which starts attempts itself; elsewhere the node claims a number.
    ATTEMPT = "LDLM_ATTEMPT"
    # Set by the node for its ranks.
    END_FOLDER = "LDLM_END_FOLDER"  # each rank writes how it ended here
    BENCH_UNTIL = "LDLM_BENCH_UNTIL"  # UTC, ISO 8601: when these hours are over
    # Of the user, and never in a task: a node has it in its environment or not at all.
    WANDB_KEY = "WANDB_API_KEY"
    WEBHOOK = "LDLM_WEBHOOK_URL"  # who knows it can write there


class TaskOffer(NamedTuple):
    """One of several places where a task may run, in the order in which they are tried.

    Attributes:
        infra: In SkyPilot's language.
        spot: The machine can be taken back.
        envs: What the task's own envs, which are about the first place, would say there instead.
    """

    infra: str
    spot: bool
    envs: dict[str, str]

    @classmethod
    def write_all(cls, offers: Sequence[Self]) -> str:
        """Text for `Env.OFFERS`."""
        return json.dumps([offer._asdict() for offer in offers])

    @classmethod
    def dearest(cls, environ: Mapping[str, str]) -> Decimal:
        """Dollars an hour of the dearest place where a task may run; 0: it tells none. Raises ValueError."""
        told = [one.envs.get(Env.PRICE) for one in cls.read_all(environ.get(Env.OFFERS) or "[]")]
        return max((Decimal(price) for price in (environ.get(Env.PRICE), *told) if price), default=Decimal(0))

    @classmethod
    def read_all(cls, text: str) -> list[Self]:
        """Places from the text of `Env.OFFERS`. Raises ValueError."""
        try:
            found = [cls(**one) for one in json.loads(text)]
        except TypeError as error:
            raise ValueError(f"{Env.OFFERS} is no list of places: {error}") from error
        if not all(isinstance(one.infra, str) and isinstance(one.envs, dict) for one in found):
            raise ValueError(f"{Env.OFFERS} is no list of places")
        return found


class Document(StrEnum):
    """The documents of a task, in the order in which they run."""

    TRAIN = "train"
    BENCH = "bench"


class Name:
    """Names below `<store>/<run_id>/`."""

    RECIPE = "recipe.json"
    PLAN = "plan.json"
    TASK = "task.yaml"
    STOP = "stop.json"  # somebody asks the nodes of a rented run to save and stop
    MOVE = "move.json"  # who supervises a run asks its nodes to save and go on on another machine
    COURSE = "course"  # what was seen on the way and decided on it
    RENTALS = "rentals.json"  # what the side that rents the machines knows of them
    OUTCOME = "outcome.json"
    BENCH = "bench/result.json"
    BENCH_REPORT = "bench/report.json"  # every case, floor and limit behind it
    MACHINE = "machine.json"  # of an attempt: what its first node found where it runs
    WANDB = "wandb.json"  # of an attempt: where it is seen on W&B
    STACKS = "stacks"  # of an attempt that hung: a text for each rank
    EVALUATION = "evaluation/result.json"  # of the end of training
    EVENTS = "events"
    NEWS = "news"  # what was told to who does not watch, by start of the run
    ATTEMPTS = "attempts"
    CHECKPOINTS = "checkpoints"
    MANIFEST = "manifest.json"
    QUARANTINE = "quarantine.json"  # of a checkpoint: it was found damaged


def checkpoint_folder(step: int) -> str:
    """Folder of the checkpoint of one step: `checkpoints/step-00000120`."""
    return f"{Name.CHECKPOINTS}/step-{step:08d}"


def evaluation_file(step: int) -> str:
    """Scores and texts of one step, among the files of an attempt: `evaluations/00000120.json`."""
    return f"evaluations/{step:08d}.json"


def attempt_file(attempt: int, name: str) -> str:
    """Path of one file of an attempt: `attempts/2/heartbeat.json`."""
    return f"{Name.ATTEMPTS}/{attempt}/{name}"
