from datetime import timedelta
from decimal import Decimal

import pytest
from rich.console import Console

from launcher import console


@pytest.mark.parametrize(("usd", "shown"), [
    ("0", "$0.0000"), ("0.00456", "$0.0046"), ("0.9999", "$0.9999"), ("1", "$1.00"), ("1234.5", "$1,234.50"),
])
def test_dollars_show_cents_and_below_a_dollar_hundredths_of_them(usd, shown):
    assert console.dollars(Decimal(usd)) == shown


def test_the_digits_of_dollars_can_be_given():
    assert (console.dollars(Decimal("0.5"), 2), console.dollars(Decimal("2.5"), 4)) == ("$0.50", "$2.5000")


@pytest.mark.parametrize(("seconds", "shown", "rough"), [
    (0.4, "0 s", "0 s"), (12, "12 s", "12 s"), (59.6, "1 min 00 s", "1 min 00 s"),
    (200, "3 min 20 s", "3 min"), (3599.7, "1 h 00 min", "1 h 00 min"), (7500, "2 h 05 min", "2 h 05 min"),
    (172799, "47 h 59 min", "47 h 59 min"), (97499244, "1128 d 11 h", "1128 d 11 h"),
])
def test_durations_name_their_units(seconds, shown, rough):
    assert console.duration(seconds) == console.duration(timedelta(seconds=seconds)) == shown
    assert console.rough_duration(seconds) == rough


@pytest.mark.parametrize(("num_bytes", "shown"), [
    (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (12 * 2**20, "12.0 MiB"), (3 * 2**40, "3.0 TiB"),
])
def test_sizes_name_their_units(num_bytes, shown):
    assert console.data_size(num_bytes) == shown


@pytest.mark.parametrize(("text", "shown"), [
    ("two\nlines", "two lines"), ("x" * 12, "x" * 9 + "…"), ("a\x1b[31mb\x00", "a?[31mb?"), ("été", "été")])
def test_a_text_in_one_line_moves_no_cursor(text, shown):
    assert console.one_line(text, 10) == shown


def test_a_table_has_no_trailing_spaces_and_marks_in_cells_stay_text(capsys):
    console.answer_table(["name", "[bold]n[/]"], [["[red]a[/red]", "1"], ["b", "22"]], right=[1],
                         total=["total", "23"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  name           [bold]n[/]",
                     "  " + "─" * 25,
                     "  [red]a[/red]            1",
                     "  b                      22",
                     "  " + "─" * 25,
                     "  total                  23"]


@pytest.mark.parametrize(("width", "columns"), [
    (32, ["name", "hours", "range", "dollars"]), (31, ["name", "hours", "dollars"]),
    (24, ["name", "hours", "dollars"]), (23, ["name", "dollars"])])
def test_a_narrow_terminal_goes_without_the_columns_that_can_be_spared(monkeypatch, capsys, width, columns):
    monkeypatch.setattr(console, "_out", Console(width=width, theme=console._THEME))
    console.answer_table(["name", "hours", "range", "dollars"], [["a", "1", "2", "3"]], spare=[2, 1])
    assert capsys.readouterr().out.splitlines()[0].split() == columns


def test_a_long_fact_is_folded_beside_its_name(capsys):
    console.answer_facts([("store", "x" * 100), ("run", "r1")])
    lines = capsys.readouterr().out.splitlines()
    assert [len(line) for line in lines] == [80, 10 + 30, 12]
    assert lines[1].startswith(" " * 10 + "x")


def test_without_a_terminal_progress_is_a_line_at_every_tenth(capsys):
    with console.progress_line() as line:
        for step in range(0, 101, 2):
            line.update(step, 100, "fine")
        line.restart()
        line.update(50, 100, "again")
    assert capsys.readouterr().err.split() == [
        word for step in range(0, 101, 10) for word in (f"{step}/100", "fine")] + ["50/100", "again"]
