"""Whether a node shows its run on W&B; whatever goes wrong with that, it trains."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from trainer.config import WandbConfig
from trainer.contract import Document, ExitCode
from trainer.run_folder import Attempt
from trainer.services import goes_online
from trainer.wandb_node import Follower

ATTEMPT = Attempt(number=1, document=Document.TRAIN, billed_from=datetime.now(UTC), offer="", host="h",
                  price_usd_per_hour=Decimal(0))


@pytest.mark.parametrize(("mode", "key", "online"), [
    ("auto", "k", True), ("auto", "", False), ("online", "k", True), ("online", "", False),
    ("offline", "k", False), ("off", "k", False)])
def test_a_run_is_shown_where_there_is_a_key_and_the_recipe_does_not_forbid_it(mode, key, online):
    assert goes_online(WandbConfig(mode=mode), {"WANDB_API_KEY": key}) is online
    assert not goes_online(WandbConfig(mode=mode), {})


@pytest.mark.parametrize(("mode", "code", "said"), [
    ("auto", ExitCode.FINISHED,
     "W&B: nothing was sent (no WANDB_API_KEY); this sends it: ldlm wandb sync r\n"),
    ("offline", ExitCode.FINISHED,
     "W&B: nothing was sent (train.wandb.mode is offline); this sends it: ldlm wandb sync r\n"),
    ("off", ExitCode.FINISHED, ""), ("auto", ExitCode.RECOVER, ""), ("auto", 1, "")])
def test_the_end_of_a_run_that_was_not_shown_tells_how_to_send_it(mode, code, said, capsys):
    Follower(WandbConfig(mode=mode), ATTEMPT, "r").end(code)
    assert capsys.readouterr().out == said


def test_a_disk_without_room_for_w_and_b_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    Follower(WandbConfig(), ATTEMPT, "r").end(ExitCode.FINISHED)
    said = capsys.readouterr().out
    assert said.startswith("warning: W&B: its process cannot be started: ") and "ldlm wandb sync r" in said
