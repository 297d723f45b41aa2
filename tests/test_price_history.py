"""Histories of prices: which windows get which price, what cannot be a price, and what to choose from."""

from datetime import date

import pytest

from launcher.errors import UsageError
from launcher.policy import Setting
from launcher.price_history import Price, priced, read_prices
from launcher.traces import Trace

SETTING = Setting(20, 26, 0.2, 0.97, 3.06)
HEADER = "date,machine_type,region,on_demand_usd_per_hour,spot_usd_per_hour\n"
HISTORY = HEADER + """2025-01-01,a3,us,10.0,2.0
2025-01-01,a3,eu,11.0,3.0
2025-02-01,a3,us,10.0,2.0
2025-05-01,a3,us,10.0,5.0
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "prices.csv").write_text(HISTORY)
    return tmp_path / "prices.csv"


def test_each_price_gets_windows_by_the_days_it_held_and_none_is_split(path):
    groups = [[Trace(zone, str(number), 600, ((True, 9),)) for zone in "ab"] for number in range(10)]
    # 120 days at $2, though a month is missing, then 30 at $5.
    first, may = date(2025, 1, 1), date(2025, 5, 1)
    assert [(setting.spot_usd_per_hour, setting.on_demand_usd_per_hour, part, periods)
            for setting, part, periods in priced(SETTING, groups, path, "a3", "us")] == [
        (2.0, 10.0, groups[:8], [(first, may)]), (5.0, 10.0, groups[8:], [(may, None)])]
    path.write_text(HISTORY + "2025-05-31,a3,us,10.0,2.0\n")
    back = date(2025, 5, 31)
    assert [(setting.spot_usd_per_hour, part, periods)
            for setting, part, periods in priced(SETTING, groups, path, "a3", "us")] == [
        (2.0, [*groups[:7], groups[8], groups[9]], [(first, may), (back, None)]),
        (5.0, [groups[7]], [(may, back)])]
    assert list(priced(SETTING, groups, None, None, None)) == [(SETTING, groups, [])]


@pytest.mark.parametrize(("line", "problem"), [
    ("2025-06-01,a3,us,nan,1.0", "prices of"), ("2025-06-01,a3,us,10,-1", r"prices of \$10 and \$-1 an hour"),
    ("2025-06-01,a3,us,10,0", "prices of"), ("2025-06-01,a3,us,1e300,1", r"prices of \$1e.300 and \$1 an"),
    ("2025-06-01,a3,us,1001,1", "prices of"), ("2025-06-01,a3,us,10,1e-320", "prices of"),
    ("2025-13-01,a3,us,10,1", "no price"), ("2025-06-01,a3,us,,1", "no price"),
    ("2025-06-01,a3,us", "no price"), ("9999-12-31,a3,us,10,1", "a price of 9999-12-31"),
    ("0001-01-01,a3,us,10,1", "a price of 0001-01-01"),
    ("2025-05-01,a3,us,10.0,8.0", "a second price of 2025-05-01, unlike the first")])
def test_a_price_that_cannot_be_is_refused_by_its_line(path, line, problem):
    path.write_text(HISTORY + "\n" + line + "\n")
    with pytest.raises(UsageError, match=problem) as refused:
        read_prices(path, "a3", "us")
    assert refused.value.place == f"{path}, line 7"


def test_prices_in_another_currency_are_refused(path):
    lines = HISTORY.splitlines()
    path.write_text("\n".join([f"{lines[0]},currency", *(f"{line},USD" for line in lines[1:-1]),
                               f"{lines[-1]},EUR"]))
    with pytest.raises(UsageError, match="currency is 'EUR', and ldlm counts in USD") as refused:
        read_prices(path, "a3", "us")
    assert refused.value.place == f"{path}, line 5"


def test_a_file_as_a_spreadsheet_writes_it_is_read(path):
    path.write_text(HISTORY, encoding="utf-8-sig")
    assert read_prices(path, "a3", "us") == [Price(date(2025, 1, 1), 10, 2), Price(date(2025, 5, 1), 10, 5)]


def test_a_price_that_is_said_twice_counts_once(path):
    path.write_text(HISTORY + "2025-05-01,a3,us,10.0,5.0\n")
    assert read_prices(path, "a3", "us") == [Price(date(2025, 1, 1), 10, 2), Price(date(2025, 5, 1), 10, 5)]


@pytest.mark.parametrize(("asked", "problem"), [
    (("a3", "asia"), "no price of a3 in asia"), (("a3", None), "the machine type or the region is not said"),
    ((None, None), "the machine type or the region is not said")])
def test_a_type_without_prices_is_refused_with_some_that_have(path, asked, problem):
    path.write_text(HISTORY + "2025-01-01,a4,,3,1\n2025-01-01,a5\n")
    with pytest.raises(UsageError, match=problem) as refused:
        read_prices(path, *asked)
    assert refused.value.fix == "for example --machine-type a3 --region eu, --machine-type a3 --region us"


@pytest.mark.parametrize("lines", ["", "2025-01-01,a3,,3,1\n"])
def test_a_history_without_a_price_is_refused(path, lines):
    path.write_text(HEADER + lines)
    with pytest.raises(UsageError, match="no price in it"):
        read_prices(path, "a3", "us")
