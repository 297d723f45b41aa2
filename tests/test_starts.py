"""How long a plan says that starts take: by hand from bytes and rates, and counted where it bills them."""

from decimal import Decimal

import pytest
from launch_examples import example_plan
from test_saves import BIG, PARAMETERS

from launcher.estimate import Done
from launcher.model_screen import model_facts
from launcher.plan import Plan
from trainer.contract import Document

RESUMED = Done(step=20_000, spent_usd=Decimal(1), has_trained=False)
FINISHED = Done(step=40_000, spent_usd=Decimal(1), has_trained=True)
CHECKPOINT_BYTES = 8.25 * PARAMETERS


def set_up_s(plan: Plan) -> float:
    return float(next(part.hours.mid for part in plan.parts if part.name == "set-up")) * 3600


@pytest.mark.parametrize(("infra", "bytes_per_s"), [("vast", 80e6), ("azure", 400e6)])
def test_the_encoder_comes_at_every_start_and_the_checkpoint_at_every_one_but_the_first(
        infra: str, bytes_per_s: float) -> None:
    """38 blocks and the embeddings of the encoder are 60.5 GiB in bf16, read at half a gigabyte a second."""
    start = example_plan(infra, *BIG).start
    assert start is not None
    encoder_bytes = 60.5 * 2**30
    assert start.fetch_s == pytest.approx(encoder_bytes / bytes_per_s, rel=0.01)
    assert start.loading_s == pytest.approx(encoder_bytes / 0.5e9, rel=0.01)
    assert start.checkpoint_s == pytest.approx(CHECKPOINT_BYTES / bytes_per_s, rel=0.01)
    always_s = 600 + start.fetch_s + start.loading_s
    assert start.first_s == pytest.approx(always_s + start.statistics_s) and start.statistics_s > 0
    assert start.again_s == pytest.approx(always_s + start.checkpoint_s)


def test_what_a_start_takes_is_what_the_estimate_bills() -> None:
    first, resumed = example_plan("vast", *BIG), example_plan("vast", *BIG, done=RESUMED)
    assert set_up_s(first) == pytest.approx(first.start.first_s, abs=4)
    assert set_up_s(resumed) == pytest.approx(resumed.start.again_s, abs=4)
    finished = example_plan("vast", *BIG, done=FINISHED)
    assert finished.start is None and {part.document for part in finished.parts} == {Document.BENCH}


def test_here_nothing_travels_to_the_checkpoint_of_a_folder() -> None:
    at_home, on_disk = (example_plan("local", f"store={store}")
                        for store in ("s3://box/ldlm", "file:///store"))
    assert at_home.start.checkpoint_s == pytest.approx(at_home.saves.num_bytes / 25e6, abs=0.06)
    assert on_disk.start.checkpoint_s == pytest.approx(on_disk.saves.num_bytes / 0.5e9, abs=0.06)


def test_the_plan_shows_both() -> None:
    assert dict(model_facts(example_plan("vast", *BIG)))["starts"].startswith(
        "first step ~26 min after a machine is there: node 10 min, encoder 16 min, statistics ")
    assert dict(model_facts(example_plan("vast", *BIG)))["starts"].endswith(
        "; ~28 min after a loss, its checkpoint 2 min (guess)")
