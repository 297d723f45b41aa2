"""How long a task may be without a machine: every moment of a wait, and what SkyPilot's record then says."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from launcher.waits import End, Waiting, end_in, end_of, waits_since
from trainer.contract import Outcome

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
minutes = st.integers(0, 3000)


def at(minute: float) -> datetime:
    return NOON + timedelta(minutes=minute)


@given(now=minutes, wait=st.integers(1, 1000), got=st.none() | minutes, deadline=st.none() | minutes)
def test_a_wait_ends_when_it_is_too_long_or_too_late_and_no_machine_is_on_its_way(now, wait, got, deadline):
    found = end_of(Waiting(NOON, timedelta(minutes=wait), None if deadline is None else at(deadline),
                           None if got is None else at(got)), at(now))
    is_on_its_way = got is not None and now < got + 30
    is_late = deadline is not None and now >= deadline
    assert (found is not None) == ((now >= wait or is_late) and not is_on_its_way)
    assert found is None or found.outcome is Outcome.NO_CAPACITY
    assert found is None or ("deadline" in found.reason) == is_late


def test_what_is_said_names_the_limit():
    assert end_of(Waiting(NOON, HOUR * 6), at(360)) == End(
        Outcome.NO_CAPACITY, "no machine within 6 h, as long as it may wait")
    assert end_of(Waiting(NOON, HOUR * 6, deadline=at(90)), at(90)) == End(
        Outcome.NO_CAPACITY, "no machine before the deadline of 11-27 13:30 UTC")


def test_a_task_that_skypilot_has_not_begun_to_start_waits_for_no_machine():
    assert end_of(Waiting(None, HOUR), at(10_000)) is None
    assert end_of(Waiting(None, HOUR, deadline=at(5)), at(6)) is not None


def test_an_image_that_two_machines_cannot_pull_ends_the_wait_at_once():
    assert end_of(Waiting(NOON, HOUR, unpulled=("an/image:1",)), at(1)) is None
    found = end_of(Waiting(NOON, HOUR, unpulled=("an/image:1",) * 2, machine_since=at(1)), at(2))
    assert found is not None and found.outcome is Outcome.BAD_CONFIG
    assert found.reason.startswith("2 machines could not pull the image an/image:1: check its name")
    assert "if it is not public, set SKYPILOT_DOCKER_USERNAME," in found.reason
    assert "--set hardware.train.0.image=NAME" in found.reason


def test_three_machines_that_have_said_that_they_are_wrong_end_the_wait_at_once():
    assert end_of(Waiting(NOON, HOUR, num_wrong=2), at(1)) is None
    assert end_of(Waiting(NOON, HOUR, num_wrong=3, machine_since=at(1)), at(2)) == End(
        Outcome.NO_CAPACITY, "3 machines were wrong, by their own word")


def test_a_wait_begins_when_a_machine_is_first_looked_for_and_anew_after_each_that_ran():
    first = [("PENDING", at(0)), ("STARTING", at(3)), ("PENDING", at(5)), ("STARTING", at(8))]
    assert waits_since([]) is None
    assert waits_since(first[:1]) is None
    assert waits_since(first) == at(3)
    lost = [*first, ("RUNNING", at(20)), ("RECOVERING", at(50)), ("PENDING", at(52)), ("RECOVERING", at(55))]
    assert waits_since(lost[:5]) is None
    assert waits_since(lost) == at(50)


@given(outcome=st.sampled_from(Outcome), reason=st.text())
def test_an_end_is_read_from_skypilot_s_record_as_it_was_noted(outcome, reason):
    end = End(outcome, reason)
    assert end_in(f"Cancellation requested {end.note}") == end


def test_a_job_that_its_user_has_cancelled_has_no_end_of_ours():
    assert end_in(None) is None
    assert end_in("Cancellation requested by user me (request ID: 1)") is None
    assert end_in("Cancellation requested ldlm ends it (no_such_word): x") is None
