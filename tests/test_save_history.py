"""What has become of an attempt's saves: what is at risk, and for how long they have failed."""

from hands import Hands

from trainer.save_history import SaveHistory, Taken

MINUTE = 60.0


def test_what_was_done_while_a_save_was_under_way_is_at_risk_once_it_is_durable() -> None:
    """Its copy is 15 min old by then, and the next save has not begun."""
    clock = Hands()
    saves = SaveHistory(clock)
    clock.now_s += 30 * MINUTE
    saves.began(40, train_s=1700.0, evaluate_s=100.0)
    clock.now_s += 15 * MINUTE
    assert saves.at_risk_s == 45 * MINUTE
    assert saves.became_durable(0) is None
    assert saves.became_durable(40) == Taken(40, 1000.0 + 30 * MINUTE, 1700.0, 100.0)
    assert saves.at_risk_s == 15 * MINUTE
    assert saves.became_durable(40) is None


def test_saves_fail_since_the_first_one_that_did_and_not_since_the_last_good_one() -> None:
    """The last good one is 150 min old: the interval is as long, and nobody has tried in it."""
    clock = Hands()
    saves = SaveHistory(clock)
    clock.now_s += 150 * MINUTE
    saves.began(10, train_s=0.0, evaluate_s=0.0)
    clock.now_s += MINUTE
    saves.failed()
    assert (saves.is_failing, saves.failing_s, saves.under_way) == (True, 0.0, None)
    clock.now_s += MINUTE
    saves.began(20, train_s=0.0, evaluate_s=0.0)
    saves.failed()
    assert saves.failing_s == MINUTE
    saves.began(30, train_s=0.0, evaluate_s=0.0)
    saves.became_durable(30)
    assert (saves.is_failing, saves.failing_s) == (False, 0.0)
