"""What there is to tell of a run, from what is known of it."""

from decimal import Decimal

import pytest
from news_examples import attempt, beat, minute, started

from trainer.contract import Document, Outcome
from trainer.learning import Learning, Reason, State
from trainer.news import Seen, news_of
from trainer.run_folder import RunOutcome

LOST = attempt(1, beat(120), preempted=True, reason="the machine was taken back")


def told(*attempts: object, **known: object) -> list[tuple[str, int, str]]:
    """Name, step and sentence of each piece of news."""
    seen = Seen(**{"run_id": "run", "at": minute(9), "attempts": attempts, "events": (started(),)} | known)
    return [(news.name, news.step, news.sentence) for news in news_of(seen)]


def test_a_run_that_trains_tells_nothing() -> None:
    assert told() == [] == told(attempt(1)) == told(attempt(1, beat(120)), cap_usd=Decimal(10))


def test_a_lost_machine_is_told_by_the_next_attempt_and_that_training_goes_on_with_its_first_step() -> None:
    lost = ("preempted-1", 120,
            "attempt 1 lost its machine (the machine was taken back); step 120 was durable")
    assert told(LOST) == told(LOST, attempt(2)) == [lost]
    assert told(LOST, attempt(2, beat(120, resumed_from=120, trains=False))) == [lost]
    assert told(LOST, attempt(2, beat(180, resumed_from=120))) == [
        ("preempted-1", 180, lost[2]), ("recovered-2", 180, "attempt 2 trains again from step 120")]


def test_each_preemption_is_one_piece_of_news() -> None:
    again = attempt(2, beat(180, resumed_from=120), preempted=True, reason="spot")
    assert [name for name, *_ in told(LOST, again, attempt(3, beat(180, resumed_from=180)))] == [
        "preempted-1", "preempted-2", "recovered-3"]


def test_a_crash_is_no_preemption_and_what_a_person_has_resumed_is_no_recovery() -> None:
    crashed = attempt(1, beat(60), exit_code=1, reason="out of memory")
    assert [name for name, *_ in told(crashed, attempt(2, beat(60, resumed_from=60)))] == ["recovered-2"]
    again = attempt(2, beat(120, resumed_from=120), at=31)
    assert told(LOST, again, events=(started(), started(30, "resumed"))) == []


def test_a_machine_of_the_benchmark_is_lost_like_any_other_and_a_benchmark_recovers_nothing() -> None:
    bench = attempt(2, beat(360), document=Document.BENCH, preempted=True, reason="spot")
    assert [name for name, *_ in told(LOST, bench)] == ["preempted-1", "preempted-2"]


@pytest.mark.parametrize(("usd", "is_told"), [("7.99", False), ("8", True), ("9.999", True), ("70", True)])
def test_four_fifths_of_the_cap_are_told_by_what_the_whole_run_has_spent(usd: str, is_told: bool) -> None:
    found = told(LOST, attempt(2, beat(120, usd=usd, trains=False)), cap_usd=Decimal("10.00"))
    words = f"{Decimal(usd) * 10:.0f}% of the cap of $10.00 are spent"
    assert (("cap-80-percent", 120, words) in found) is is_told
    assert told(attempt(1, beat(120, usd=usd))) == []  # no cap


@pytest.mark.parametrize("state", list(State))
def test_only_a_bad_verdict_is_told_with_its_gravest_reason(state: State) -> None:
    verdict = Learning(state, 400, (Reason("variance of z is 0.1", "train.x=2"), Reason("more")))
    words = f"it does not learn, it is {state} at step 400: variance of z is 0.1; train.x=2"
    is_bad = state not in (State.LEARNING, State.TOO_EARLY)
    assert told(attempt(1, beat(400)), learning=verdict) == [("not-learning", 400, words)] * is_bad


@pytest.mark.parametrize(("outcome", "name", "sentence"), [
    (Outcome.FINISHED, "finished", "it has finished: why"),
    (Outcome.LIMIT, "limit-reached", "it is at its limit and trains no more: why"),
    (Outcome.NO_CAPACITY, "no-capacity", "it has ended for want of a machine: why"),
    (Outcome.DIVERGED, "failed", "it has failed: why"),
    (Outcome.BAD_CONFIG, "failed", "its recipe, its text or its image is wrong: why"),
    (Outcome.LOST, "failed", "it is lost: why")])
def test_every_end_is_told_but_the_one_that_a_person_wished(
        outcome: Outcome, name: str, sentence: str) -> None:
    end = RunOutcome(outcome=outcome, at=minute(9), step=360, reason="why")
    assert told(attempt(1, beat(360)), outcome=end) == [(name, 360, sentence)]
    stopped = end.model_copy(update={"outcome": Outcome.STOPPED})
    assert told(attempt(1, beat(360)), outcome=stopped) == []


def test_an_end_from_before_the_last_start_is_not_told_again() -> None:
    end = RunOutcome(outcome=Outcome.LIMIT, at=minute(9), step=360, reason="why")
    events = (started(), started(30, "resumed"))
    assert told(attempt(1, beat(360)), outcome=end, events=events) == []


def test_a_sentence_is_one_line_of_bearable_length_whatever_the_reason_is() -> None:
    ((_, _, sentence),) = told(attempt(1, beat(0), preempted=True, reason="a\nb\t" + "x" * 9000))
    assert sentence.startswith("attempt 1 lost its machine (a b xxx") and sentence.endswith("x…")
    assert len(sentence) == 500 and "\n" not in sentence


def test_what_heartbeats_cannot_say_yet_is_nothing() -> None:
    (news,) = news_of(Seen("run", minute(9), (attempt(1, preempted=True, reason="gone"),), ()))
    assert (news.step, news.spent_usd, news.start, news.dollars) == (0, 0, 0, "$0.0000")
