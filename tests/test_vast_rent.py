"""Vast answers a rental with an error, with nothing or too late: one machine is rented, and it is known."""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from test_sky_plugin import CHEAPEST, DEAR, SECOND, Vast, rent, vast
from test_vast_market import H100_CHEAPEST, H100_SECOND

from launcher import rental_log
from tests.lab.vast_market import Refused

__all__ = ["vast"]  # a fixture


@pytest.fixture(autouse=True)
def slept_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No test waits; what it would have waited."""
    found = list[float]()
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def answers(vast: Vast, *ways: Callable[[Callable[[], int]], int]) -> list[int]:
    """Vast answers the first requests to rent in these ways, then as always. Returns the offers asked for."""
    rent, asked, left = vast.market.rent, list[int](), list(ways)

    def rent_or_not(offer_id: int, body: dict[str, Any]) -> int:
        asked.append(offer_id)
        return left.pop(0)(lambda: rent(offer_id, body)) if left else rent(offer_id, body)

    vast.market.rent = rent_or_not  # type: ignore[method-assign]
    return asked


def rents_and_says(status: int) -> Callable[[Callable[[], int]], int]:
    def way(rent: Callable[[], int]) -> int:
        rent()
        raise Refused(status, "", "")
    return way


def rents_not_and_says(status: int) -> Callable[[Callable[[], int]], int]:
    def way(rent: Callable[[], int]) -> int:
        raise Refused(status, "", "")
    return way


def rents_and_hangs_up(rent: Callable[[], int]) -> int:
    rent()
    raise BrokenPipeError


def machines(vast: Vast) -> list[int]:
    return [row["machine_id"] for row in vast.market.rows()]


def noted() -> dict[str, int]:
    return {number: rental.machine_id for number, rental in rental_log.read().items()}


@pytest.mark.parametrize("way", [*(rents_and_says(status) for status in (500, 502, 503, 504, 408)),
                                 rents_and_hangs_up])
def test_a_machine_that_was_rented_although_the_answer_got_lost_is_the_one_and_is_billed(vast, way):
    asked = answers(vast, way)
    number = rent(vast, ldlm=DEAR)
    assert asked == [CHEAPEST]  # once: neither again nor another
    assert machines(vast) == [H100_CHEAPEST] and noted() == {number: H100_CHEAPEST}
    assert rental_log.read()[number].prices[0].usd_per_hour > 3


def test_an_error_after_which_no_machine_is_there_leads_to_the_next_offer(vast):
    asked = answers(vast, rents_not_and_says(502))
    number = rent(vast, ldlm=DEAR)
    assert asked == [CHEAPEST, SECOND] and noted() == {number: H100_SECOND}
    assert machines(vast) == [H100_SECOND]


def test_a_machine_that_shows_up_late_is_waited_for(vast, monkeypatch, slept_s):
    rows, looks = vast.market.rows, list[int]()

    def rows_late() -> list[dict[str, Any]]:
        looks.append(1)
        return rows() if len(looks) > 4 else []  # the first is before it rents: what else takes of the credit

    monkeypatch.setattr(vast.market, "rows", rows_late)
    asked = answers(vast, rents_and_says(504))
    number = rent(vast, ldlm=DEAR)
    assert noted() == {number: H100_CHEAPEST} and asked == [CHEAPEST]
    assert sum(slept_s) == 15


def test_of_two_machines_that_nobody_has_told_of_one_is_kept(vast, monkeypatch):
    rows, looks = vast.market.rows, list[int]()

    def rows_very_late() -> list[dict[str, Any]]:
        looks.append(1)
        return rows() if len(looks) > 12 else []

    monkeypatch.setattr(vast.market, "rows", rows_very_late)
    answers(vast, rents_and_says(504), rents_and_says(504))
    number = rent(vast, ldlm=DEAR)
    assert noted() == {number: H100_CHEAPEST}
    assert machines(vast) == [H100_CHEAPEST]


def test_one_that_the_run_had_before_under_the_same_name_is_not_taken_for_it(vast):
    first = rent(vast, ldlm=DEAR)
    answers(vast, rents_and_says(502))
    second = rent(vast, ldlm=DEAR)
    assert noted() == {first: H100_CHEAPEST, second: H100_SECOND}


def test_where_vast_does_not_even_list_its_machines_no_other_one_is_rented(vast, monkeypatch):
    def away() -> None:
        raise Refused(500, "", "")

    asked = answers(vast, rents_and_says(502))
    with monkeypatch.context() as silent:
        silent.setattr(vast.market, "rows", away)
        said = "may have rented out machine 4102 (it answers 502), and does not tell (it answers 500): no"
        with pytest.raises(RuntimeError, match=re.escape(said)):
            rent(vast, ldlm=DEAR)
    assert asked == [CHEAPEST] and machines(vast) == [H100_CHEAPEST]


def test_where_nothing_answers_any_more_nothing_is_rented(vast):
    def ends(rent: Callable[[], int]) -> int:
        vast.http.socket.close()
        raise BrokenPipeError

    asked = answers(vast, ends)
    vast.sdk.client.retry = 1
    with pytest.raises(RuntimeError, match=r"answer got lost \(ConnectionError\).*no other one is rented"):
        rent(vast, ldlm=DEAR)
    assert asked == [CHEAPEST]


def test_where_vast_wants_fewer_requests_the_same_offer_is_asked_for_again(vast, slept_s):
    asked = answers(vast, rents_not_and_says(429), rents_not_and_says(429))
    rent(vast, ldlm=DEAR)
    assert asked == 3 * [CHEAPEST] and slept_s == [1, 5]


def test_all_else_that_the_sdk_asks_is_asked_again_as_before(vast):
    rent(vast, ldlm=DEAR)
    assert vast.sdk.client.retry == 3


def test_the_login_of_a_private_registry_reaches_vast(vast):
    rent(vast, login="-u me -p secret ghcr.io", ldlm=DEAR)
    (contract,) = vast.sent(f"/api/v0/asks/{CHEAPEST}/")
    assert contract["image_login"] == "-u me -p secret ghcr.io"


@pytest.mark.parametrize("bid", [{}, {"bid_price": 1.5}])
def test_a_machine_that_is_offered_for_nothing_is_passed_over(vast, bid):
    """Its price is missing: no cap could hold."""
    vast.market.price(H100_CHEAPEST, {"dph_base": "0", "min_bid": "0"})
    number = rent(vast, ldlm=DEAR, **bid)
    (had,) = rental_log.read().values()
    assert (had.instance_id, had.machine_id, had.prices[0].usd_per_hour > 0) == (number, H100_SECOND, True)
