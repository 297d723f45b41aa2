"""What attempts in a record say of machines, and where that counts."""

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from launch_examples import NOW as PLANNED
from launch_examples import TWO_CORES, example_plan, example_recipe
from run_stories import Story

from launcher.availability import Seen
from launcher.candidates import choose
from launcher.engine import EnginePhase, EngineState
from launcher.lives import Place, Sighting, believed, believed_by, guessed, sightings_of, with_seen
from launcher.offers import Offer, make_offers
from launcher.render import Templates, render
from launcher.run_record import load_record
from launcher.saves import rates_of
from launcher.settle import settle
from trainer.contract import CREDIT_USED_UP, Document, Env, ExitCode, attempt_file
from trainer.run_folder import Attempt, AttemptEnd, AttemptFiles, Event, Heartbeat, Phases

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
LATER = NOON + timedelta(days=9)


def offer_on(infra: str) -> Offer:
    """The example recipe's for training there."""
    return make_offers(choose(example_recipe(), infra, TWO_CORES)[Document.TRAIN], TWO_CORES, PLANNED)[0]


VAST, GCP, LOCAL = offer_on("vast"), offer_on("gcp/us-central1"), offer_on("local")
ANYWHERE = GCP.model_copy(update={"infra": "gcp"})
OFFERS = {offer.label: offer for offer in (VAST, GCP, LOCAL, ANYWHERE)}


def hour(number: float) -> datetime:
    return NOON + timedelta(hours=number)


def attempt(number: int, begins_h: float, ends_h: float | None, offer: Offer = GCP, *,
            document: Document = Document.TRAIN, code: int | None = ExitCode.RECOVER, region: str = "",
            beat_h: float | None = None, **how: bool) -> AttemptFiles:
    beat = None if beat_h is None else Heartbeat(
        at=hour(beat_h), step=1, total_steps=9, resumed_from_step=0, durable_step=0, durable_train_s=0,
        durable_evaluate_s=0, phases=Phases(), tokens_per_s=1, spent_usd=Decimal(0))
    return AttemptFiles(
        attempt=Attempt(number=number, document=document, billed_from=hour(begins_h), offer=offer.label,
                        price_usd_per_hour=Decimal(1), host="", cloud=offer.cloud, region=region),
        heartbeat=beat, end=None if ends_h is None else AttemptEnd(
            at=hour(ends_h), exit_code=code, reason="", **{"preempted": False} | how))


def taken(number: int, begins_h: float, ends_h: float, offer: Offer = GCP, **more: str) -> AttemptFiles:
    return attempt(number, begins_h, ends_h, offer, code=None, preempted=True, **more)


def seen(*attempts: AttemptFiles, events: tuple[tuple[str, float], ...] = (), **detail: int
         ) -> list[Sighting]:
    return sightings_of("run-1", OFFERS, attempts, [Event(at=hour(at_h), kind=kind, detail=detail)
                                                    for kind, at_h in events], LATER)


def only(*attempts: AttemptFiles, **more) -> tuple[int, float, int, float]:
    """Of the one place that was seen: losses, hours, returns, hours of waiting."""
    ((_, _, found),) = seen(*attempts, **more)
    return found.losses, round(found.up_h, 6), found.returns, round(found.down_h, 6)


def test_a_loss_and_the_wait_until_the_next_machine_are_seen_and_a_machine_that_lives_counts_its_hours():
    assert only(taken(1, 0, 4), attempt(2, 4.5, 10)) == (1, 9.5, 1, 0.5)


@pytest.mark.parametrize("end", [
    {"hung": True}, {"code": 1}, {"code": 137}, {"code": None}, {"code": ExitCode.RECOVER},
    {"code": ExitCode.STOPPED}, {"code": ExitCode.FINISHED}], ids=str)
def test_a_hang_a_crash_and_a_stop_add_hours_and_neither_a_loss_nor_a_wait(end):
    assert only(attempt(1, 0, 4, **end), attempt(2, 9, 10)) == (0, 5.0, 0, 0.0)


def test_a_machine_that_a_person_stopped_at_once_is_no_loss():
    """`ldlm stop --now`: SkyPilot's job is cancelled, and the attempt closed by whoever looks next."""
    events = (("stop_requested", 3.9), ("ended", 4.1), ("resumed", 8))
    assert only(attempt(1, 0, 4, code=None), attempt(2, 9, 10), events=events) == (0, 5.0, 0, 0.0)


@pytest.mark.parametrize(("stopped_h", "losses", "waited_h"), [
    ([3.9], 0, 0.0), ([4.02], 0, 0.0), ([5.5], 1, 1.5), ([3.9, 5.5], 1, 1.5), ([], 0, 0.0)])
def test_a_machine_that_vanished_before_a_person_stopped_its_waiting_run_is_a_loss(
        tmp_path: Path, stopped_h: list[float], losses: int, waited_h: float) -> None:
    """It was silent from 4 h on, and its lease went until a minute after; SkyPilot tells only of the stop."""
    story = Story(f"file://{tmp_path}", "run-1")
    files = attempt(1, 0, None, beat_h=4)
    for name, part, minutes in (("attempt", files.attempt, 5), ("heartbeat", files.heartbeat, 241)):
        lease = {"lease_until": NOON + timedelta(minutes=minutes)}
        story.folder.write(attempt_file(1, f"{name}.json"), part.model_copy(update=lease))
    for number in stopped_h:
        story.folder.add_event("stop_requested", hour(number))
    cancelled = EngineState(EnginePhase.ENDED, Document.TRAIN, word="CANCELLED", ended_at=hour(6))
    assert settle(story.folder, load_record(story.folder.store, "run-1"), cancelled, hour(7))
    ((_, _, found),) = sightings_of("run-1", OFFERS, story.folder.attempts(), story.folder.events(), LATER)
    assert found == Seen(losses=losses, up_h=4.0, returns=0, down_h=waited_h)


def test_a_machine_on_which_a_program_crashed_before_it_was_taken_counts_once():
    crashes = [attempt(number, number - 1, number, code=1) for number in (1, 2, 3)]
    assert only(*crashes, taken(4, 3, 4), attempt(5, 4.5, 6)) == (1, 5.5, 1, 0.5)


def test_a_machine_that_was_taken_while_its_program_hung_counts_once():
    assert only(attempt(1, 0, 4, code=None, preempted=True, hung=True)) == (1, 4.0, 0, 0.0)


def test_a_machine_that_was_stopped_for_want_of_credit_is_no_loss_of_its_place():
    last = taken(1, 0, 4, VAST)
    end = last.end.model_copy(update={"reason": f"Vast stops this machine, for {CREDIT_USED_UP}, in 9 s"})
    assert only(last.model_copy(update={"end": end}), attempt(2, 9, 10, VAST)) == (0, 5.0, 0, 0.0)


def test_crashes_of_a_program_do_not_move_what_is_believed_of_a_place():
    crashed = [attempt(number, number / 10, number / 10 + 0.07, code=1) for number in (1, 2, 3, 4)]
    sightings = [one._replace(run_id=run) for run in "abc" for one in seen(*crashed)]
    assert believed(with_seen(GCP, sightings)).hours_to_loss >= guessed(GCP).hours_to_loss


def test_a_wrong_machine_a_benchmark_and_this_machine_say_nothing():
    assert seen(attempt(1, 0, 4, wrong_machine=True), taken(2, 5, 6, document=Document.BENCH),
                taken(3, 6, 7, LOCAL)) == []
    # A wait goes on while the machine that came was the wrong one.
    assert only(taken(1, 0, 4), attempt(2, 5, 5.1, wrong_machine=True), attempt(3, 6, 7)) == (1, 5.0, 1, 2.0)


def test_an_attempt_that_nobody_has_ended_lived_as_long_as_it_has_said():
    assert only(attempt(1, 0, None, beat_h=3.0)) == (0, 3.0, 0, 0.0)
    assert only(attempt(1, 0, None)) == (0, 0.0, 0, 0.0)
    assert only(attempt(1, 5, 2)) == (0, 0.0, 0, 0.0)  # clocks that disagree
    assert only(taken(1, 0, 4), attempt(2, 3, 5)) == (1, 6.0, 1, 0.0)


@pytest.mark.parametrize(("events", "waited_h"), [
    ((), 0.0), ((("stop_requested", 5),), 1.0), ((("ended", 6.5),), 2.5), ((("ended", 3),), 0.0),
    ((("ended", 7), ("resumed", 100)), 3.0), ((("preempted", 4.1), ("ended", 6)), 2.0)])
def test_a_wait_without_an_end_counts_for_as_long_as_the_run_looked(events, waited_h):
    assert only(taken(1, 0, 4), events=events) == (1, 4.0, 0, waited_h)


def test_hours_in_which_a_run_was_stopped_are_no_wait():
    events = (("ended", 5), ("resumed", 50))
    assert only(taken(1, 0, 4), attempt(2, 51, 52), events=events) == (1, 5.0, 0, 1.0)


def test_of_a_run_that_went_elsewhere_the_end_of_the_wait_was_not_seen():
    lost, other = seen(taken(1, 0, 4), attempt(2, 5, 8, VAST))
    assert lost == Sighting("run-1", Place.of(GCP), Seen(losses=1, up_h=4.0, returns=0, down_h=1.0))
    assert other == Sighting("run-1", Place.of(VAST), Seen(losses=0, up_h=3.0, returns=0, down_h=0.0))


def test_where_any_region_will_do_a_machine_in_another_is_the_end_of_a_wait():
    lost, other = seen(taken(1, 0, 4, VAST, region="us"), attempt(2, 5, 8, VAST, region="se"))
    assert (lost.place.infra, lost.seen.returns, lost.seen.down_h) == ("vast/us", 1, 1.0)
    assert (other.place.infra, other.seen.losses) == ("vast/se", 0)


def test_a_machine_that_its_own_launch_took_away_is_no_loss():
    assert only(taken(1, 0, 4), attempt(2, 5, 7), events=(("taken_on_purpose", 4),), attempt=1) == (
        0, 6.0, 0, 0.0)


def test_a_machine_counts_where_it_was_by_its_own_word():
    there = Sighting("a", *seen(taken(1, 0, 4, ANYWHERE, region="us-east5"))[0][1:])
    elsewhere = with_seen(GCP, [there])
    assert (elsewhere.seen, elsewhere.seen_elsewhere.losses) == ((), 1)
    assert with_seen(ANYWHERE, [there]).seen == (there.seen,)
    zone = GCP.model_copy(update={"infra": "gcp/US-East5/us-east5-a"})
    assert with_seen(zone, [there]).seen == (there.seen,)


CALM = Seen(losses=0, up_h=300.0, returns=0, down_h=0.0)
ROUGH = Seen(losses=9, up_h=3.0, returns=9, down_h=30.0)


@pytest.mark.parametrize("change", [{"infra": "vast"}, {"gpu": "H100"}, {"spot": False}, {"num_nodes": 2}])
def test_other_clouds_cards_kinds_and_numbers_of_machines_count_nothing(change):
    sighting = Sighting("a", Place.of(GCP.model_copy(update=change)), ROUGH)
    assert with_seen(GCP, [sighting]) == GCP


@pytest.mark.parametrize("change", [{"infra": "gcp/us-east5"}, {"num_gpus": 8}])
def test_all_that_was_seen_elsewhere_counts_as_one_run(change):
    place = Place.of(GCP.model_copy(update=change))
    many = with_seen(GCP, [Sighting(str(number), place, ROUGH) for number in range(9)])
    here = with_seen(GCP, [Sighting(str(number), Place.of(GCP), ROUGH) for number in range(9)])
    guess, few, all_of_them = (one.hours_to_loss for one in (guessed(GCP), believed(many), believed(here)))
    assert all_of_them < few / 2 < few < guess
    assert believed_by(many) == "27 h elsewhere on gcp"
    assert believed_by(here) == "9 of your runs, 27 h"
    assert (believed(GCP), believed_by(GCP)) == (guessed(GCP), "guess")


def test_two_machines_of_one_run_are_one_run():
    places = [Place.of(GCP, region) for region in ("us-east5", "us-west1")]
    found = with_seen(ANYWHERE, [Sighting("a", place, CALM) for place in places])
    assert found.seen == (Seen(losses=0, up_h=600.0, returns=0, down_h=0.0),)
    assert believed_by(found) == "1 run of yours, 600 h"


def test_records_of_machines_with_a_known_life_lead_to_it():
    """Machines that live 3 h in the middle of chance, waits of 0.3 h, runs that end while one lives."""
    rng, sightings = random.Random(11), []
    for run in range(40):
        attempts, at_h, end_h = [], 0.0, rng.uniform(10, 60)
        while at_h < end_h:
            life_h = rng.expovariate(1 / 3.0)
            is_last = at_h + life_h >= end_h
            how = attempt if is_last else taken
            attempts.append(how(len(attempts) + 1, at_h, min(at_h + life_h, end_h)))
            at_h += life_h + rng.expovariate(1 / 0.3)
        sightings += [one._replace(run_id=str(run)) for one in seen(*attempts)]
    found = believed(with_seen(GCP, sightings))
    assert found.hours_to_loss == pytest.approx(3.0, rel=0.2)
    assert found.hours_to_machine == pytest.approx(0.3, rel=0.2)


def test_a_plan_its_saves_and_its_nodes_go_by_the_same_figure():
    offer = with_seen(VAST, [Sighting("a", Place.of(VAST), ROUGH)])
    plan = example_plan("vast", seen=[Sighting("a", Place.of(VAST), ROUGH)])
    task = render(plan, example_recipe(), Templates.load(), None)
    told = float(task.document(Document.TRAIN)["envs"][Env.HOURS_TO_LOSS])
    assert plan.availability == believed(offer)
    assert plan.availability_source == "1 run of yours, 3 h"
    assert told == pytest.approx(plan.availability.hours_to_loss, rel=1e-5)
    assert rates_of(offer, None).hours_to_loss == plan.saves.hours_to_loss == plan.availability.hours_to_loss
    calm = example_plan("vast", seen=[Sighting("a", Place.of(VAST), CALM)])
    guess = example_plan("vast")
    assert calm.odds.losses < guess.odds.losses < plan.odds.losses
    assert calm.saves.every_s >= guess.saves.every_s >= plan.saves.every_s
