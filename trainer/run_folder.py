"""What stands in `<store>/<run_id>/`, as types: attempts, heartbeats, ends, events, outcome.

The object store is the only truth about a run. Nodes, the local engine and the launcher all read
and write it through this file; none appends to an object that another attempt wrote. No torch.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from trainer.contract import Document, Name, Outcome, StoreError, attempt_file
from trainer.rental_terms import Moment, NumBytes, PriceFrom, RentalTerms, Usd, UsdPerHour
from trainer.store import AlreadyExistsError, DamagedError, NotFoundError, Store, check_refuses


class _Record(BaseModel):
    # A metric may be NaN: as a string it stays JSON and reads back as the number.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class Attempt(_Record):
    """One life of the machines within a run. Written when it starts, never changed.

    Attributes:
        billed_from: When its program started; on a rented machine, when the machine did, or when the attempt
            before this one on it ended.
        began_at: When its node's program started on a rented machine; None: with `billed_from`.
        cloud, region: Of its machine, as SkyPilot names them, in small letters; empty where SkyPilot did not
            start it.
        owner: Who has started it, see `trainer/lease.py`.
        lease_until: No other owner starts an attempt before; a heartbeat may say a later time.
        terms: Of its machine; None where they are not known.
    """

    number: int
    document: Document
    billed_from: Moment
    price_usd_per_hour: UsdPerHour
    offer: str
    host: str
    began_at: Moment | None = None
    cloud: str = ""
    region: str = ""
    owner: str = ""
    lease_until: Moment | None = None
    terms: RentalTerms | None = None


class Traffic(_Record):
    """Bytes that went over a machine's network, without what it told itself."""

    received_bytes: NumBytes = 0
    sent_bytes: NumBytes = 0


class Phases(_Record):
    """Seconds of one attempt by what they went into. They add up to its age at the heartbeat."""

    setup_s: float = 0.0  # from billed_from to the first step: install, start-up
    train_s: float = 0.0
    checkpoint_s: float = 0.0  # training stood still for a save
    evaluate_s: float = 0.0
    bench_s: float = 0.0
    restore_s: float = 0.0  # of the start: the newest checkpoint was looked for, fetched and loaded
    waiting_s: float = 0.0  # training stood still for text that its store did not give

    @property
    def until_training_s(self) -> float:
        """From `billed_from` to the first step."""
        return self.setup_s + self.restore_s

    @property
    def total_s(self) -> float:
        """All of them, by a clock that never goes back."""
        return float(sum(self.model_dump().values()))


class IdleGpu(_Record):
    """A card that is paid for and does nothing.

    Attributes:
        number: As its driver counts them, on the first node.
        name: The driver's.
        idle_s: For how long.
    """

    number: int
    name: str
    idle_s: float


class SavePace(_Record):
    """How a run saves, as its newest durable save has shown.

    Attributes:
        interval_s: From the beginning of one to that of the next.
        lost_s: The most work that a lost machine costs.
        num_bytes: Of a checkpoint in the store.
        save_s: From the beginning of a save until it was durable.
        stall_s: In which training stood still.
    """

    interval_s: float
    lost_s: float
    num_bytes: int
    save_s: float
    stall_s: float


class Heartbeat(_Record):
    """The newest word of a running attempt. Overwritten in place.

    Attributes:
        step: Optimizer steps done on this machine ("local step").
        durable_step: Newest step whose manifest is committed. Only this one counts in a promise.
        durable_train_s: `phases.train_s` when the durable step was done: time that is kept.
        durable_evaluate_s: The same for `phases.evaluate_s`.
        spent_usd: Over all attempts of the run, this one up to `at`.
        lease_until: See `Attempt`.
        traffic: Of the first node, since it was started.
        idle_gpus: Of the first node; a collective that waits keeps a GPU busy, so that those of a run that
            hangs are the ones it waits for.
        pace: None before this attempt's first durable save.
        start_s: Seconds from `billed_from` to the first step, by part; empty before it.
        prices: Where the attempt's has changed since it began, oldest first.
    """

    at: Moment
    step: int
    total_steps: int
    resumed_from_step: int
    durable_step: int
    durable_train_s: float
    durable_evaluate_s: float
    phases: Phases
    tokens_per_s: float
    spent_usd: Usd
    lease_until: Moment | None = None
    traffic: Traffic = Traffic()
    idle_gpus: tuple[IdleGpu, ...] = ()
    pace: SavePace | None = None
    start_s: dict[str, float] = {}
    prices: tuple[PriceFrom, ...] = ()
    metrics: dict[str, float] = {}


class AttemptEnd(_Record):
    """How an attempt ended. A machine that vanished writes none: the engine does, or nobody.

    Attributes:
        exit_code: The node's exit code, None if the machine was taken.
        preempted: The machine was taken back, whatever the code.
        wrong_machine: It was not what the plan pays for, and did no work.
        hung: Its ranks stood still, and were killed for it.
        traffic: Of the first node, since it was started.
    """

    at: Moment
    exit_code: int | None
    preempted: bool
    reason: str
    wrong_machine: bool = False
    hung: bool = False
    traffic: Traffic = Traffic()


class _Detail(_Record):
    """What is read of an event's detail beside words; the price is `CONTROLLER_PRICE`."""
    controller_usd_per_hour: UsdPerHour = Decimal(0)
    attempt: int = 0
    infra: str = ""
    clouds: tuple[str, ...] = ()
    limits: dict[str, Any] = {}


class Event(_Record):
    """Something that the launcher or the engine did to a run. One object each, never changed."""

    at: Moment
    # bid_raised, submitted, resumed, engine_started, attempt_ended, preempted, wrong_machine, stop_requested,
    # taken_on_purpose, ended
    kind: str
    detail: dict[str, Any] = {}

    @field_validator("detail")
    @classmethod
    def _can_be(cls, detail: dict[str, Any]) -> dict[str, Any]:
        _Detail.model_validate(detail)
        return detail


class RunOutcome(_Record):
    """`outcome.json`: how the run ended."""

    outcome: Outcome
    at: Moment
    step: int
    reason: str


def last_start(events: Iterable[Event]) -> datetime | None:
    """When a run was given to an engine last; None: never yet."""
    return max((event.at for event in events if event.kind in STARTS), default=None)


class StopWish(_Record):
    """`stop.json`: a person wants the run to save and stop. One from before the last start says nothing.
    `move.json`: who supervises it wants the same of an attempt that has begun before, and goes on."""

    at: Moment


class AttemptFiles(_Record):
    """All that the store knows of one attempt, or its own node.

    Attributes:
        prices: Later ones that no heartbeat tells yet.
    """

    attempt: Attempt
    heartbeat: Heartbeat | None = None
    end: AttemptEnd | None = None
    prices: tuple[PriceFrom, ...] = ()


EVENT_STAMP = "%Y%m%dT%H%M%S.%fZ"  # UTC; with it the name of an event begins
STARTS = ("submitted", "resumed")  # kinds of events with which a run is given to an engine
TAKEN = "taken_on_purpose"  # kind of the event with which a run's own launch has taken its machine away
CONTROLLER_PRICE = "controller_usd_per_hour"  # in their detail, as text: of who supervises from then on
_T = TypeVar("_T", bound=BaseModel)


def newest_pace(beats: Iterable[Heartbeat | None]) -> SavePace | None:
    """What the newest attempt that has saved has measured of its saves: of its heartbeats, newest first."""
    return next((beat.pace for beat in beats if beat and beat.pace), None)


class RunFolder:
    """Typed access to the folder of one run."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.run_id = run_id

    def key(self, name: str) -> str:
        """Key of a name in this run's folder, relative to the store."""
        return f"{self.run_id}/{name}"

    @property
    def url(self) -> str:
        """Where the folder is."""
        return f"{self.store.url}/{self.run_id}"

    def read_bytes(self, name: str) -> bytes:
        """One object of the folder. Raises NotFoundError."""
        return self.store.get(self.key(name))

    def write_bytes(self, name: str, data: bytes, *, create: bool = False) -> None:
        """Write one object of the folder. With `create`, AlreadyExistsError if it is there."""
        self.store.put(self.key(name), data, create=create)

    def read_json(self, name: str) -> Any:
        """One JSON object. Raises NotFoundError, or DamagedError when it does not parse."""
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise self._damaged(name, f"is not JSON: {error}") from error

    def read(self, name: str, kind: type[_T]) -> _T:
        """One record. Raises NotFoundError, or DamagedError when it does not parse."""
        data = self.read_bytes(name)
        try:
            return kind.model_validate_json(data)
        except ValueError as error:
            raise self._damaged(name, f"is not a valid {kind.__name__}: {_problem(error)}") from error

    def _damaged(self, name: str, problem: str) -> DamagedError:
        return DamagedError(problem, place=f"{self.url}/{name}",
                            fix="restore it from a backup, or delete it if it can be missed")

    def find(self, name: str, kind: type[_T]) -> _T | None:
        """One record, or None when it is not there yet."""
        try:
            return self.read(name, kind)
        except NotFoundError:
            return None

    def write(self, name: str, record: BaseModel, *, create: bool = False) -> None:
        """Write one record as JSON."""
        self.write_bytes(name, record.model_dump_json(indent=1).encode(), create=create)

    def exists(self) -> bool:
        """True once the run has been submitted."""
        try:
            self.read_bytes(Name.RECIPE)
        except NotFoundError:
            return False
        return True

    # -- attempts -----------------------------------------------------------------------------

    def attempts(self) -> list[AttemptFiles]:
        """Every attempt so far, in order, with its last heartbeat and its end."""
        found = []
        for number in self._numbers():
            # On a disk, a claim that is under way, or failed, may have made its folder alone.
            with suppress(NotFoundError):
                found.append(self.attempt(number))
        return found

    def pace(self) -> SavePace | None:
        """See `newest_pace`. One small request where the newest attempt has saved, beside a listing."""
        names = (attempt_file(number, "heartbeat.json") for number in reversed(self._numbers()))
        return newest_pace(self.find(name, Heartbeat) for name in names)

    def _numbers(self) -> list[int]:
        """Of attempts, in order."""
        return sorted(int(name) for name in self.store.folders(self.key(Name.ATTEMPTS)) if name.isdigit())

    def attempt(self, number: int) -> AttemptFiles:
        """What is known of one attempt. Raises NotFoundError."""
        return AttemptFiles(
            attempt=self.read(attempt_file(number, "attempt.json"), Attempt),
            heartbeat=self.find(attempt_file(number, "heartbeat.json"), Heartbeat),
            end=self.find(attempt_file(number, "end.json"), AttemptEnd),
        )

    def claim_attempt(self, document: Document, *, billed_from: datetime, price_usd_per_hour: Decimal,
                      offer: str, host: str, began_at: datetime | None = None, cloud: str = "",
                      region: str = "", owner: str = "",
                      lease_until: datetime | None = None, terms: RentalTerms | None = None) -> Attempt:
        """Take the next attempt number; safe against a second claimer.

        Raises:
            StoreError: Another claimer won ten times in a row, or the store cannot be written.
        """
        first = max(self._numbers(), default=0) + 1
        for number in range(first, first + 10):
            attempt = Attempt(number=number, document=document, billed_from=billed_from,
                              price_usd_per_hour=price_usd_per_hour, offer=offer, host=host,
                              began_at=began_at, cloud=cloud, region=region, owner=owner,
                              lease_until=lease_until, terms=terms)
            try:
                self.write(attempt_file(number, "attempt.json"), attempt, create=True)
            except AlreadyExistsError:
                continue
            check_refuses(self.store, self.key(attempt_file(number, "attempt.json")))
            return attempt
        raise StoreError("cannot claim an attempt number: ten were taken meanwhile", place=self.url,
                         fix="see that only one engine runs this run")

    def close_open_attempts(self, attempts: Sequence[AttemptFiles], reason: str, *, preempted: bool) -> None:
        """End attempts that nobody has ended, at the last moment they were seen alive."""
        for files in attempts:
            if files.end is None:
                seen = files.heartbeat.at if files.heartbeat else files.attempt.billed_from
                with suppress(AlreadyExistsError):
                    self.write(attempt_file(files.attempt.number, "end.json"), create=True, record=AttemptEnd(
                        at=seen, exit_code=None, preempted=preempted, reason=reason))

    def close(self, outcome: Outcome, at: datetime, reason: str, document: Document) -> None:
        """Write how a run ended; how training ended stands if its trainer has said so.

        Args:
            document: That ran last. Of the benchmark the event tells, `outcome.json` of the training.
        """
        beats = [files.heartbeat for files in self.attempts() if files.heartbeat]
        ours = RunOutcome(outcome=outcome, at=at, reason=reason,
                          step=max((beat.durable_step for beat in beats), default=0))
        with suppress(AlreadyExistsError):
            self.write(Name.OUTCOME, ours, create=True)
        stands = self.read(Name.OUTCOME, RunOutcome).outcome
        bench = {"bench": str(outcome)} if document is Document.BENCH else {}
        self.add_event("ended", at, outcome=str(stands), reason=reason, **bench)

    # -- events -------------------------------------------------------------------------------

    def add_event(self, kind: str, at: datetime, **detail: Any) -> None:
        """Record that something was done to this run. Names sort by time."""
        stamp = at.astimezone(UTC).strftime(EVENT_STAMP)
        self.write(f"{Name.EVENTS}/{stamp}-{kind}.json", Event(at=at, kind=kind, detail=detail))

    def events(self) -> list[Event]:
        """All events, oldest first."""
        prefix = self.key(Name.EVENTS)
        names = [found.key.removeprefix(f"{self.run_id}/") for found in self.store.objects(prefix)]
        return [event for name in names if (event := self.find(name, Event))]


def _problem(error: ValueError) -> str:
    """What is wrong with a record, in one line."""
    if not isinstance(error, ValidationError):
        return str(error).splitlines()[0]
    wrong = error.errors()[0]
    return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}".removeprefix(": ")
