"""A provider that bills a run by the second, and machines that are taken from it: what a guard is judged by.

The bill is added up from what really happened in this world: meters that run from one true moment to another,
and bytes. It shares no code with what the nodes reckon, who see clocks that are wrong, and heartbeats only.
"""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from trainer.at_most import standing_of
from trainer.contract import Document, Env, TaskOffer
from trainer.guard import headroom
from trainer.limit_watch import LateClock, LimitWatch, check_limits
from trainer.limits import LimitError, Limits
from trainer.metrics import OwnAttempt
from trainer.rental_terms import RentalTerms
from trainer.run_folder import (
    Attempt,
    AttemptEnd,
    AttemptFiles,
    Event,
    Heartbeat,
    Phases,
    SavePace,
    Traffic,
)

EPOCH = datetime(2026, 11, 1, tzinfo=UTC)
HEARTBEAT_S = 30.0
SHUTDOWN_S = 90.0  # the longest that a machine of this world goes on after its node's last word


def at(seconds: float) -> datetime:
    """A true moment of this world."""
    return EPOCH + timedelta(seconds=seconds)


@dataclass
class Machine:
    """One that is rented: its prices, its clock, and what befalls it."""

    usd_per_hour: float
    disk_usd_per_hour: float
    usd_per_gb: float
    skew_s: float
    jump_s: float
    lives_s: float
    rented: float = 0.0
    booted: float = 0.0
    sent_bytes: float = 0.0

    def clock(self, true_s: float) -> datetime:
        """What it takes for the time: it is off, and is set right, or wrong, half an hour after its start."""
        jump = self.jump_s if true_s > self.booted + 1800 else 0.0
        return at(true_s + self.skew_s + jump)


@dataclass
class World:
    """One run, from its submission to its end.

    Args:
        seed: Decides all that happens.
        cap_hours: Its cap is what its dearest machine costs in so many hours.
        losses_per_hour: How often machines are taken.
    """

    seed: int
    cap_hours: float
    losses_per_hour: float
    document: Document = Document.TRAIN
    now: float = 0.0
    next_beat: float = 0.0
    bill_usd: float = 0.0
    dearest_usd_per_hour: float = 0.0
    attempts: list[AttemptFiles] = field(default_factory=list)
    earlier: list[tuple[datetime, Decimal]] = field(default_factory=list)
    reason: str = ""

    def __post_init__(self) -> None:
        self.random = chance = random.Random(self.seed)
        self.controller_usd_per_hour = chance.choice([0.0, 0.008, 0.39])
        self.prices = [chance.uniform(0.2, 20) for _ in range(chance.randint(1, 3))]
        self.cap_usd = max(self.prices) * self.cap_hours
        self.step_s, self.save_s = chance.uniform(3, 25), chance.uniform(1, 240)
        self.evaluation_s, self.save_bytes = chance.uniform(0, 300), self.save_s * chance.uniform(1e6, 1e8)
        self.events = [Event(at=at(chance.uniform(-60, 60)), kind="submitted", detail={
            "controller_usd_per_hour": str(self.controller_usd_per_hour)})]
        offers = [TaskOffer("vast", True, {Env.PRICE: str(price)} if index else {})
                  for index, price in enumerate(self.prices)]
        self.environ = {Env.MAX_COST: str(self.cap_usd), Env.WAIT: "6", Env.PRICE: str(self.prices[0]),
                        Env.OFFERS: TaskOffer.write_all(offers)}

    def meter(self, usd_per_hour: float, start: float, end: float) -> None:
        """Charge for a span of true time."""
        self.bill_usd += usd_per_hour * (end - start) / 3600

    @property
    def grace_usd(self) -> float:
        """What a heartbeat and the shutdown of the dearest machine cost, and a heartbeat of its network."""
        network_usd = self.save_bytes / self.save_s * HEARTBEAT_S * 0.05 / 1e9
        return self.dearest_usd_per_hour * (HEARTBEAT_S + SHUTDOWN_S) / 3600 + network_usd

    def run(self) -> "World":
        """Rent one machine after another until the run ends itself."""
        while not self.reason:
            assert len(self.attempts) < 500, "it does not end"
            self.wait(self.random.uniform(0, 3600) if self.attempts else 60.0)
            self.live(self.rent())
        self.meter(self.controller_usd_per_hour, 0, self.now)
        return self

    def wait(self, seconds: float) -> None:
        """Nothing is rented meanwhile."""
        self.now += seconds

    def rent(self) -> Machine:
        """Another machine, at a price of its own."""
        chance = self.random
        machine = Machine(chance.choice(self.prices), chance.uniform(0, 0.2), chance.uniform(0, 0.05),
                          chance.uniform(-60, 60), chance.choice([0.0, -40.0, 40.0]),
                          chance.expovariate(max(self.losses_per_hour, 1e-9)) * 3600, rented=self.now)
        self.dearest_usd_per_hour = max(self.dearest_usd_per_hour, machine.usd_per_hour
                                        + machine.disk_usd_per_hour + self.controller_usd_per_hour)
        self.wait(chance.uniform(10, 300))  # it loads its image, unbilled but for its disk
        machine.booted = self.now
        return machine

    def live(self, machine: Machine) -> None:
        """Set up, train, and end: by itself, or since the machine is taken."""
        taken = machine.booted + machine.lives_s
        gpu_until = min(self.work(machine, taken), taken)
        self.now = max(self.now, gpu_until)
        if not self.reason:  # its disk stands still until somebody sees that
            self.wait(self.random.uniform(15, 300))
        given_back = self.now
        self.meter(machine.usd_per_hour, machine.booted, gpu_until)
        self.meter(machine.disk_usd_per_hour, machine.rented, given_back)
        self.bill_usd += machine.sent_bytes * machine.usd_per_gb / 1e9
        # Who rents sees a machine run until it is given back, a little late.
        told = (machine.usd_per_hour * (given_back - machine.booted)
                + machine.disk_usd_per_hour * (given_back - machine.rented)) / 3600
        self.earlier.append((at(machine.rented), Decimal(str(round(told, 6)))))

    def work(self, machine: Machine, taken: float) -> float:
        """Until when its GPUs are billed, if it is not taken before."""
        self.set_up(machine)
        if self.now >= taken:
            self.now = taken
            return taken
        own = self.claim(machine)
        clock = LateClock(lambda: machine.clock(self.now), lambda: self.now)
        try:
            check_limits(self.document, standing_of(self.attempts, self.events, clock(), traffic_of(machine)),
                         self.environ)
        except LimitError as error:
            return self.end(machine, str(error))
        self.wait(self.random.uniform(5, 120))
        watch = LimitWatch(own, lambda: (self.step_s + self.save_s + self.evaluation_s, int(self.save_bytes)),
                           self.environ | {Env.UPLOAD_PRICE: str(machine.usd_per_gb)}, clock,
                           lambda: traffic_of(machine))
        return self.train(machine, watch, taken)

    def set_up(self, machine: Machine) -> None:
        """The node's own program first; by its look at the limits, what comes after it is killed in time."""
        self.wait(self.random.uniform(20, 290))
        own = self.attempt_on(machine)
        terms = standing_of([*self.attempts, AttemptFiles(attempt=own)], self.events, own.billed_from
                            + timedelta(seconds=self.now - machine.booted), traffic_of(machine))
        found = headroom(Limits.of(self.environ), self.document, terms)
        assert found is not None
        self.wait(max(0.0, min(self.random.uniform(10, 3000), found.left_s)))

    def train(self, machine: Machine, watch: LimitWatch, taken: float) -> float:
        """Steps, and what stands between them, until the guard ends it or the machine is gone."""
        chance, steps = self.random, 0
        self.beat(machine)
        while self.now < taken:
            found = watch.look()
            if found and found.is_reached:
                if steps:
                    self.work_on(machine, taken, self.save_s * chance.uniform(0.2, 1.0), self.save_bytes)
                    self.work_on(machine, taken, self.evaluation_s * chance.uniform(0.2, 1.0))
                return self.end(machine, found.words) if self.now < taken else taken
            self.work_on(machine, taken, self.step_s)
            steps += 1
            if chance.random() < self.step_s / 1800:
                self.work_on(machine, taken, self.save_s * chance.uniform(0.5, 1.0), self.save_bytes)
        return taken

    def work_on(self, machine: Machine, taken: float, seconds: float, num_bytes: float = 0.0) -> None:
        """So long, unless the machine is gone before; a thread of its node writes heartbeats meanwhile."""
        until = min(self.now + seconds, taken)
        while self.now < until:
            span = min(until - self.now, self.next_beat - self.now)
            machine.sent_bytes += num_bytes * span / seconds
            self.wait(span)
            if self.now >= self.next_beat:
                self.beat(machine)

    def claim(self, machine: Machine) -> OwnAttempt:
        """A number, once what was left open is closed as a node does it."""
        if self.attempts and self.attempts[-1].end is None:
            files = self.attempts[-1]
            seen = files.heartbeat.at if files.heartbeat else files.attempt.billed_from
            self.attempts[-1] = files.model_copy(update={"end": AttemptEnd(
                at=seen, exit_code=None, preempted=True, reason="")})
        attempt = self.attempt_on(machine)
        self.attempts.append(AttemptFiles(attempt=attempt))
        return OwnAttempt(attempt, self.attempts[:-1], tuple(self.events))

    def attempt_on(self, machine: Machine) -> Attempt:
        """The next one, as the node of a machine would write it now."""
        terms = RentalTerms(rented_at=at(machine.rented), earlier=tuple(self.earlier[-30:]),
                            older_usd=sum((usd for _, usd in self.earlier[:-30]), Decimal(0)),
                            disk_usd_per_hour=Decimal(str(machine.disk_usd_per_hour)),
                            sent_usd_per_gb=Decimal(str(machine.usd_per_gb)))
        here = machine.clock(self.now)
        return Attempt(number=len(self.attempts) + 1, document=self.document, offer="o", host="h",
                       billed_from=here - timedelta(seconds=self.now - machine.booted), cloud="vast",
                       price_usd_per_hour=Decimal(str(machine.usd_per_hour)), terms=terms,
                       lease_until=here + timedelta(minutes=5))

    def beat(self, machine: Machine) -> None:
        """What its node writes."""
        here, files, self.next_beat = machine.clock(self.now), self.attempts[-1], self.now + HEARTBEAT_S
        self.attempts[-1] = files.model_copy(update={"heartbeat": Heartbeat(
            at=here, step=1, total_steps=9, resumed_from_step=0, durable_step=0, durable_train_s=0,
            durable_evaluate_s=0, phases=Phases(train_s=self.now - machine.booted), tokens_per_s=1,
            spent_usd=Decimal(0), lease_until=here + timedelta(seconds=4 * HEARTBEAT_S),
            traffic=traffic_of(machine), pace=SavePace(interval_s=900, lost_s=900, stall_s=0,
                                                       num_bytes=int(self.save_bytes), save_s=self.save_s))})

    def end(self, machine: Machine, why: str) -> float:
        """The run is over; its machine is given back a while later."""
        self.reason = why
        return self.now + self.random.uniform(5, SHUTDOWN_S)


def traffic_of(machine: Machine) -> Traffic:
    """The counters of its network."""
    return Traffic(sent_bytes=int(machine.sent_bytes))
