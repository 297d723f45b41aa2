"""Which machines of Vast a task is given, and which it is not given twice."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from launcher.rentals import Price, Rental, Terms
from launcher.vast_search import not_again, query_of, rental_of

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SETTINGS = {"run_id": "one", "usd_per_hour": 1.5, "filters": {"reliability": {"gte": 0.95},
                                                               "cuda_max_good": {"gte": 13.0}}}


def rental(minute: float, machine_id: int, run_id: str | None = "one", end: float | None = None, *,
           is_wrong: bool = False, by_choice: bool = False) -> Rental:
    return Rental(run_id=run_id, instance_id=f"i{machine_id}", machine_id=machine_id, rented_at=at(minute),
                  ended_at=None if end is None else at(end), is_wrong=is_wrong,
                  prices=(Price(at=at(minute), usd_per_hour=Decimal(1)),), left_by_choice=by_choice,
                  terms=Terms(disk_gb=1))


def at(minute: float) -> datetime:
    return NOON + timedelta(minutes=minute)


def test_a_bid_is_searched_by_the_lowest_bid_and_a_price_by_the_whole_price():
    common = {
        "verified": {"eq": True}, "external": {"eq": False}, "rentable": {"eq": True},
        "num_gpus": {"eq": 2}, "gpu_name": {"eq": "H100 SXM"}, "disk_space": {"gte": 200},
        "reliability": {"gte": 0.95}, "cuda_max_good": {"gte": 13.0}}
    assert query_of(SETTINGS, "2x-H100_SXM-32-65536", 200, bids=True, without=[]) == (
        common | {"min_bid": {"lte": 1.5}})
    assert query_of(SETTINGS, "2x-H100_SXM-32-65536", 200, bids=False, without=[9, 3, 9]) == (
        common | {"dph_total": {"lte": 1.5}, "machine_id": {"notin": [3, 9]}})


def test_a_machine_that_was_left_within_half_an_hour_is_not_given_again_that_day():
    had = [rental(0, 1, end=10), rental(10, 2, end=100), rental(100, 3)]
    assert not_again(had, "one", at(105)) == {1, 3}  # 3 is there since five minutes
    assert not_again(had, "one", at(200)) == {1}
    assert not_again(had, "one", at(24 * 60 + 1)) == set()


def test_one_that_its_course_has_left_is_given_again_unless_it_is_wrong():
    had = [rental(0, 1, end=10, by_choice=True), rental(10, 2, end=20, by_choice=True, is_wrong=True)]
    assert not_again(had, "one", at(25)) == {2}


def test_a_machine_that_a_run_has_found_wrong_is_never_given_to_it_again_however_late_it_was_found():
    had = [rental(0, 1, end=50, is_wrong=True), rental(60, 2, end=200)]
    assert not_again(had, "one", at(210)) == not_again(had, "one", at(99 * 24 * 60)) == {1}
    assert not_again(had, "other", at(210)) == set()


def test_machines_of_other_runs_and_of_none_are_not_left_out():
    had = [rental(1, 2, "other", end=2), rental(2, 3, None, end=3)]
    assert not_again(had, "one", at(50)) == not_again(had, None, at(5)) == set()


def test_a_rental_has_the_terms_of_its_offer():
    offer = {"machine_id": 8, "dph_base": 2.0, "dph_total": 2.03, "min_bid": 0.9, "storage_cost": 0.15,
             "inet_down_cost": 0.002, "inet_up_cost": 0.02}
    bought = rental_of(offer, "5", {"run_id": "one"}, None, 120, NOON)
    assert bought.prices == (Price(at=NOON, usd_per_hour=Decimal("2.0")),)
    assert bought.terms == Terms(disk_gb=120, disk_usd_per_gb_month=Decimal("0.15"),
                                 received_usd_per_gb=Decimal("0.002"), sent_usd_per_gb=Decimal("0.02"))
    assert rental_of(offer, "5", {}, 1.1, 120, NOON).prices[0].usd_per_hour == Decimal("1.1")
