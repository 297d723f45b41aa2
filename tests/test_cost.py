from datetime import timedelta
from decimal import Decimal

from launcher.cost import Range, hours_range, price_for, total, usd_range


def test_ninety_minutes_at_two_dollars_are_three():
    assert price_for(timedelta(minutes=90), Decimal("2")) == Decimal("3")


def test_ranges_add_end_by_end():
    one = Range(low=Decimal(1), mid=Decimal(2), high=Decimal(4))
    assert total([one, one]) == Range(low=Decimal(2), mid=Decimal(4), high=Decimal(8))
    assert total([]) == Range(low=Decimal(0), mid=Decimal(0), high=Decimal(0))


def test_hours_come_from_tokens_and_speed_and_dollars_from_hours():
    hours = hours_range(7200, 1.0, 0.5, 2.0)
    assert hours == Range(low=Decimal(1), mid=Decimal(2), high=Decimal(4))
    assert usd_range(hours, Decimal("0.5")) == Range(low=Decimal("0.5"), mid=Decimal(1), high=Decimal(2))
