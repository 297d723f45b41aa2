"""Each promise, broken alone in the record of a run that keeps all others."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from canary_examples import CHARGED, at, good, plan_on, reconciled, seen

from launcher.canary_claims import judge, verdicts_json
from launcher.canary_evidence import Evidence, Mark
from launcher.cost import Range
from launcher.rentals import Price
from launcher.report import CostReport
from trainer.contract import Document, Outcome


def marks(evidence: Evidence) -> dict[str, Mark]:
    return {verdict.claim: verdict.mark for verdict in judge(evidence)}


def because(evidence: Evidence, claim: str) -> str:
    return next(verdict.because for verdict in judge(evidence) if verdict.claim == claim)


def with_record(evidence: Evidence, **changes: Any) -> Evidence:
    return replace(evidence, record=replace(evidence.record, **changes))


def with_attempt(evidence: Evidence, number: int, **changes: dict[str, Any]) -> Evidence:
    """One attempt changed: `heartbeat={"step": 1}`, `end={...}`."""
    found = [files.model_copy(update={name: getattr(files, name).model_copy(update=values)
                                      for name, values in changes.items()})
             if files.attempt.number == number else files for files in evidence.record.attempts]
    return with_record(evidence, attempts=found)


def with_setup(evidence: Evidence, seconds: float) -> Evidence:
    phases = evidence.record.attempts[1].heartbeat.phases.model_copy(update={"setup_s": seconds})
    return with_attempt(evidence, 2, heartbeat={"phases": phases})


class LyingReport(CostReport):
    """One whose parts are more than the whole."""

    def to_json(self) -> dict[str, Any]:
        found = super().to_json()
        return found | {"usd_by_category": found["usd_by_category"] | {"network": "0.000001"}}


def test_a_run_that_keeps_every_promise_passes_with_the_numbers_behind_each() -> None:
    assert verdicts_json(judge(good())) == [
        {"claim": claim, "verdict": "pass", "because": why} for claim, why in (
            ("the plan had its dollars before anything was rented",
             "~$0.2000 planned at 12:00:00, the first machine at 12:01:20 UTC"),
            ("every machine that worked has the card that is paid for",
             "NVIDIA GeForce RTX 3060 (driver 580.95.05, CUDA 13.0); "
             "NVIDIA GeForce RTX 5090 (driver 580.95.05, CUDA 13.0)"),
            ("no key of a cloud lies on a rented machine",
             "3 machines have looked for files with keys of clouds, and found none"),
            ("no machine costs more than its bid",
             "an hour: $0.36 of $0.36, $0.36 of $0.36, $0.72 of $0.72"),
            ("a run that loses its machine goes on",
             "attempt 1 was taken at step 352, attempt 2 began 100 s later"),
            ("it goes on from the newest durable checkpoint", "from step 300; 300 was durable, 352 done"),
            ("no more is lost than what two checkpoints are apart",
             "52 steps, 6 s of training; at most 25 s are promised"),
            ("the losses are those of a run that nobody interrupted",
             "2 logged steps were done twice, their losses differ by 0.03% at most"),
            ("it trains to its last step", "step 600 of 600 is durable; finished (600 steps)"),
            ("it is benchmarked on an RTX 5090", "640 tokens/s on NVIDIA GeForce RTX 5090"),
            ("it spends no more than its cap", "$0.1620 of $1.00"),
            ("it spends no more than the plan's p90",
             "$0.1620; planned ~$0.2000, $0.1000 to $0.4000"),
            ("the categories of the bill add up to its total",
                 "$0.162000 in 13 categories, $0.162000 in all"),
            ("the bill is the provider's, to the cent",
             "ours $0.1620, theirs $0.1620, for 3 machines of Vast"),
            ("nothing is left rented", "of 3 machines none"),
            ("every start tells how long its set-up took", "250 s, 200 s; planned ~600 s each"))]


@pytest.mark.parametrize(("claim", "broken"), [
    ("the plan had its dollars before anything was rented",
     lambda e: replace(e, plan=e.plan.model_copy(update={"planned_at": at(90)}))),
    ("every machine that worked has the card that is paid for",
     lambda e: replace(e, machines=e.machines | {2: seen("NVIDIA GeForce RTX 3070")})),
    ("every machine that worked has the card that is paid for",
     lambda e: replace(e, machines={1: e.machines[1], 2: e.machines[2]})),
    ("no key of a cloud lies on a rented machine",
     lambda e: replace(e, machines=e.machines | {1: e.machines[1].model_copy(
         update={"key_files": (".config/vastai/vast_api_key",)})})),
    ("no machine costs more than its bid",
     lambda e: with_record(e, rentals=(e.record.rentals[0].model_copy(update={"prices": (
         *e.record.rentals[0].prices, Price(at=at(200), usd_per_hour=Decimal("0.37")))}),
         *e.record.rentals[1:]))),
    ("a run that loses its machine goes on", lambda e: with_attempt(e, 1, end={"preempted": False})),
    ("a run that loses its machine goes on",
     lambda e: with_record(e, attempts=(e.record.attempts[0], e.record.attempts[2]))),
    ("it goes on from the newest durable checkpoint",
     lambda e: with_attempt(e, 2, heartbeat={"resumed_from_step": 200})),
    ("it goes on from the newest durable checkpoint",
     lambda e: with_attempt(e, 1, heartbeat={"durable_step": 0})),
    ("no more is lost than what two checkpoints are apart",
     lambda e: with_attempt(with_attempt(e, 2, heartbeat={"resumed_from_step": 100}), 1,
                            heartbeat={"durable_step": 100})),
    ("the losses are those of a run that nobody interrupted",
     lambda e: replace(e, losses={1: e.losses[1], 2: {305: 3.5, 350: 3.04}})),
    ("it trains to its last step",
     lambda e: with_record(e, outcome=e.record.outcome.model_copy(update={"step": 500}))),
    ("it trains to its last step",
     lambda e: with_record(e, outcome=e.record.outcome.model_copy(update={"outcome": Outcome.LIMIT}))),
    ("it is benchmarked on an RTX 5090", lambda e: with_record(e, bench=None)),
    ("it spends no more than its cap", lambda e: replace(e, max_cost_usd=Decimal("0.16"))),
    ("it spends no more than the plan's p90",
     lambda e: replace(e, report=replace(e.report, planned_usd=Range(
         low=Decimal("0.01"), mid=Decimal("0.1"), high=Decimal("0.16"))))),
    ("the categories of the bill add up to its total",
     lambda e: replace(e, report=LyingReport(**vars(e.report)))),
    ("the bill is the provider's, to the cent",
     lambda e: replace(e, reconciliation=reconciled(e.record, CHARGED | {"5002": "0.11"}))),
    ("nothing is left rented", lambda e: replace(e, left=("5003",))),
    ("every start tells how long its set-up took", lambda e: with_setup(e, 0.0))])
def test_each_promise_that_is_broken_alone_fails_alone(claim: str,
                                                       broken: Callable[[Evidence], Evidence]) -> None:
    assert [name for name, mark in marks(broken(good())).items() if mark is Mark.FAIL] == [claim]


@pytest.mark.parametrize(("claim", "unseen", "why"), [
    ("the losses are those of a run that nobody interrupted",
     lambda e: replace(e, losses={1: {300: 4.0}, 2: {305: 3.5}}),
     "no logged step was done both before and after"),
    ("it is benchmarked on an RTX 5090",
     lambda e: with_record(e, bench=e.record.bench | {"throughput": e.record.bench["throughput"] | {
         "device": "NVIDIA L4", "is_rtx5090": False}}), "640 tokens/s on NVIDIA L4"),
    ("it is benchmarked on an RTX 5090",
     lambda e: with_record(e, bench=None, events=(*e.record.events[:-1], e.record.events[-1].model_copy(
         update={"detail": {"bench": "no_capacity", "reason": "none to be had"}}))),
     "there is none: none to be had"),
    ("the bill is the provider's, to the cent",
     lambda e: replace(e, reconciliation=reconciled(e.record, {"5001": "0.03", "5003": "0.072"})),
     "ours $0.1620, theirs $0.1020, for 3 machines of Vast; not in Vast's record yet: 5002; "
     "judge again: ldlm canary canary-1")])
def test_what_a_run_did_not_show_is_neither_kept_nor_broken(
        claim: str, unseen: Callable[[Evidence], Evidence], why: str) -> None:
    evidence = unseen(good())
    assert {name: mark for name, mark in marks(evidence).items() if mark is not Mark.PASS} == {
        claim: Mark.NOT_SHOWN}
    assert because(evidence, claim) == why


def test_at_home_nobody_can_be_asked_for_a_bill_and_nothing_was_rented() -> None:
    at_home = replace(good(), plan=plan_on("local"), reconciliation=None, left=None, machines={})
    at_home = with_record(at_home, rentals=())
    assert {claim for claim, mark in marks(at_home).items() if mark is Mark.NOT_SHOWN} == {
        "every machine that worked has the card that is paid for",
        "no key of a cloud lies on a rented machine",
        "no machine costs more than its bid", "the bill is the provider's, to the cent",
        "nothing is left rented"}
    assert because(at_home, "the bill is the provider's, to the cent") == (
        "local cannot be asked what it has charged")


def test_half_a_bill_is_not_shown_to_be_the_provider_s() -> None:
    offers = good().plan.offers
    mixed = replace(good(), plan=good().plan.model_copy(update={"offers": offers | {
        Document.TRAIN: offers[Document.TRAIN].model_copy(update={"infra": "gcp"})}}))
    assert {claim for claim, mark in marks(mixed).items() if mark is Mark.NOT_SHOWN} == {
        "the bill is the provider's, to the cent", "nothing is left rented"}
    assert because(mixed, "the bill is the provider's, to the cent").endswith("; gcp cannot be asked")
