"""What may be sent to W&B: only what no attempt will train again, and then all of it."""

import math
from datetime import timedelta
from pathlib import Path

import pytest
from wandb_records import BEGAN, add_attempt, new_folder

from trainer.config import TrainConfig
from trainer.contract import Document, ExitCode, Outcome
from trainer.run_folder import RunOutcome
from trainer.wandb_rows import Showing, settled_before


def outcome(kind: Outcome, hours: float) -> RunOutcome:
    return RunOutcome(outcome=kind, at=BEGAN + timedelta(hours=hours), step=8, reason="")


def test_while_training_runs_only_steps_before_the_newest_durable_checkpoint_are_settled(tmp_path: Path):
    folder = new_folder(tmp_path)
    assert settled_before(folder.attempts(), None) == 0
    add_attempt(folder, range(1, 11), durable=8)
    assert settled_before(folder.attempts(), None) == 8
    assert list(Showing(folder).settled_rows(0)) == [1, 2, 3, 4, 5, 6, 7]
    assert list(Showing(folder).settled_rows(5)) == [5, 6, 7]


def test_an_attempt_that_has_not_resumed_yet_unsettles_nothing(tmp_path: Path):
    folder = new_folder(tmp_path)
    add_attempt(folder, range(1, 11), durable=8)
    add_attempt(folder, range(0), durable=0)
    assert settled_before(folder.attempts(), None) == 8


def test_rows_that_were_trained_again_are_those_of_the_later_attempt(tmp_path: Path):
    folder = new_folder(tmp_path)
    add_attempt(folder, range(1, 11), durable=8)
    add_attempt(folder, range(9, 13), durable=12, exit_code=ExitCode.FINISHED)
    rows = Showing(folder).settled_rows(0)
    assert [row["loss/hidden"] for row in rows.values()] == [
        1.1, 2.1, 3.1, 4.1, 5.1, 6.1, 7.1, 8.1, 9.2, 10.2, 11.2, 12.2]


@pytest.mark.parametrize(("code", "last"), [
    (ExitCode.FINISHED, math.inf), (ExitCode.BROKEN, math.inf), (ExitCode.BAD_CONFIG, math.inf),
    (ExitCode.RECOVER, 8), (1, 8)])
def test_the_last_rows_are_settled_by_ends_after_which_nothing_is_started_by_itself(
        tmp_path: Path, code: int, last: float):
    folder = new_folder(tmp_path)
    add_attempt(folder, range(1, 11), durable=8, exit_code=code)
    assert settled_before(folder.attempts(), None) == last


def test_a_benchmark_says_that_training_has_ended(tmp_path: Path):
    folder = new_folder(tmp_path)
    add_attempt(folder, range(1, 11), durable=10)
    add_attempt(folder, range(0), durable=10, document=Document.BENCH)
    assert settled_before(folder.attempts(), None) == math.inf


def test_a_run_that_was_stopped_is_settled_up_to_its_checkpoint_until_it_is_resumed(tmp_path: Path):
    folder = new_folder(tmp_path)
    add_attempt(folder, range(1, 11), durable=8, exit_code=ExitCode.RECOVER)
    stopped = outcome(Outcome.STOPPED, 1.2)
    assert settled_before(folder.attempts(), stopped) == 9
    add_attempt(folder, range(9, 10), durable=8)
    assert settled_before(folder.attempts(), stopped) == 8


def test_a_run_is_described_by_its_recipe_its_commit_and_where_it_ran_last(tmp_path: Path):
    folder = new_folder(tmp_path)
    add_attempt(folder, range(1, 5), durable=4)
    folder.add_event("resumed", BEGAN + timedelta(hours=2), git_sha="b" * 40)
    folder.add_event("ended", BEGAN + timedelta(hours=3))
    found = Showing(folder).config()
    assert (found["recipe"], found["train"], found["git_sha"]) == ("smoke", {"steps": 12}, "b" * 40)
    assert (found["offer"], found["price_usd_per_hour"]) == ("2 CPU cores here", 2.0)


def test_what_stands_beside_the_rows_is_the_outcome_the_bill_and_the_benchmark(tmp_path: Path):
    folder = new_folder(tmp_path)
    assert Showing(folder).summary() == {}
    add_attempt(folder, range(1, 5), durable=4, exit_code=0)
    folder.write("outcome.json", RunOutcome(outcome=Outcome.FINISHED, at=BEGAN, step=4, reason="4 steps"))
    folder.write_bytes("bench/result.json", b'{"scores": {"token_loss": 2.0}, "samples": ["a", "b"],'
                                            b'"throughput": {"tokens_per_s": 9.0, "device": "CPU"}}')
    assert Showing(folder).summary() == {
        "total_usd": 1.0, "outcome": "finished: 4 steps", "bench/token_loss": 2.0, "bench/tokens_per_s": 9.0,
        "bench/device": "CPU"}
    assert Showing(folder).samples() == ["a", "b"]


def test_the_verdict_is_that_of_the_rules_on_all_rows(tmp_path: Path):
    folder = new_folder(tmp_path)
    add_attempt(folder, range(1, 5), durable=4)
    assert Showing(folder).verdict() == {}  # its recipe is no whole one
    config = TrainConfig.model_validate({
        "steps": 12, "micro_batch_size": 1, "global_batch_size": 1, "data": {"source": "x"},
        "token_encoder": {"name": "x"}, "checkpoint": {"every_steps": 4}})
    assert Showing(folder, config).verdict()["verdict"] == "too early"
    folder.write_bytes("attempts/1/metrics/000001.jsonl", b'{"step": 5, "time": 1, "loss/token": NaN}\n')
    found = Showing(folder, config).verdict()
    assert found["verdict"] == "stuck" and "step 5" in found["verdict_reasons"]


def test_texts_of_a_step_are_those_of_the_attempt_that_scored_it_last(tmp_path: Path):
    folder = new_folder(tmp_path)
    for number in (add_attempt(folder, range(1, 5), durable=4), add_attempt(folder, range(1, 5), durable=4)):
        folder.write_bytes(f"attempts/{number}/evaluations/00000004.json",
                           b'{"reconstructions": [["truth", "guess %d"]], "samples": ["text %d"]}'
                           % (number, number))
    assert Showing(folder).texts(4) == ([["truth", "guess 2"]], ["text 2"])
    assert Showing(folder).texts(3) == ((), ())
