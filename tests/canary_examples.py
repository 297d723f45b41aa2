"""A canary on Vast as its record stands at the end: taken away at step 352, resumed from 300.

Its dollars are easy to add up by hand: an RTX 3060 costs $0.0001 a second, an RTX 5090 $0.0002.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from run_stories import BENCH, ENDED

from launcher.canary_evidence import Evidence
from launcher.candidates import choose
from launcher.cost import Range
from launcher.offers import Machine, make_offer
from launcher.plan import Plan, make_plan
from launcher.recipe import checkout_folder, load_recipe
from launcher.reconcile import Charge, Reconciliation, reconcile
from launcher.recorded import RecordedPlan
from launcher.rental_cost import usd_by_instance
from launcher.rentals import Price, Rental, Terms
from launcher.report import cost_report
from launcher.run_record import RunRecord, look_at
from trainer.contract import Document, Outcome
from trainer.encoder_shape import encoder_shape
from trainer.run_folder import (
    Attempt,
    AttemptEnd,
    AttemptFiles,
    Event,
    Heartbeat,
    Phases,
    RunOutcome,
)
from trainer.seen_machine import SeenGpu, SeenMachine
from trainer.spent import charged_until

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
RECIPE = load_recipe("canary", ("hardware.train.1.bid_usd_per_hour=0.36",
                                "hardware.bench.0.bid_usd_per_hour=0.72"))
# 300 s and 600 s of training, 360 s of benchmark.
CHARGED = {"5001": "0.030", "5002": "0.060", "5003": "0.072"}


def at(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def plan_on(infra: str) -> Plan:
    """Of noon, with dollars that do not change with the estimates."""
    machine = Machine(num_cores=2, memory_gib=24.0)
    offers = {document: tuple(make_offer(candidate, machine, NOON) for candidate in candidates)
              for document, candidates in choose(RECIPE, infra, machine).items()}
    shape = encoder_shape(RECIPE.train.token_encoder.name, checkout_folder())
    plan = make_plan(RECIPE, shape, offers, (), NOON, "canary-1")
    return plan.model_copy(update={"usd": Range(low=Decimal("0.1"), mid=Decimal("0.2"), high=Decimal("0.4"))})


def _rental(number: int, begins: float, ends: float, usd_per_hour: str) -> Rental:
    return Rental(run_id="canary-1", instance_id=f"500{number}", machine_id=6100 + number,
                  rented_at=at(begins), running_at=at(begins + 20), ended_at=at(ends),
                  terms=Terms(disk_gb=40),
                  prices=(Price(at=at(begins), usd_per_hour=Decimal(usd_per_hour)),))


def _attempt(number: int, document: Document, begins: float, ends: float, *, code: int | None = 0,
             step: int = 0, durable: int = 0, resumed: int = 0, setup_s: float = 0,
             train_s: float = 0) -> AttemptFiles:
    kept_s = train_s * (durable - resumed) / max(step - resumed, 1)
    beat = Heartbeat(at=at(ends), step=step, total_steps=600, resumed_from_step=resumed, durable_step=durable,
                     durable_train_s=kept_s, durable_evaluate_s=0, tokens_per_s=4096, spent_usd=Decimal(0),
                     phases=Phases(setup_s=setup_s, train_s=train_s))
    return AttemptFiles(
        attempt=Attempt(number=number, document=document, billed_from=at(begins), offer="", host="",
                        price_usd_per_hour=Decimal("0.72" if document is Document.BENCH else "0.36")),
        heartbeat=beat if document is Document.TRAIN else None,
        end=AttemptEnd(at=at(ends), exit_code=code, preempted=code is None, reason="all steps done"))


def seen(card: str) -> SeenMachine:
    """A machine with one card and no keys."""
    return SeenMachine(gpus=(SeenGpu(name=card, memory_gib=12.0, driver="580.95.05"),), torch="2.13.0",
                       cuda="13.0", key_files=())


def good() -> Evidence:
    """All as promised."""
    plan = plan_on("vast")
    bench = BENCH | {"throughput": BENCH["throughput"] | {"device": "NVIDIA GeForce RTX 5090",
                                                          "is_rtx5090": True}}
    record = RunRecord(
        run_id="canary-1", url="file:///store/canary-1", store_address="file:///store",
        plan=RecordedPlan.model_validate_json(plan.model_dump_json()),
        attempts=(_attempt(1, Document.TRAIN, 100, 400, code=None, step=352, durable=300, setup_s=250,
                           train_s=44),
                  _attempt(2, Document.TRAIN, 500, 1100, step=600, durable=600, resumed=300, setup_s=200,
                           train_s=40),
                  _attempt(3, Document.BENCH, 1200, 1560)),
        events=(Event(at=at(1), kind="submitted", detail={"infra": "vast", "git_sha": "c0ffee"}),
                Event(at=at(400), kind="taken_on_purpose"), Event(at=at(1560), kind="ended")),
        outcome=RunOutcome(outcome=Outcome.FINISHED, at=at(1100), step=600, reason="600 steps"), bench=bench,
        rentals=(_rental(1, 80, 402, "0.36"), _rental(2, 480, 1100, "0.36"), _rental(3, 1180, 1560, "0.72")))
    return Evidence(
        record=record, report=cost_report(look_at(record, ENDED, at(2000))), recipe=RECIPE, plan=plan,
        max_cost_usd=Decimal(1),
        machines={1: seen("NVIDIA GeForce RTX 3060"), 2: seen("NVIDIA GeForce RTX 3060"),
                  3: seen("NVIDIA GeForce RTX 5090")},
        losses={1: {300: 4.0, 305: 3.5, 350: 3.0}, 2: {305: 3.501, 350: 3.0, 600: 1.0}},
        reconciliation=reconciled(record, CHARGED), left=())


def reconciled(record: RunRecord, charged: dict[str, str]) -> Reconciliation:
    """Its ledger beside what a provider has charged, by machine."""
    now = at(2000)
    ours = usd_by_instance(record.attempts, charged_until(record.attempts, now), record.rentals, now)
    return reconcile(ours, [Charge(instance_id=name, usd=Decimal(usd), usd_by_kind={})
                            for name, usd in charged.items()])
