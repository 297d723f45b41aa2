"""The cap of a run is about all that is billed, as far as its nodes can know: worked out by hand."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from launcher.rental_cost import node_terms, total_usd
from launcher.rentals import Price, Rental, Terms
from trainer.contract import Document, Env
from trainer.rental_terms import TERMS, RentalTerms, own_upload_price, terms_here
from trainer.run_folder import Attempt, AttemptEnd, AttemptFiles, Traffic
from trainer.spent import charged_until, spent_usd

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
# 100 GB at $0.216 per GB and month of 30 days are 3 cents an hour.
DISK = Terms(disk_gb=100, disk_usd_per_gb_month=Decimal("0.216"), received_usd_per_gb=Decimal("0.01"),
             sent_usd_per_gb=Decimal("0.02"))


def at(minute: float) -> datetime:
    return NOON + timedelta(minutes=minute)


def rental(start: float, end: float | None, running: float | None = None) -> Rental:
    return Rental(run_id="one", instance_id=f"i{start:g}", machine_id=7, rented_at=at(start), terms=DISK,
                  running_at=None if running is None else at(running),
                  ended_at=None if end is None else at(end),
                  prices=(Price(at=at(start), usd_per_hour=Decimal("1.20")),))


def attempt(number: int, start: float, end: float | None, terms: RentalTerms | None, gigabytes: int = 0
            ) -> AttemptFiles:
    own = Attempt(number=number, document=Document.TRAIN, billed_from=at(start), host="h", offer="o",
                  price_usd_per_hour=Decimal("1.20"), terms=terms)
    over = None if end is None else AttemptEnd(
        at=at(end), exit_code=75, preempted=False, reason="",
        traffic=Traffic(received_bytes=gigabytes * 10**9, sent_bytes=gigabytes * 10**9))
    return AttemptFiles(attempt=own, end=over)


def test_disk_from_the_contract_on_network_by_the_byte_and_set_up_count() -> None:
    run = [attempt(1, 10, None, node_terms(rental(0, None), []))]
    seen = Traffic(received_bytes=5 * 10**9, sent_bytes=10**9)
    # 50 minutes at $1.20, an hour of the disk, 5 GB at a cent and one at two.
    assert spent_usd(run, at(60), seen) == Decimal("1.00") + Decimal("0.03") + Decimal("0.07")


def test_machines_on_which_no_attempt_began_count_and_others_only_once() -> None:
    """One hung in its set-up for an hour, one trained for half of one; the third trains now."""
    hung, second = rental(0, 60, running=0), rental(60, 90, running=60)
    third = node_terms(rental(90, None), [hung, second, rental(0, 60).model_copy(update={"run_id": "other"})])
    run = [attempt(1, 60, 90, node_terms(second, [hung]), gigabytes=1), attempt(2, 90, None, third)]
    # 1.23 for the hung one; 0.60, 1.5 cents and 3 cents; then 0.60 and 1.5 cents.
    assert spent_usd(run, at(120)) == Decimal("1.23") + Decimal("0.645") + Decimal("0.615")


def test_two_attempts_on_one_machine_share_its_disk_and_the_counters_of_its_network() -> None:
    terms = node_terms(rental(0, None), [])
    run = [attempt(1, 0, 30, terms, gigabytes=1), attempt(2, 30, None, terms)]
    seen = Traffic(received_bytes=3 * 10**9, sent_bytes=10**9)
    assert spent_usd(run, at(60), seen) == Decimal("1.20") + Decimal("0.03") + Decimal("0.05")
    # At home afterwards, what this machine's network does costs nothing.
    at_home = [run[0], attempt(2, 30, None, None)]
    assert spent_usd(at_home, at(60), seen) == Decimal("1.20") + Decimal("0.015") + Decimal("0.03")


def test_a_node_counts_what_the_bill_will_say() -> None:
    machines = [rental(0, 60, running=0), rental(60, 90, running=60), rental(90, 100, running=90)]
    run = [attempt(1, 60, 90, node_terms(machines[1], machines[:1]), gigabytes=2),
           attempt(2, 90, 100, node_terms(machines[2], machines[:2]), gigabytes=1)]
    billed = total_usd(run, charged_until(run, at(100)), machines, at(100))
    assert spent_usd(run, at(100)) == pytest.approx(billed, abs=Decimal("0.00001"))


def test_a_run_of_the_same_name_before_it_is_not_this_run_s_and_a_torn_note_says_nothing(
        tmp_path: Path) -> None:
    told = node_terms(rental(90, None), [rental(0, 10, running=0), rental(60, 70, running=60)])
    (tmp_path / TERMS).write_text(told.model_dump_json())
    assert terms_here(tmp_path) == told
    assert [rented_at for rented_at, _ in told.since(at(30)).earlier] == [at(60)]
    (tmp_path / TERMS).write_text("{")
    assert terms_here(tmp_path) is None and terms_here(tmp_path / "nowhere") is None


def test_uploads_cost_what_this_machine_asks_and_the_requests_of_its_store(tmp_path: Path) -> None:
    guessed = {Env.UPLOAD_PRICE: "0.0103", Env.REQUESTS_PRICE: "0.0003"}
    assert own_upload_price(guessed, tmp_path) == {}
    (tmp_path / TERMS).write_text(node_terms(rental(0, None), []).model_dump_json())
    assert own_upload_price(guessed, tmp_path) == {Env.UPLOAD_PRICE: "0.0203"}
    assert own_upload_price({}, tmp_path) == {Env.UPLOAD_PRICE: "0.02"}  # of a store that bills no requests
