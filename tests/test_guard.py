"""A run never spends more than its cap, whatever befalls it: by a world that bills it in code of its own."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from guarded_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.at_most import standing_of
from trainer.contract import ConfigError, Document, Env, ExitCode, RankEnd, TaskOffer
from trainer.guard import PAST_LIMIT_S, SHUTDOWN_S, Ending, Standing, headroom
from trainer.limit_watch import LateClock, LimitWatch, check_again
from trainer.limits import LimitError, Limits
from trainer.metrics import OwnAttempt
from trainer.own_bill import own_price
from trainer.rental_terms import TERMS, RentalTerms
from trainer.run_folder import Attempt, AttemptEnd, AttemptFiles, Event, Heartbeat, Phases, Traffic

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), cap_hours=st.floats(0.5, 10),
       losses_per_hour=st.sampled_from([0, 0.2, 1, 5]))
def test_spend_never_passes_the_cap_by_more_than_a_heartbeat_and_the_shutdown(
        seed: int, cap_hours: float, losses_per_hour: float) -> None:
    world = World(seed, cap_hours, losses_per_hour).run()
    assert world.bill_usd <= world.cap_usd + world.grace_usd


def test_of_a_run_that_is_left_alone_nearly_all_of_the_cap_is_worked_off() -> None:
    """A guard that stops at once would keep every cap, too. A last save of minutes and one more machine in
    vain are kept back."""
    shares = [world.bill_usd / world.cap_usd for world in (World(seed, 5, 0).run() for seed in range(4))]
    assert min(shares) > 0.9


def at(minute: float) -> datetime:
    return NOON + timedelta(minutes=minute)


def files(number: int, start: float, end: float | None = None, *, code: int | None = 75, usd: str = "6",
          cloud: str = "vast", beat: float | None = None, told_s: float = 0.0, lease: float | None = None,
          terms: RentalTerms | None = None) -> AttemptFiles:
    own = Attempt(number=number, document=Document.TRAIN, billed_from=at(start), offer="", host="",
                  price_usd_per_hour=Decimal(usd), cloud=cloud, terms=terms,
                  lease_until=None if lease is None else at(lease))
    over = end is not None and AttemptEnd(at=at(end), exit_code=code, preempted=code is None, reason="")
    word = beat is not None and Heartbeat(
        at=at(beat), step=1, total_steps=9, resumed_from_step=0, durable_step=0, durable_train_s=0,
        durable_evaluate_s=0, phases=Phases(train_s=told_s), tokens_per_s=1, spent_usd=Decimal(0))
    return AttemptFiles(attempt=own, end=over or None, heartbeat=word or None)


# An hour costs six dollars, a minute ten cents.
@pytest.mark.parametrize(("attempts", "minutes"), [
    ([files(1, 0)], 60),
    ([files(1, 0, 20), files(2, 50)], 20 + 1.5 + 10),  # its machine is given back a while after its end
    ([files(1, 0, 20), files(2, 21)], 20 + 1 + 39),  # or the next attempt begins on it
    ([files(1, 0, 20, cloud=""), files(2, 50, cloud="")], 30),
    ([files(1, 0, 20, code=None, beat=20), files(2, 50)], 20 + 1.5 + 10),
    ([files(1, 0, 0, code=None, lease=5), files(2, 50)], 5 + 10),  # it vanished before it had said anything
    ([files(1, 0, 0, code=None, lease=5), files(2, 4)], 4 + 56),
    ([files(1, 0, beat=20), files(2, 50)], 20 + 1.5 + 10),  # not closed yet, as set-up sees it
    ([files(1, 10, 5, beat=5, told_s=1800), files(2, 50)], 30 + 10),  # its clock was set back an hour
    ([files(1, 40, 60), files(2, 30, cloud="")], 20 + 30),  # two overlap
    ([], 0)])
def test_where_readings_differ_the_dearest_counts(attempts: list[AttemptFiles], minutes: float) -> None:
    found = standing_of(attempts, [], at(60))
    assert (found.spent_usd, found.paid_s) == (pytest.approx(Decimal(minutes) / 10), minutes * 60)


def test_a_price_that_is_missing_counts_as_the_dearest_and_never_as_zero() -> None:
    found = standing_of([files(1, 0, 28.5), files(2, 30, usd="0")], [], at(60))
    assert (found.spent_usd, found.usd_per_hour) == (6, 6)
    at_home = standing_of([files(1, 0, 30, cloud=""), files(2, 30, usd="0", cloud="")], [], at(60))
    assert (at_home.spent_usd, at_home.usd_per_hour) == (3, 0)

    places = TaskOffer.write_all([TaskOffer("vast", True, {}), TaskOffer("gcp", True, {Env.PRICE: "9"})])
    rented = {"SKYPILOT_CLUSTER_INFO": '{"cloud": "Vast"}', Env.MAX_COST: "5"}
    assert own_price({**rented, Env.PRICE: "2", Env.OFFERS: places}) == 2
    assert own_price({**rented, Env.PRICE: "", Env.OFFERS: places}) == 9
    assert own_price({**rented, Env.PRICE: "0.00", Env.OFFERS: places}) == 9
    assert own_price({Env.MAX_COST: "5"}) == own_price({Env.MAX_COST: "5", Env.PRICE: "0"}) == 0
    for price in ("", "NaN", "-1", "cheap", "0", "0.00"):
        with pytest.raises(ConfigError, match="could not stop at its cap"):
            own_price({**rented, Env.PRICE: price})


def test_a_machine_that_was_rented_for_nothing_as_its_contract_says_costs_what_the_task_says(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rented = {"SKYPILOT_CLUSTER_INFO": '{"cloud": "Vast"}', Env.MAX_COST: "5", Env.PRICE: "2"}
    for told, usd in (("1.5", "1.5"), ("0", "2")):
        terms = RentalTerms(rented_at=NOON, gpu_usd_per_hour=Decimal(told))
        (tmp_path / TERMS).write_text(terms.model_dump_json())
        assert own_price(rented) == Decimal(usd)


def test_an_attempt_that_is_recorded_without_a_price_ends_at_the_cap_by_the_dearest_of_its_task() -> None:
    places = TaskOffer.write_all([TaskOffer("vast", True, {Env.PRICE: "20"}), TaskOffer("gcp", True, {})])
    envs = {Env.MAX_COST: "5", Env.PRICE: "0", Env.OFFERS: places}
    own, minute = OwnAttempt(files(1, 0, usd="0").attempt, [], []), [0.0]
    watch = LimitWatch(own, lambda: (0.0, 0), envs, lambda: at(minute[0]), Traffic)
    assert watch.look() and not watch.is_past()
    minute[0] = 15.1  # $5.03
    assert watch.is_past()


def test_who_rents_machines_may_know_of_more_than_their_nodes_have_written() -> None:
    """The first stood still with its disk for hours; on the second none began; before them were forty."""
    own = RentalTerms(rented_at=at(50), disk_usd_per_hour=Decimal("0.60"), older_usd=Decimal(7),
                      earlier=((at(0), Decimal(9)), (at(40), Decimal(2))))
    first = RentalTerms(rented_at=at(0), disk_usd_per_hour=Decimal("0.60"))
    run = [files(1, 0, 10, code=None, beat=10, terms=first), files(2, 55, terms=own)]
    controller = [Event(at=at(0), kind="submitted", detail={"controller_usd_per_hour": "0.30"})]
    found = standing_of(run, controller, at(60))
    # Ten minutes of this machine's disk and five of its GPUs, and an hour of the controller.
    assert found.spent_usd == pytest.approx(9 + 2 + 7 + Decimal("0.50") + Decimal("0.10") + Decimal("0.30"))
    assert found.usd_per_hour == Decimal("6.90")


@pytest.mark.parametrize(("limits", "document", "left_s", "words"), [
    (Limits(), Document.TRAIN, None, None),
    (Limits(max_cost_usd=Decimal(9)), Document.TRAIN, 1800 - 100 - 30,
     "$6.00 of the cap of $9.00 ($0.22 kept for the end)"),
    (Limits(max_cost_usd=Decimal(9), bench_reserve_usd=Decimal(2)), Document.TRAIN, 600 - 130,
     "$6.00 of the cap of $9.00 ($2.00 kept for the benchmark, $0.22 kept for the end)"),
    (Limits(max_cost_usd=Decimal(9), bench_reserve_usd=Decimal(2)), Document.BENCH, 1800 - 130,
     "$6.00 of the cap of $9.00 ($0.22 kept for the end)"),
    (Limits(max_hours=Decimal("2.5")), Document.TRAIN, 1800 - 100, "2.00 of 2.5 paid hours"),
    (Limits(deadline=NOON + timedelta(hours=1)), Document.TRAIN, 3600 - 100, "deadline 2026-11-29 13:00 UTC"),
    (Limits(deadline=NOON - timedelta(hours=1), max_hours=Decimal(3), max_cost_usd=Decimal(99)),
     Document.TRAIN, -3700, "deadline 2026-11-29 11:00 UTC")])
def test_the_nearest_limit_counts_and_the_end_is_kept_back(
        limits: Limits, document: Document, left_s: float | None, words: str | None) -> None:
    """Six dollars are spent in two hours, and an hour costs six; the end takes 100 s and five cents."""
    found = headroom(limits, document, Standing(NOON, Decimal(6), 7200, Decimal(6)),
                     Ending(100, Decimal("0.05")))
    assert (found and found.words) == words and (found and found.left_s) == (left_s and pytest.approx(left_s))


def test_what_costs_nothing_has_no_end_and_a_cap_that_is_passed_has() -> None:
    cap = Limits(max_cost_usd=Decimal(1))
    assert headroom(cap, Document.TRAIN, Standing(NOON)) == (float("inf"), "$0.00 of the cap of $1.00")
    found = headroom(cap, Document.TRAIN, Standing(NOON, Decimal(1)))
    assert found is not None and found.is_reached


def test_a_clock_that_is_set_back_gives_no_hour_again() -> None:
    wall, passed_s = [NOON], [100.0]
    clock = LateClock(lambda: wall[0], lambda: passed_s[0])
    passed_s[0] += 60
    wall[0] = NOON - timedelta(hours=1)
    assert clock() == at(1)
    wall[0] = at(5)
    assert clock() == at(5)


def watch(clock: Callable[[], datetime], **envs: str) -> LimitWatch:
    """Of an attempt that began at noon, on a machine of six dollars an hour; its end takes a minute."""
    own = OwnAttempt(files(1, 0, cloud="").attempt, [])
    return LimitWatch(own, lambda: (60.0, 10**9), envs, clock)


def test_a_run_may_go_on_until_its_end_would_not_fit() -> None:
    now = [NOON]
    own = watch(lambda: now[0], LDLM_MAX_COST_USD="6", LDLM_UPLOAD_USD_PER_GB="0.20")
    now[0] = at(56)
    assert (found := own.look()) and not found.is_reached
    now[0] = at(57)
    assert (found := own.look()) and found.is_reached
    assert found.words == "$5.70 of the cap of $6.00 ($0.30 kept for the end)"
    assert not own.is_past()
    now[0] = at(60)
    assert own.is_past()


@pytest.mark.parametrize(("code", "spent", "is_refused"), [
    (ExitCode.RECOVER, "4.90", True), (1, "4.90", True), (ExitCode.RECOVER, "4.80", False),
    (ExitCode.FINISHED, "9", False), (ExitCode.BAD_CONFIG, "9", False)])
def test_no_other_machine_is_asked_for_that_would_find_the_limit_reached(
        code: int, spent: str, is_refused: bool) -> None:
    standing, envs = Standing(NOON, Decimal(spent), usd_per_hour=Decimal(6)), {"LDLM_MAX_COST_USD": "5"}
    if not is_refused:
        return check_again(Document.TRAIN, RankEnd(code, "it was taken"), standing, envs)
    with pytest.raises(LimitError, match=r"of the cap of \$5.00.*; it had ended with: it was taken"):
        check_again(Document.TRAIN, RankEnd(code, "it was taken"), standing, envs)


def test_what_is_kept_back_is_less_than_what_ends_a_program_that_hangs() -> None:
    assert SHUTDOWN_S < PAST_LIMIT_S
