"""How the doctor's checks run: all at once, and none can cost the others."""

import threading
import time
from collections.abc import Iterator

from launcher.errors import StoreError
from launcher.findings import Check, Finding, Verdict, run_checks

GOOD = Finding("disk", Verdict.OK, "plenty")


def good() -> Iterator[Finding]:
    yield GOOD


def test_what_is_found_keeps_the_order_of_the_checks_however_long_they_take() -> None:
    def slowly() -> Iterator[Finding]:
        time.sleep(0.2)
        yield from (Finding("a", Verdict.OK, "1"), Finding("b", Verdict.PROBLEM, "2", "mend it"))

    found = run_checks([Check("slow", slowly), Check("disk", good), Check("silent", lambda: [])], 5)
    assert [finding.what for finding in found] == ["a", "b", "disk"]


def test_a_check_that_hangs_is_cut_and_the_others_are_told() -> None:
    never, began = threading.Event(), time.monotonic()
    hanging = Check("Vast credit", lambda: [GOOD] if never.wait(60) else [])
    found = run_checks([hanging, Check("disk", good)], 0.3)
    assert time.monotonic() - began < 5
    assert found == [Finding("Vast credit", Verdict.NOT_CHECKED, "no answer within 0.3 s",
                             "look at the network, then try again"), GOOD]
    never.set()


def test_an_error_of_ours_is_a_problem_with_its_place_and_fix() -> None:
    def refuse() -> Iterator[Finding]:
        raise StoreError("cannot write", place="s3://b", fix="look at the key")
        yield

    assert run_checks([Check("store", refuse)], 5) == [
        Finding("store", Verdict.PROBLEM, "s3://b: cannot write", "look at the key")]


def test_an_error_of_others_leaves_it_unchecked_and_gives_no_key_away() -> None:
    def fail(words: str) -> Iterator[Finding]:
        raise RuntimeError(words)
        yield

    plain, keyed = run_checks([Check("quota", lambda: fail("odd\nmore")),
                               Check("credit", lambda: fail("https://x/?secret=abc"))], 5)
    assert plain == Finding("quota", Verdict.NOT_CHECKED, "RuntimeError: odd")
    assert keyed == Finding("credit", Verdict.NOT_CHECKED, "RuntimeError: ")
