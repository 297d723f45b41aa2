"""A price that changes while an attempt runs: heard from the machine's own row, counted, and told."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.contract import Document
from trainer.live_price import ROW, LivePrice
from trainer.rental_terms import PriceFrom
from trainer.run_folder import Attempt, AttemptFiles, Heartbeat, Phases
from trainer.spent import attempt_usd, price_now, spent_usd

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def writes(home: Path, price: object) -> None:
    (home / ROW).write_text(json.dumps({"instances": {"id": 5001, "dph_base": price}}))


def test_each_change_is_heard_once_with_its_moment(tmp_path):
    clock = Clock()
    live = LivePrice(Decimal("0.356"), tmp_path, clock)
    assert live.seen() == ()
    writes(tmp_path, 0.356)
    assert live.seen() == ()
    for minutes, price in ((10, 0.389), (10, 0.389), (20, 0.42)):
        clock.now = NOON + timedelta(minutes=minutes)
        writes(tmp_path, price)
        live.seen()
    assert [(str(one.usd_per_hour), one.at) for one in live.seen()] == [
        ("0.389", NOON + timedelta(minutes=10)), ("0.42", NOON + timedelta(minutes=20))]


@pytest.mark.parametrize("text", [
    "", "{", "[]", "{}", '{"instances": null}', '{"instances": {"dph_base": null}}',
    '{"instances": {"dph_base": NaN}}', '{"instances": {"dph_base": -1}}', '{"instances": {"dph_base": 0}}',
    '{"instances": {"dph_base": "much"}}'])
def test_what_cannot_be_read_changes_nothing(tmp_path, text):
    live = LivePrice(Decimal("0.356"), tmp_path, Clock())
    writes(tmp_path, 0.389)
    known = live.seen()
    (tmp_path / ROW).write_text(text)
    assert live.seen() == known and len(known) == 1


def files(*prices: tuple[float, str], live: bool = False) -> AttemptFiles:
    """An attempt at $3.60 an hour, $0.001 a second, with later prices."""
    later = tuple(PriceFrom(at=at(seconds), usd_per_hour=Decimal(price)) for seconds, price in prices)
    attempt = Attempt(number=1, document=Document.TRAIN, billed_from=NOON, offer="", host="",
                      price_usd_per_hour=Decimal("3.60"))
    if live:
        return AttemptFiles(attempt=attempt, prices=later)
    beat = Heartbeat(at=at(900), step=1, total_steps=9, resumed_from_step=0, durable_step=0, prices=later,
                     durable_train_s=0, durable_evaluate_s=0, phases=Phases(), tokens_per_s=1,
                     spent_usd=Decimal(0))
    return AttemptFiles(attempt=attempt, heartbeat=Heartbeat.model_validate_json(beat.model_dump_json()))


@pytest.mark.parametrize(("prices", "seconds", "usd"), [
    ([], 1000, "1"),
    ([(500, "7.20")], 1000, "1.5"),
    ([(500, "7.20")], 400, "0.4"),
    ([(500, "7.20"), (750, "36")], 1000, "3.5"),
    ([(-10, "7.20")], 1000, "2"),  # a clock that was set
    ([(500, "7.20"), (400, "3.60")], 1000, "1"),  # out of order: none counts for less than no time
    ([(0, "7.20")], 0, "0"),
])
@pytest.mark.parametrize("live", [False, True])
def test_every_second_is_counted_at_the_price_of_its_time(prices, seconds, usd, live):
    assert attempt_usd(files(*prices, live=live), seconds) == Decimal(usd)


def test_a_run_has_spent_by_its_later_prices():
    assert spent_usd([files((500, "7.20"))], at(1000)) == Decimal("1.5")
    assert price_now(files((500, "7.20"))) == Decimal("7.20")
    assert price_now(files()) == Decimal("3.60")


@given(st.lists(st.tuples(st.floats(0, 5000), st.decimals("0.01", "50", places=3)), max_size=6),
       st.floats(0, 6000))
def test_it_is_the_sum_over_seconds_by_an_oracle_that_asks_each(changes, seconds):
    changes.sort(key=lambda one: one[0])
    found = files(*((began, str(price)) for began, price in changes))
    edges = sorted({0.0, seconds, *(began for began, _ in changes if began < seconds)})
    total = 0.0
    for begin, end in zip(edges, edges[1:], strict=False):
        prices = [float(price) for began, price in changes if began <= begin]
        total += (end - begin) * (prices[-1] if prices else 3.6) / 3600
    assert float(attempt_usd(found, seconds)) == pytest.approx(total, abs=1e-6)
