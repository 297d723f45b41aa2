"""The bill of random histories against another that is made second by second.

The world below plays machines that are rented, boot, start, load, train, save, wait, and are lost. It writes
what nodes and the plugin would have written, and beside it notes, for every second, who was paid for what, in
whole millionths of a cent. Nothing of the ledger's code is used for that: no split, no contract, no rounding.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.engine import EnginePhase, EngineState
from launcher.rentals import Price, Rental, Terms
from launcher.report import CostReport, cost_report
from launcher.run_record import RunRecord, look_at
from launcher.vast_charges import charged
from trainer.contract import Document
from trainer.run_folder import Attempt, AttemptEnd, AttemptFiles, Event, Heartbeat, Phases, Traffic

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
MICROCENT = Decimal("1e-8")
GPU, DISK, SENT = 20_000, 300, 7  # microcents: a second of GPUs, a second of the disk, a megabyte sent
SUPERVISED = 11  # microcents a second


def at(second: int) -> datetime:
    return NOON + timedelta(seconds=second)


def usd(microcents: int) -> Decimal:
    return microcents * MICROCENT


@dataclass
class World:
    """One run, played by the second.

    Attributes:
        now: Seconds past noon.
        paid: Microcents by what they were for: the oracle.
        durable: Newest step in a checkpoint.
        bill: What each contract has cost: the provider's side.
    """

    chance: random.Random
    now: int = 0
    paid: Counter = field(default_factory=Counter)
    durable: int = 0
    attempts: list[AttemptFiles] = field(default_factory=list)
    rentals: list[Rental] = field(default_factory=list)
    bill: dict[str, Counter] = field(default_factory=dict)

    def play(self, fates: list[str]) -> RunRecord:
        """One machine after the other, then the end."""
        for fate in fates:
            self.now += self.chance.randrange(1, 50)  # nobody has a machine
            rented, name = self.now, f"c{len(self.rentals)}"
            self.bill[name] = Counter()
            self.tick("disk", name, self.chance.randrange(1, 60), gpu=False)  # it loads
            running = self.now
            self.tick("provisioning", name, self.chance.randrange(1, 60))
            if fate != "never came":
                self.one_attempt(fate, name, running)
            self.note_rental(name, rented, running)
        began = Event(at=at(0), kind="submitted",
                      detail={"controller_usd_per_hour": str(usd(SUPERVISED) * 3600)})
        self.paid["controller"] += SUPERVISED * self.now
        return RunRecord(run_id="one", url="", store_address="", plan=None, attempts=self.attempts,
                         events=[began, Event(at=at(self.now), kind="ended")], outcome=None, bench=None,
                         rentals=self.rentals)

    def one_attempt(self, fate: str, name: str, billed_from: int) -> None:
        """From the start of our program to the end of the contract."""
        began, resumed = self.now, self.durable
        phases = Counter(setup_s=began - billed_from)
        self.phase("setup_s", "set-up", name, 9, phases)
        self.phase("restore_s", "restore", name, 7 if resumed else 0, phases)
        step, kept = self.train(fate, name, phases)
        beat = self.now
        if fate == "vanished":  # between its last word and the moment at which it was gone
            self.tick("recomputed", name, self.chance.randrange(0, 20))
        elif fate == "done":
            self.tick("set-up", name, 2)  # shut-down
        ended, sent = self.now, self.chance.randrange(0, 500)
        if fate == "vanished":  # its disk stays until somebody notices
            self.tick("disk", name, self.chance.randrange(0, 30), gpu=False)
        else:  # it runs until it is given back
            self.tick("set-up" if fate == "done" else "crashed or stopped", name, self.chance.randrange(0, 9))
        self.paid["network"] += SENT * sent
        self.bill[name]["bwu"] += SENT * sent
        self.attempts.append(AttemptFiles(
            attempt=Attempt(number=len(self.attempts) + 1, document=Document.TRAIN,
                            billed_from=at(billed_from), began_at=at(began), offer="", host="h",
                            price_usd_per_hour=usd(GPU) * 3600, cloud="vast"),
            heartbeat=Heartbeat(
                at=at(beat), step=step, total_steps=999, resumed_from_step=resumed, durable_step=self.durable,
                durable_train_s=kept["train_s"], durable_evaluate_s=kept["evaluate_s"], tokens_per_s=1,
                spent_usd=Decimal(0), traffic=Traffic(sent_bytes=sent * 10**6), phases=Phases(**phases)),
            end=AttemptEnd(at=at(ended), reason=fate, preempted=fate == "vanished",
                           exit_code={"vanished": None, "crashed": 1, "done": 0}[fate])))

    def train(self, fate: str, name: str, phases: Counter) -> tuple[int, Counter]:
        """Steps, saves, evaluations and waits; what no save has kept is booked by how it was lost."""
        step, kept, pending = self.durable, Counter(), Counter()
        kinds = ["step"] * 8 + ["save", "evaluate", "wait"]
        others = self.chance.choices(kinds, k=self.chance.randrange(120))
        for what in ["step", *others, *(["save"] if fate == "done" else [])]:
            if what == "step":
                step += 1
                pending["useful"] += self.phase("train_s", None, name, 1, phases)
            elif what == "evaluate":
                pending["evaluation"] += self.phase("evaluate_s", None, name, 4, phases)
            elif what == "wait":
                self.phase("waiting_s", "waiting", name, 5, phases)
            else:
                self.phase("checkpoint_s", "checkpoint stall", name, 3, phases)
                kept, self.durable = Counter(phases), step
                self.paid += pending
                pending.clear()
        self.paid["recomputed" if fate == "vanished" else "crashed or stopped"] += pending.total()
        return step, kept

    def phase(self, phase: str, category: str | None, name: str, num_seconds: int, phases: Counter) -> int:
        """Seconds that a node books on a phase. Returns their price."""
        phases[phase] += num_seconds
        return self.tick(category, name, num_seconds)

    def tick(self, category: str | None, name: str, num_seconds: int, *, gpu: bool = True) -> int:
        """Seconds pass on a machine: its disk is paid, and its GPUs where they run. Returns their price."""
        self.now += num_seconds
        self.paid["disk"] += DISK * num_seconds
        self.bill[name]["disk"] += DISK * num_seconds
        price = GPU * num_seconds if gpu else 0
        self.bill[name]["gpu"] += price
        if category and gpu:
            self.paid[category] += price
        return price

    def note_rental(self, name: str, rented: int, running: int) -> None:
        """What the plugin remembers."""
        month_s = 30 * 24 * 3600
        self.rentals.append(Rental(
            run_id="one", instance_id=name, machine_id=1, rented_at=at(rented), running_at=at(running),
            ended_at=at(self.now), prices=(Price(at=at(rented), usd_per_hour=usd(GPU) * 3600),),
            terms=Terms(disk_gb=1, disk_usd_per_gb_month=usd(DISK) * month_s,
                        sent_usd_per_gb=usd(SENT) * 1000)))


FATES = st.lists(st.sampled_from(["vanished", "crashed", "done", "never came"]), min_size=1, max_size=6)


def played(seed: int, fates: list[str]) -> tuple[World, RunRecord, CostReport]:
    world = World(random.Random(seed))
    record = world.play(fates)
    view = look_at(record, EngineState(EnginePhase.ENDED), at(world.now + 500))
    return world, record, cost_report(view)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), fates=FATES)
def test_the_bill_is_that_of_who_noted_every_second(seed, fates):
    world, _, report = played(seed, fates)
    found = {category.value: round(amount, 7) for category, amount in report.by_category().items()}
    assert {name: amount for name, amount in found.items() if amount} == {
        name: round(usd(paid), 7) for name, paid in world.paid.items() if paid}
    assert round(report.spent_usd, 7) == round(usd(world.paid.total()), 7)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), fates=FATES)
def test_the_provider_s_own_bill_is_ours_but_for_supervision(seed, fates):
    world, record, report = played(seed, fates)
    rows = [{"type": "instance", "source": f"instance-{name}", "amount": float(usd(parts.total()))}
            for name, parts in world.bill.items()]
    theirs = charged(rows, [rental.instance_id for rental in record.rentals]).charges
    total = sum((charge.usd for charge in theirs), Decimal(0))
    assert float(total) == pytest.approx(float(report.spent_usd - usd(world.paid["controller"])), abs=1e-6)


def test_one_second_that_is_booked_wrongly_is_seen():
    world, _, report = played(7, ["vanished", "done"])
    world.paid["useful"] += GPU
    assert abs(usd(world.paid["useful"]) - report.by_category()["useful"]) > Decimal("0.0001")
