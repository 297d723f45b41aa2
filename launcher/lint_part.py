"""What a lint rule looks at: one document of a task, and the machines that SkyPilot may take for it. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.contract import Env, TaskOffer

# What a rule finds in a document: the place of a key there, the problem, the fix.
Found = tuple[str, str, str]


@dataclass(frozen=True)
class Machine:
    """One choice that SkyPilot has for a document: its resources, those of an alternative laid over them.

    Attributes:
        place: Of the alternative: `resources.any_of[0]`; without alternatives `resources`.
        values: What SkyPilot reads, by key.
        own: What the alternative itself says of it.
        told: The task's envs as its node has them.
        told_at: Where in the document what differs there stands; empty for the first.
    """

    place: str
    values: Mapping[str, Any]
    own: Mapping[str, Any]
    told: Mapping[str, Any]
    told_at: str = ""

    def env(self, name: str) -> str:
        """A value of its envs as text; empty where there is none."""
        return str(self.told.get(name) or "")

    def env_place(self, name: str) -> str:
        """The place where that value stands, or would stand."""
        return self.told_at or f"envs.{name}"

    def where(self, key: str) -> str:
        """The place where a key stands, or would stand."""
        is_inherited = key in self.values and key not in self.own
        return f"{'resources' if is_inherited else self.place}.{key}"

    @property
    def cloud(self) -> str:
        """`gcp` of `gcp/us-central1`; empty where SkyPilot may choose."""
        return str(self.values.get("infra") or self.values.get("cloud") or "").partition("/")[0].lower()

    @property
    def gpus(self) -> dict[str, float]:
        """GPUs by their name, any one of which will do: `{"H100": 8}`."""
        wanted = self.values.get("accelerators") or {}
        pairs = wanted.items() if isinstance(wanted, dict) else [
            str(item).partition(":")[::2] for item in ([wanted] if isinstance(wanted, str) else wanted)]
        return {str(name): float(number or 1) for name, number in pairs}

    @property
    def recovery(self) -> Mapping[str, Any]:
        """Its `job_recovery`, where that says more than a name."""
        found = self.values.get("job_recovery")
        return found if isinstance(found, dict) else {}

    @property
    def recovery_codes(self) -> list[Any]:
        """Exit codes after which SkyPilot starts the task again, without limit."""
        codes = self.recovery.get("recover_on_exit_codes") or []
        return codes if isinstance(codes, list) else [codes]


@dataclass(frozen=True)
class Mount:
    """One entry of `file_mounts`; SkyPilot copies a plain path, and mounts unless it is told otherwise."""

    place: str
    sources: tuple[str, ...]
    mode: str


@dataclass(frozen=True)
class TaskPart:
    """One document of a task.

    Attributes:
        name: `train`, `bench`, `prepare`; `header` for the first.
        job_name: What SkyPilot will call the job; None without a header.
        before: Names of the documents that run before it.
    """

    name: str
    body: Mapping[str, Any]
    job_name: str | None = None
    before: tuple[str, ...] = ()

    def block(self, key: str) -> Mapping[str, Any]:
        """A mapping of the document, such as `envs`; empty where there is none."""
        found = self.body.get(key)
        return found if isinstance(found, dict) else {}

    def env(self, name: str) -> str:
        """A value of `envs` as text; empty where there is none."""
        return str(self.block("envs").get(name) or "")

    def machines(self, *clouds: str) -> list[Machine]:
        """Everything that SkyPilot may take, at some clouds or at all."""
        shared, envs, offers = dict(self.block("resources")), self.block("envs"), self.offers
        choices = [(f"resources.{key}[{index}]", own)
                   for key in ("any_of", "ordered")
                   for index, own in enumerate(shared.pop(key, None) or []) if isinstance(own, dict)]
        found = []
        for index, (place, own) in enumerate(choices or [("resources", shared)]):
            other = offers[index].envs if 0 < index < len(offers) else {}
            found.append(Machine(place, {**shared, **own}, own, {**envs, **other},
                                 f"envs.{Env.OFFERS}[{index}]" if other else ""))
        return [machine for machine in found if not clouds or machine.cloud in clouds]

    @property
    def offers(self) -> list[TaskOffer]:
        """What its nodes are told of several places; none where that cannot be read."""
        try:
            return TaskOffer.read_all(self.env(Env.OFFERS) or "[]")
        except ValueError:
            return []

    def mounts(self) -> Iterator[Mount]:
        """Its file mounts."""
        for path, mount in self.block("file_mounts").items():
            options = mount if isinstance(mount, dict) else {"source": mount, "mode": "COPY"}
            named = options.get("source") or []
            yield Mount(f"file_mounts.{path}", tuple(map(str, named if isinstance(named, list) else [named])),
                        str(options.get("mode") or "MOUNT").upper())
