"""Reading recorded availability: what is kept, what is left out, what is refused."""

import gzip
import json

import pytest
import synthetic_traces as made

from launcher.errors import UsageError
from launcher.policy import Setting
from launcher.traces import one_by_one, read_traces, stack, together

SETTING = Setting(20, 26, 0.2, 0.97, 3.06)
ROW = {"zone": "z", "start": "1", "tick_seconds": 600, "up": "12u,3d"}


def test_windows_become_arrays_by_tick_and_number_of_places(tmp_path):
    traces, notes = read_traces(made.write(tmp_path / "t.gz", made.rows(4, num_zones=3)))
    assert (len(traces), notes) == (12, [])
    windows, num_short = stack(together(traces), SETTING)
    assert [each.is_up.shape for each in windows] == [(480, 2, 3), (156, 2, 3)]
    assert num_short == 0
    alone, _ = stack(one_by_one(traces), SETTING)
    assert [each.is_up.shape for each in alone] == [(480, 6, 1), (156, 6, 1)]
    assert (alone[0].is_up[:, 0, 0] == windows[0].is_up[:, 0, 0]).all()


def test_a_window_too_short_for_the_deadline_is_left_out_and_counted(tmp_path):
    path = tmp_path / "t"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"up": "156u"}) + "\n")
    windows, num_short = stack(one_by_one(read_traces(path)[0]), SETTING)
    assert (windows[0].num_windows, num_short) == (1, 1)


def test_a_torn_last_line_and_empty_windows_are_left_out_with_a_sentence(tmp_path):
    path = tmp_path / "t"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"up": ""}) + "\n" + json.dumps(ROW)[:40])
    traces, notes = read_traces(path)
    assert len(traces) == 1
    assert notes == [f"{path}, line 3: torn, left out", "1 windows without a tick are left out"]


def test_of_a_gzip_file_that_was_cut_off_the_whole_lines_are_used(tmp_path):
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in made.rows(50)).encode())
    path = tmp_path / "t.gz"
    path.write_bytes(whole[:len(whole) // 2])
    traces, notes = read_traces(path)
    assert 0 < len(traces) < 50
    assert notes[0] == f"{path}: the gzip file ends too early; what is whole is used"


@pytest.mark.parametrize("line", [
    "{", "[]", '{"up": "3u"}', json.dumps(ROW | {"tick_seconds": 0}), json.dumps(ROW | {"tick_seconds": -5}),
    json.dumps(ROW | {"tick_seconds": True}), '{"tick_seconds": NaN, "up": "3u"}',
    json.dumps(ROW | {"up": "3x"}), json.dumps(ROW | {"up": 7}), "3", "[" * 200_000,
    json.dumps(ROW | {"up": "99999999999999999999999u"}), json.dumps(ROW | {"up": "9" * 5000 + "u"}),
    '{"tick_seconds": ' + "9" * 5000 + ', "up": "3u"}'], ids=range(14))
def test_a_damaged_line_is_refused_by_its_number(tmp_path, line):
    path = tmp_path / "t"
    path.write_text("\n".join(["", json.dumps(ROW), "", line, json.dumps(ROW)]))
    with pytest.raises(UsageError) as refused:
        read_traces(path)
    assert len(refused.value.problem) < 120
    assert refused.value.place == f"{path}, line 4"


def test_a_file_without_windows_is_refused(tmp_path):
    path = tmp_path / "t"
    path.write_text("\n")
    with pytest.raises(UsageError, match="no window in it"):
        read_traces(path)
