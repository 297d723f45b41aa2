"""Which machines of Vast a task is given, and which it is not given twice."""

from datetime import UTC, datetime, timedelta

from launcher.vast_search import Rental, left_soon, query_of

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SETTINGS = {"run_id": "one", "usd_per_hour": 1.5, "filters": {"reliability": {"gte": 0.95},
                                                               "cuda_max_good": {"gte": 13.0}}}


def rental(minute: float, machine_id: int, run_id: str | None = "one") -> Rental:
    return Rental(run_id, f"i{machine_id}", machine_id, NOON + timedelta(minutes=minute))


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
    had = [rental(0, 1), rental(10, 2), rental(100, 3)]
    assert left_soon(had, "one", at(105)) == {1, 3}  # 2 was kept for 90 minutes; 3 has just been left
    assert left_soon(had, "one", at(200)) == {1}
    assert left_soon(had, "one", at(24 * 60 + 1)) == set()


def test_machines_of_other_runs_and_of_none_are_not_left_out():
    assert left_soon([rental(0, 1), rental(1, 2, "other"), rental(2, 3, None)], "one", at(50)) == set()
    assert left_soon([rental(0, 3, None)], None, at(5)) == set()


def test_the_order_in_which_rentals_were_written_does_not_matter():
    assert left_soon([rental(10, 2), rental(0, 1)], "one", at(90)) == {1}
