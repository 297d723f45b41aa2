"""A value set in YAML of somebody else's: everything else stays as it was, comments too."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.yaml_edit import append, put

WHERE = ("vast", "remote_identity")
MINE = "vast:\n  remote_identity: NO_UPLOAD\n"


@pytest.mark.parametrize(("old", "new"), [
    ("", MINE),
    ("# mine\n", "# mine\n" + MINE),
    ("gcp:\n  project_id: p  # of the lab\n", "gcp:\n  project_id: p  # of the lab\n" + MINE),
    ("gcp: {project_id: p}", "gcp: {project_id: p}\n" + MINE),
    ("vast:\n    # none but the best\n    datacenter_only: true\n\n# end\n",
     "vast:\n    # none but the best\n    remote_identity: NO_UPLOAD\n    datacenter_only: true\n\n# end\n"),
    ("vast: {datacenter_only: true} # x\n",
     "vast: {remote_identity: NO_UPLOAD, datacenter_only: true} # x\n"),
    ("vast: {}\n", "vast: {remote_identity: NO_UPLOAD}\n"),
    ("vast:\ngcp: {}\n", "vast: {remote_identity: NO_UPLOAD}\ngcp: {}\n"),
    ("vast: null # later\n", "vast: {remote_identity: NO_UPLOAD} # later\n"),
    ("vast:\n  remote_identity: 'LOCAL_CREDENTIALS' # why not\n  a: 1\n",
     "vast:\n  remote_identity: NO_UPLOAD # why not\n  a: 1\n"),
    ("vast:\n  remote_identity:\n  - a\n  - b\n\n  # more\n  c: 1\n",
     "vast:\n  remote_identity: NO_UPLOAD\n\n  # more\n  c: 1\n"),
    ("vast: {remote_identity: {a: b}}", "vast: {remote_identity: NO_UPLOAD}"),
    ("{gcp: {}}\n", "{vast: {remote_identity: NO_UPLOAD}, gcp: {}}\n"),
    (MINE + "# stays\n", MINE + "# stays\n"),
    ("a: &x\n  b: 1\nc: *x\n", "a: &x\n  b: 1\nc: *x\n" + MINE),
    ("---\ngcp: {}\n", "---\ngcp: {}\n" + MINE),
])
def test_only_the_value_is_new(old: str, new: str) -> None:
    assert put(old, WHERE, "NO_UPLOAD") == new
    assert put(new, WHERE, "NO_UPLOAD") == new


@pytest.mark.parametrize(("old", "why"), [
    ("vast: [", "no YAML"), ("vast: {a: 1\ngcp:\n", "no YAML"), ("- a\n", "no mapping"),
    ("vast\n", "no mapping"),
    ("vast: yes please\n", "vast is no mapping"), ("vast: [1]\n", "vast is no mapping"),
    ("a: 1\n---\nb: 2\n", "no YAML"), ("gcp: &x {a: 1}\nvast: *x\n", "in one place"),
    ("a: 1\n...\n", "in one place"), ("\tvast: 1\n", "no YAML"), ("a: \x00\n", "no YAML")])
def test_what_cannot_be_changed_in_one_place_is_refused_and_not_spoilt(old: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        put(old, WHERE, "NO_UPLOAD")


@pytest.mark.parametrize(("old", "new"), [
    ("", "plugins:\n- class: x.Y\n"),
    ("plugins:\n", "plugins: [{class: x.Y}]\n"),
    ("plugins: []\n", "plugins: [{class: x.Y}]\n"),
    ("plugins:\n  # theirs\n  - class: a.B\n    parameters: {c: 1}\n",
     "plugins:\n  # theirs\n  - class: x.Y\n  - class: a.B\n    parameters: {c: 1}\n"),
    ("plugins: [{class: a.B}]\ncontroller_wheel_path: w\n",
     "plugins: [{class: x.Y}, {class: a.B}]\ncontroller_wheel_path: w\n"),
    ("plugins:\n- class: x.Y\n  parameters: {c: 1}\n", "plugins:\n- class: x.Y\n  parameters: {c: 1}\n"),
])
def test_a_list_gets_an_item_once_and_keeps_the_others(old: str, new: str) -> None:
    assert append(old, "plugins", {"class": "x.Y"}) == new
    assert append(new, "plugins", {"class": "x.Y"}) == new


def test_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="plugins is no list"):
        append("plugins: {class: a.B}\n", "plugins", {"class": "x.Y"})


_KEYS = st.sampled_from(["vast", "gcp", "remote_identity", "a b", "yes", "1"])
_VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8),
                       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3))


@settings(max_examples=400, deadline=None)  # of time: machines are busy
@given(st.dictionaries(_KEYS, _VALUES, max_size=4), st.booleans())
def test_whatever_is_there_either_stays_or_the_change_is_refused(data: dict[str, object], flow: bool) -> None:
    old = yaml.safe_dump(data, default_flow_style=flow)
    inner = data.get("vast")
    if inner is not None and not isinstance(inner, dict):
        with pytest.raises(ValueError):
            put(old, WHERE, "NO_UPLOAD")
        return
    wanted = {**data, "vast": {**(inner or {}), "remote_identity": "NO_UPLOAD"}}
    assert yaml.safe_load(put(old, WHERE, "NO_UPLOAD")) == wanted
