"""What a run costs by the contracts of its machines; every expected dollar is worked out by hand."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from pydantic import ValidationError

from launcher import rental_log
from launcher.rental_cost import alone_usd, on_rentals, rental_of, total_usd, unused_rentals
from launcher.rentals import Price, Rental, Rentals, Terms, merged
from trainer.contract import Document
from trainer.rental_terms import PriceFrom, RentalTerms
from trainer.run_folder import Attempt, AttemptEnd, AttemptFiles, Heartbeat, Phases, Traffic

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
# 100 GB at $0.216 per GB and month of 30 days are 3 cents an hour.
TERMS = Terms(disk_gb=100, disk_usd_per_gb_month=Decimal("0.216"), received_usd_per_gb=Decimal("0.01"),
              sent_usd_per_gb=Decimal("0.02"))


def at(minute: float) -> datetime:
    return NOON + timedelta(minutes=minute)


def rental(start: float, end: float | None, *prices: tuple[float, str],
           running: float | None = None) -> Rental:
    return Rental(run_id="one", instance_id=f"i{start:g}", machine_id=7, rented_at=at(start),
                  running_at=None if running is None else at(running),
                  ended_at=None if end is None else at(end), terms=TERMS,
                  prices=tuple(Price(at=at(minute), usd_per_hour=Decimal(usd))
                               for minute, usd in prices or [(start, "1.20")]))


def attempt(number: int, start: float, end: float | None, code: int | None = 0, *, preempted: bool = False,
            received: int = 0, sent: int = 0) -> AttemptFiles:
    traffic = Traffic(received_bytes=received, sent_bytes=sent)
    beat = Heartbeat(at=at(end if end is not None else start + 1), step=1, total_steps=9, resumed_from_step=0,
                     durable_step=0, durable_train_s=0, durable_evaluate_s=0, phases=Phases(), tokens_per_s=1,
                     spent_usd=Decimal(0), traffic=traffic)
    return AttemptFiles(
        attempt=Attempt(number=number, document=Document.TRAIN, billed_from=at(start), host="h", offer="o",
                        price_usd_per_hour=Decimal("1.20")),
        heartbeat=beat, end=None if end is None else AttemptEnd(
            at=at(end), exit_code=code, preempted=preempted, reason=""))


def unused_usd(attempts: list[AttemptFiles], rentals: list[Rental], now: datetime) -> list[Decimal]:
    return [alone_usd(one, now) for one in unused_rentals(attempts, rentals)]


def ends(attempts: list[AttemptFiles]) -> list[datetime]:
    return [files.end.at for files in attempts if files.end]


def test_gpus_are_paid_at_the_price_of_each_moment():
    changing = rental(0, 60, (0, "1.20"), (30, "2.40"), (50, "0.60"))
    assert changing.gpu_usd(at(0), at(30)) == Decimal("0.60")
    assert changing.gpu_usd(at(0), at(60)) == Decimal("0.60") + Decimal("0.80") + Decimal("0.10")
    assert changing.gpu_usd(at(40), at(45)) == Decimal("0.20")
    assert changing.gpu_usd(at(55), at(55)) == 0


def test_the_disk_is_paid_from_the_contract_to_its_end_and_the_network_by_the_byte():
    assert rental(0, 60).disk_usd(at(500)) == Decimal("0.03")
    assert rental(0, None).disk_usd(at(120)) == Decimal("0.06")
    assert rental(0, 60).network_usd(3 * 10**9, 10**9) == Decimal("0.05")


def test_an_attempt_at_home_after_a_rental_is_not_billed_by_its_contract():
    attempts = [attempt(1, 10, 40), attempt(2, 100, 160)]
    rented, at_home = on_rentals(attempts, ends(attempts), [rental(0, 50)], at(500))
    assert rented.gpu_usd == Decimal("0.80")
    assert (at_home.gpu_usd, at_home.disk_usd) == (None, 0)


def test_an_attempt_on_another_cloud_is_not_billed_by_the_contract_that_ended_seconds_before():
    elsewhere = attempt(2, 50.5, 160)
    on_gcp = elsewhere.attempt.model_copy(update={"cloud": "gcp"})
    elsewhere = elsewhere.model_copy(update={"attempt": on_gcp})
    attempts = [attempt(1, 10, 50), elsewhere]
    assert [held.gpu_usd for held in on_rentals(attempts, ends(attempts), [rental(0, 50)], at(500))] == [
        Decimal("0.80"), None]


def test_what_one_server_tells_does_not_make_what_another_told_forgotten():
    first, second, late = rental(0, 50), rental(60, None), rental(60, 90)
    assert merged([first, second], Rentals.of([late]), at(-1)).rentals == (first, late)
    earlier = rental(-9, -5)  # of another run of this name
    assert merged([], Rentals.of([earlier, first], num_torn=2), at(-1)) == Rentals.of([first], num_torn=2)


def test_a_machine_that_is_given_back_later_is_paid_until_then():
    attempts = [attempt(1, 10, 40, received=10**9)]
    (held,) = on_rentals(attempts, ends(attempts), [rental(0, 50)], at(500))
    assert held.until == at(50)
    assert held.gpu_usd == Decimal("0.80")  # 40 minutes of $1.20
    assert held.disk_usd == Decimal("0.025")  # 50 minutes of 3 cents
    assert held.network_usd == Decimal("0.01")


def test_a_machine_that_was_taken_is_paid_until_it_was_last_seen_and_its_disk_until_it_is_given_back():
    attempts = [attempt(1, 10, 40, None, preempted=True)]
    (held,) = on_rentals(attempts, ends(attempts), [rental(0, 100)], at(500))
    assert (held.until, held.gpu_usd, held.disk_usd) == (at(40), Decimal("0.60"), Decimal("0.05"))


def test_of_two_attempts_on_one_machine_the_last_pays_its_disk_and_traffic_once():
    attempts = [attempt(1, 10, 20, 75, received=10**9), attempt(2, 20, 40, received=4 * 10**9)]
    first, second = on_rentals(attempts, ends(attempts), [rental(0, 50)], at(500))
    assert (first.until, first.gpu_usd, first.disk_usd, first.network_usd) == (at(20), Decimal("0.20"), 0, 0)
    assert (second.gpu_usd, second.disk_usd, second.network_usd) == (
        Decimal("0.60"), Decimal("0.025"), Decimal("0.04"))


def test_each_attempt_is_on_the_machine_that_was_rented_before_it():
    attempts = [attempt(1, 10, 40, None, preempted=True), attempt(2, 70, 100)]
    rentals = [rental(0, 45), rental(60, 110, (60, "2.40"))]
    assert [held.gpu_usd for held in on_rentals(attempts, ends(attempts), rentals, at(500))] == [
        Decimal("0.60"), Decimal("1.60")]
    # 0.60 + 1.60 for GPUs, 45 + 50 minutes of disk at 3 cents.
    assert total_usd(attempts, ends(attempts), rentals, at(500)) == Decimal("2.2475")


@pytest.mark.parametrize(("noted", "heard", "usd"), [
    ([], [(20, "2.40")], "0.20 0.40 0.80"),  # the note of the raise got lost
    ([(20, "2.40")], [(21, "2.40")], "0.20 0.40 0.80"),  # as it should be
    ([(20, "2.40")], [], "0.20 0.40 0.80"),
    ([(25, "2.40")], [(20, "2.40")], "0.20 0.40 0.80"),  # the node has heard of it first
    ([(20, "2.40")], [(25, "3.60")], "0.20 0.50 1.20"),
    ([], [(-600, "2.40")], "0.40 0.40 0.80"),  # by a clock that was hours behind
])
def test_a_raise_that_either_side_knows_is_in_the_bill_of_all_attempts_on_the_machine(noted, heard, usd):
    first, second, third = attempt(1, 10, 20, 75), attempt(2, 20, 30, 75), attempt(3, 30, 50)
    prices = tuple(PriceFrom(at=at(minute), usd_per_hour=Decimal(price)) for minute, price in heard)
    second = second.model_copy(update={"heartbeat": second.heartbeat.model_copy(update={"prices": prices})})
    contract = rental(0, 50, (0, "1.20"), *noted)
    held = on_rentals([first, second, third], [at(20), at(30), at(50)], [contract], at(500))
    assert " ".join(f"{one.gpu_usd:.2f}" for one in held) == usd


def test_a_short_attempt_is_not_billed_by_the_contract_that_was_made_seconds_later():
    rentals = [rental(0, 10.5), rental(10.7, None)]
    short = attempt(1, 10, 10.4)
    assert rental_of(short, rentals) == rentals[0]
    # A machine that says when it was rented is that one, whatever its clock says.
    terms = RentalTerms(rented_at=at(10.7))
    late = short.model_copy(update={"attempt": short.attempt.model_copy(update={"terms": terms})})
    assert rental_of(late, rentals) == rentals[1]


def test_a_machine_that_never_came_to_an_attempt_costs_its_disk_and_what_it_ran():
    rentals = [rental(0, 20), rental(30, 50, running=40), rental(60, 110)]
    attempts = [attempt(1, 70, 110)]
    # 20 minutes of disk; 20 more and 10 minutes of GPUs.
    assert unused_usd(attempts, rentals, at(500)) == [Decimal("0.01"), Decimal("0.01") + Decimal("0.20")]
    assert unused_usd([], [rental(0, None)], at(10)) == []  # its attempt may still come
    assert unused_usd([], [rental(0, 20)], at(500)) == [Decimal("0.01")]


def test_without_contracts_time_at_the_price_of_the_attempt_counts():
    attempts = [attempt(1, 10, 40)]
    (held,) = on_rentals(attempts, ends(attempts), [], at(500))
    assert (held.until, held.gpu_usd) == (at(40), None)
    assert total_usd(attempts, ends(attempts), [], at(500)) == Decimal("0.60")


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".sky/ldlm_rentals.jsonl"


def test_a_server_remembers_rentals_as_it_learns_of_them(log):
    assert rental_log.read() == {}
    rental_log.rented(rental(0, None))
    rental_log.rented(rental(30, None))
    rental_log.seen_running("i0", at(5))
    rental_log.repriced("i0", at(10), Decimal("2.40"))
    rental_log.gone("i0", at(20))
    rental_log.gone("i0", at(25))  # somebody else has seen it later
    assert rental_log.read() == {"i0": rental(0, 20, (0, "1.20"), (10, "2.40"), running=5),
                                 "i30": rental(30, None)}
    assert log.stat().st_mode & 0o077 == 0


def test_what_is_seen_again_has_not_ended_until_it_ends_once_more(log):
    rental_log.rented(rental(0, None))
    rental_log.gone("i0", at(10))
    rental_log.given_back("i0", at(12))
    rental_log.returned("i0", at(20))
    (back,) = rental_log.read().values()
    assert back.lives_on and (back.given_back_at, back.returned_at) == (at(12), at(20))
    rental_log.gone("i0", at(30))
    (over,) = rental_log.read().values()
    assert not over.lives_on and over.ended_at == at(30)


def test_a_machine_that_lives_on_is_paid_until_now_whoever_took_it_for_gone():
    attempts = [attempt(1, 10, 40, None, preempted=True), attempt(2, 70, 100)]
    lives = rental(0, None).model_copy(update={"returned_at": at(60)})
    held = on_rentals(attempts, ends(attempts), [lives, rental(60, 110)], at(190))
    assert [one.gpu_usd for one in held] == [Decimal("3.60"), Decimal("0.80")]  # 180 and 40 minutes of $1.20
    assert held[0].disk_usd == Decimal("0.095")
    over = lives.model_copy(update={"ended_at": at(100)})
    (held_over,) = on_rentals(attempts[:1], [at(40)], [over], at(190))
    assert (held_over.until, held_over.gpu_usd) == (at(100), Decimal("1.80"))


def test_a_torn_line_hides_no_other(log):
    rental_log.rented(rental(0, None))
    log.write_text(log.read_text() + '{"instance_id": "i3')  # killed in the middle
    rental_log.gone("i0", at(20))
    rental_log.gone("never-rented", at(20))
    log.write_text(log.read_text() + '[1]\n{}\n{"instance_id": "i9", "machine_id": 3}\n' + json.dumps("x"))
    assert rental_log.read() == {"i0": rental(0, 20)}
    assert rental_log.read_all()[1] == 4  # and those are counted


@pytest.mark.parametrize("line", [
    {"price": {"at": "2026-11-23T12:10:00", "usd_per_hour": "2.40"}},  # in which zone?
    {"price": {"at": "2026-11-23T12:10:00Z", "usd_per_hour": "-2.40"}},
    {"price": {"at": "2026-11-23T12:10:00Z", "usd_per_hour": "NaN"}},
    {"price": {"at": "2026-11-23T12:10:00Z", "usd_per_hour": "1e9"}},
    {"ended_at": "2026-11-23T12:10:00"}, {"running_at": "noon"}, {"most_bid_usd_per_hour": "-1"},
])
def test_a_line_that_cannot_be_true_is_counted_and_passed_over(log, line):
    rental_log.rented(rental(0, None))
    log.write_text(log.read_text() + json.dumps({"instance_id": "i0"} | line) + "\n")
    rental_log.given_back("i0", at(20))
    (known,) = rental_log.read_all()[0].values()
    assert (known.ended_at, known.prices) == (at(20), rental(0, 20).prices)
    assert rental_log.read_all()[1] == 1


@pytest.mark.parametrize("wrong", [
    {"prices": []}, {"rented_at": "2026-11-23T12:00:00"},
    {"terms": {"disk_gb": -1}}, {"terms": {"disk_gb": 10**9}},
    {"terms": {"disk_gb": 1, "disk_usd_per_gb_month": "-1"}},
    {"terms": {"disk_gb": 1, "received_usd_per_gb": "Infinity"}},
    {"terms": {"disk_gb": 1, "sent_usd_per_gb": "1e12"}},
])
def test_a_contract_that_cannot_be_true_is_refused(wrong):
    with pytest.raises(ValidationError):
        Rental.model_validate_json(json.dumps(rental(0, None).model_dump(mode="json") | wrong))


def test_a_contract_whose_moments_are_out_of_order_is_never_less_than_nothing():
    back = rental(50, 20, running=60)
    assert (back.alone_gpu_usd(at(500)), back.disk_usd(at(500))) == (0, 0)
    shuffled = rental(0, 60, (0, "1.20"), (50, "0.60"), (30, "2.40"))
    assert shuffled.gpu_usd(at(0), at(60)) == Decimal("0.60") + Decimal("0.80") + Decimal("0.10")
