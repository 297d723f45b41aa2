"""Our ledger beside others' records: every difference in dollars, with why it may be."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from canary_examples import at, good
from cli_lab import check_golden, ldlm, refused
from run_stories import BENCH_PRICE, ENDED, RUN_ID, Story, every_fate
from run_stories import at as past_noon

from launcher.errors import EngineError
from launcher.reconcile import Charge, Charges
from launcher.reconciling import Side, compare, show_sides
from launcher.run_record import RunView, load_record, look_at
from trainer.contract import Document, attempt_file
from trainer.run_folder import Attempt

OURS = {"5001": "0.030", "5002": "0.060", "5003": "0.072"}


def rented() -> RunView:
    """Three machines at Vast, for $0.03, $0.06 and $0.072, all of it GPUs."""
    return look_at(good().record, ENDED, at(2000))


def on_gcp(tmp_path: Path) -> RunView:
    """An attempt here, then one on GCP of 600 s at $0.002 a second."""
    story = Story(f"file://{tmp_path}/store")
    story.attempt(1, 0)
    story.end(1, 100, 75)
    story.folder.write(attempt_file(2, "attempt.json"), Attempt(
        number=2, document=Document.TRAIN, billed_from=past_noon(200), price_usd_per_hour=BENCH_PRICE,
        offer="H100:1 on gcp/us-central1 (spot)", host="h", cloud="gcp", region="us-central1"))
    story.end(2, 800, 0)
    return look_at(load_record(story.folder.store, RUN_ID), ENDED, past_noon(900))


def answers(*charges: tuple[str, str, dict[str, str]]):
    """Somebody who has this on record, and what was asked."""
    asked: list[str] = []

    def ask(path: str) -> Charges:
        asked.append(path)
        return Charges(charges=tuple(Charge(instance_id=name, usd=Decimal(usd), usd_by_kind={
            kind: Decimal(part) for kind, part in kinds.items()}) for name, usd, kinds in charges))

    ask.asked = asked
    return ask


def test_a_record_that_agrees_needs_no_why() -> None:
    ask = answers(*((name, usd, {"gpu": usd}) for name, usd in OURS.items()))
    (side,) = compare(rented(), ask)
    assert (side.who, side.found.is_equal, side.why) == ("Vast's charges", True, [])
    since = f"{at(80).timestamp():.0f}"
    assert ask.asked == [f"/plugins/api/ldlm/charges?instance_ids=5001,5002,5003&since={since}"]


def test_each_part_that_differs_is_named_in_dollars_with_why_it_may() -> None:
    (side,) = compare(rented(), answers(
        ("5001", "0.095", {"gpu": "0.03", "disk": "0.02", "bwd": "0.03", "bwu": "0.015"}),
        ("5002", "0.040", {"gpu": "0.04"}), ("77", "9", {"gpu": "9"})))
    assert not side.found.is_equal and side.found.missing == ["5003"]
    assert [why.partition(";")[0] for why in side.why] == [
        "not in Vast's record yet, which comes late: 5003", "gpu: ours +$0.0200", "disk: ours -$0.0200",
        "network: ours -$0.0450"]


def test_what_goes_on_and_what_is_only_rounded_is_said() -> None:
    view = rented()
    open_one = view.record.rentals[-1].model_copy(update={"ended_at": None})
    record = good().record
    object.__setattr__(record, "rentals", (*record.rentals[:2], open_one))
    (side,) = compare(look_at(record, ENDED, at(2000)), answers(
        ("5001", "0.0301", {"gpu": "0.0301"}), ("5002", "0.06", {"gpu": "0.06"}),
        ("5003", "0.072", {"gpu": "0.072"})))
    assert side.why == ["still rented, so that both go on: 5003",
                        "less than a cent: Vast's amounts have three decimals"]


def test_clusters_of_other_clouds_are_compared_with_skypilot_s_cost_report_as_a_whole(tmp_path: Path) -> None:
    ask = answers(("train-3", "0.9", {}), ("bench-3", "0.4", {}))
    (side,) = compare(on_gcp(tmp_path), ask)
    assert side.who == "SkyPilot's cost report"
    assert (side.found.ours_usd, side.found.theirs_usd) == (Decimal("1.2"), Decimal("1.3"))
    assert side.why[0].startswith("no bill: ")
    assert ask.asked == [f"/plugins/api/ldlm/costs?run_id={RUN_ID}&since={past_noon(200).timestamp():.0f}"]


def test_a_report_without_the_run_proves_nothing(tmp_path: Path) -> None:
    (side,) = compare(on_gcp(tmp_path), answers())
    assert side.found.missing == ["all clusters"]
    assert side.why == ["SkyPilot's server has no cluster of this run on record: another one may have"]


def test_who_cannot_be_asked_is_said_and_nothing_else_is_hidden(tmp_path: Path) -> None:
    def ask(path: str) -> Charges:
        raise EngineError("the server is away")

    assert list(compare(rented(), ask)) == [
        Side("canary-1", "Vast's charges", None, ["could not be asked: the server is away"])]


def test_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at_vast = answers(("5001", "0.03", {"gpu": "0.03"}), ("5002", "0.04", {"gpu": "0.04"}))
    show_sides([*compare(rented(), at_vast), *compare(on_gcp(tmp_path), answers(("train-3", "1.3", {})))])
    check_golden("screen-reconcile.txt", capsys.readouterr().out)


def test_a_run_that_rented_nothing_has_no_other_record(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LDLM_HOME", str(tmp_path))
    every_fate(f"file://{tmp_path}/store")
    assert json.loads(ldlm("cost", "--reconcile", "--json").stdout) == [{"run_id": RUN_ID, "records": []}]
    said = ldlm("cost", RUN_ID, "--reconcile").stdout
    assert said == "nothing was rented, so nobody else has a record of it\n"
    assert "compares whole runs" in refused(2, "cost", RUN_ID, "--reconcile", "--csv")
