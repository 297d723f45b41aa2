"""A saved list of offers: read as it was written, and everything that can be wrong with one."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cli_lab import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_examples import RECIPE
from run_stories import preempted_once
from test_priced_offers import MARKET, NOW

from launcher.commands import PlanOptions, propose, propose_bench, propose_resume
from launcher.errors import UsageError
from launcher.offers_file import as_json, is_old, read_offers, too_old
from launcher.priced_offers import Found, PricedOffer
from launcher.proposal import Proposal
from trainer.contract import Document, Outcome


def written(**changes: Any) -> str:
    return json.dumps(as_json(Found(tuple(MARKET), ("something",), {"gcp": "is down"})) | changes)


def row(**changes: Any) -> dict[str, Any]:
    found = MARKET[0].model_dump(mode="json") | changes
    return {name: value for name, value in found.items() if value != "left out"}


def test_what_is_written_is_read_again() -> None:
    found = read_offers(written(problems=[]), "offers.json", NOW)
    assert found == Found(tuple(MARKET), (), {"gcp": "is down"})


@pytest.mark.parametrize(("text", "problem", "fix"), [
    (written()[:-40], "is no whole JSON: ", "make it anew: ldlm offers --gpu NAME --json > offers.json"),
    ("", "is no whole JSON: ", "make it anew"),
    ("[" * 100_000, "is no whole JSON: ", "make it anew"),
    ("[]", "is no list of offers as ldlm writes them", "make it anew"),
    (written(offers="many"), "is no list of offers", "make it anew"),
    (written(version=2), "version is 2, and this ldlm reads 1", "make it anew"),
    (written(version=None), "version is None, and this ldlm reads 1", "make it anew"),
    (written(currency="EUR"), "currency is 'EUR', and ldlm counts in USD", "turn its prices into dollars"),
    (written(prices=[]), "prices is no field that ldlm knows", "take it out")])
def test_what_is_wrong_with_the_whole_file_is_refused(text: str, problem: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_offers(text, "offers.json", NOW)
    assert caught.value.problem.startswith(problem) and caught.value.place == "offers.json"
    assert str(caught.value.fix).startswith(fix)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"price_usd_per_hour": "-1"}, "price_usd_per_hour is -1, and it should be greater than or equal"),
    ({"price_usd_per_hour": 0}, "price_usd_per_hour is 0, and it should be greater than or equal to 0.01"),
    ({"price_usd_per_hour": "1e-30"}, "price_usd_per_hour is 1e-30, and it should be greater than or"),
    ({"on_demand_usd_per_hour": "0.009"}, "on_demand_usd_per_hour is 0.009, and it should be greater"),
    ({"price_usd_per_hour": float("nan")}, "price_usd_per_hour is NaN, and it should be a finite number"),
    ({"price_usd_per_hour": 1e9},
     "price_usd_per_hour is 1000000000.0, and it should be less than or equal to 1000"),
    ({"price_usd_per_hour": "cheap"}, "price_usd_per_hour is 'cheap', which is no number"),
    ({"price_usd_per_hour": "3 EUR"}, "price_usd_per_hour is '3 EUR', which is no number"),
    ({"price_usd_per_hour": ""}, "price_usd_per_hour is '', which is no number"),
    ({"price_usd_per_hour": None}, "price_usd_per_hour is None, which is no number"),
    ({"price_usd_per_hour": "left out"}, "it has no price_usd_per_hour"),
    ({"sent_usd_per_gb": -0.01}, "sent_usd_per_gb is -0.01, and it should be greater than or equal to 0"),
    ({"region": ""}, "it has no region"), ({"region": "left out"}, "it has no region"),
    ({"region": " "}, "region is ' ', which can be none"),
    ({"region": "x\x1b[31mred\n\nb"}, "region is 'x\\x1b[31mred\\n\\nb', which can be none"),
    ({"region": "x\u202ey"}, "region is 'x\\u202ey', which can be none"),
    ({"region": "x" * 61}, f"region is {'x' * 40}, and it should have at most 60 characters"),
    ({"source": "me\x1b[2J"}, "source is 'me\\x1b[2J', which can be none"),
    ({"instance_type": "two\nlines"}, "instance_type is 'two\\nlines', which can be none"),
    ({"\x1b[31mred": 1}, "?[31mred is no field that ldlm knows"),
    ({"seen_at": "\x1b[31mred"}, "seen_at is ?[31mred, and "),
    ({"terms": "bid"}, "terms is bid, and gcp has no such terms"),
    ({"cloud": "vast"}, "terms is spot, and vast has no such terms"),
    ({"currency": "EUR"}, "currency is no field that ldlm knows"),
    ({"cloud": "aws"}, "cloud is aws, and it should be 'vast', 'azure' or 'gcp'"),
    ({"seen_at": "2026-11-24T12:00:00"}, "seen_at is 2026-11-24T12:00:00, and it should have timezone info"),
    ({"reliability": 99.5}, "reliability is 99.5, and it should be less than or equal to 1"),
    ({"num_gpus": 0}, "num_gpus is 0, and it should be greater than or equal to 1")])
def test_what_is_wrong_with_one_offer_is_named_and_the_others_are_read(
        wrong: dict[str, Any], said: str) -> None:
    text = written(offers=[row(region="us-east5"), row(**wrong)])
    found = read_offers(text, "offers.json", NOW)
    assert [one.region for one in found.offers] == ["us-east5"]
    (problem,) = found.problems
    assert problem.startswith(f"offers.json: offers[1]: {said}") and problem.endswith("; passed over")


@pytest.mark.parametrize("no_offer", [None, [], "text", 3, True])
def test_what_is_no_offer_at_all_is_told_in_our_words(no_offer: object) -> None:
    found = read_offers(written(offers=[no_offer]), "f", NOW)
    assert found.problems == ("f: offers[0]: it is no offer, which has its fields in braces; passed over",)


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                     lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner))


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([*PricedOffer.model_fields, "other"]), value=_JSON)
def test_whatever_stands_in_a_field_is_read_or_named(name: str, value: Any) -> None:
    found = read_offers(written(problems=[], offers=[row() | {name: value}]), "f", NOW)
    assert len(found.offers) + len(found.problems) == 1
    for one in found.offers:
        assert Decimal("0.01") <= one.price_usd_per_hour <= 1000 and one.region.isprintable()
        assert one.seen_at <= NOW + timedelta(minutes=5)


def test_why_a_cloud_is_down_moves_no_cursor() -> None:
    found = read_offers(written(problems=[], offers=[], down={"gc\np": "is\x1b[2J down"}), "f", NOW)
    assert found.down == {"gc?p": "is?[2J down"}


def test_what_is_no_offer_at_all_is_named() -> None:
    found = read_offers(written(offers=[7, None]), "offers.json", NOW)
    assert found.offers == () and len(found.problems) == 2


def test_a_price_of_times_to_come_is_passed_over() -> None:
    later = (NOW + timedelta(hours=2)).isoformat()
    found = read_offers(written(offers=[row(seen_at=later)]), "offers.json", NOW)
    assert found.offers == ()
    assert found.problems == ("offers.json: offers[0] is seen at 2026-11-24 14:00 UTC, which is to come: is "
                              "this machine's clock right? Passed over",)


def test_of_two_that_are_the_same_the_newer_counts_and_of_equally_new_ones_the_dearer() -> None:
    cheaper, dearer = row(price_usd_per_hour="5.00"), row(price_usd_per_hour="7.00")
    newer = row(price_usd_per_hour="4.00", seen_at=NOW.isoformat())
    for offers, price in (([cheaper, dearer], "7.00"), ([dearer, cheaper], "7.00"), ([newer, dearer], "4.00"),
                          ([dearer, newer], "4.00")):
        found = read_offers(written(offers=offers), "f", NOW)
        assert [str(one.price_usd_per_hour) for one in found.offers] == [price]
        assert found.problems == ("f: H100:1 on gcp/us-central1 (spot) stands there twice: the newer counts, "
                                  "of equally new ones the dearer",)


@pytest.mark.parametrize(("cloud", "old_after", "refused_after"), [
    ("vast", timedelta(hours=1), timedelta(days=1)), ("gcp", timedelta(days=1), timedelta(days=7))])
def test_old_prices_are_called_old_and_nothing_is_rented_by_older_ones(
        cloud: str, old_after: timedelta, refused_after: timedelta) -> None:
    one = next(one for one in MARKET if one.cloud == cloud)
    second = timedelta(seconds=1)
    assert not is_old(one, one.seen_at + old_after) and is_old(one, one.seen_at + old_after + second)
    assert too_old([one], "f", one.seen_at + refused_after) is None
    refusal = too_old([one], "f", one.seen_at + refused_after + second)
    assert refusal is not None and f"older than {refused_after.days} d" in refusal.problem
    assert refusal.fix == "make it anew: ldlm offers --gpu NAME --json > f; or leave --offers out"


def test_old_prices_and_a_text_that_is_not_there_are_both_told(tmp_path: Path) -> None:
    saved, seen_at = tmp_path / "offers.json", (datetime.now(UTC) - timedelta(days=9)).isoformat()
    saved.write_text(written(down={}, problems=[], offers=[
        row(gpu="A100-80GB", region="us-central1", price_usd_per_hour="0.25", seen_at=seen_at)]))
    options = PlanOptions(infra="gcp", max_cost="90", offers=str(saved), store=str(tmp_path),
                          overrides=["train.data.source=shards:nowhere"])
    text, stale = propose(str(RECIPE), options).refusals
    assert "nowhere" in str(text) and "nothing is rented by prices older than 7 d" in str(stale)


def test_the_moment_of_the_test_is_in_the_same_zone_whatever_is_written() -> None:
    east = row(seen_at="2026-11-24T14:00:00+05:00")
    (one,) = read_offers(written(offers=[east]), "f", NOW).offers
    assert one.seen_at == datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


@pytest.mark.parametrize(("order", "document", "gpu"), [
    (propose_resume, Document.TRAIN, "A100-80GB"), (propose_bench, Document.BENCH, "L4")])
def test_what_is_left_of_a_run_is_planned_by_a_saved_list_too(
        order: Callable[..., Proposal], document: Document, gpu: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # without catalogs of SkyPilot, and without keys
    saved, seen_at = tmp_path / "offers.json", datetime.now(UTC).isoformat()
    saved.write_text(written(down={}, problems=[], offers=[
        row(gpu=name, region="us-central1", price_usd_per_hour=usd, seen_at=seen_at)
        for name, usd in (("A100-80GB", "1.25"), ("L4", "0.31"))]))
    story = preempted_once(f"file://{tmp_path}/store")
    if document is Document.BENCH:
        story.outcome(Outcome.FINISHED, 600, 400)

    def price(offers: str | None) -> Decimal | None:
        options = PlanOptions(infra="gcp", max_cost="90", offers=offers)
        offer = order(story.folder.store, "story-1", options).plan.offers[document]
        assert gpu in offer.label
        return offer.price_usd_per_hour

    assert price(None) is None
    assert price(str(saved)) == Decimal("1.25" if document is Document.TRAIN else "0.31")
    command = "resume" if document is Document.TRAIN else "bench"
    said = refused(2, command, "story-1", "--store", story.folder.store.url, "--infra", "gcp",
                   "--offers", "/no/such/file")
    assert "/no/such/file: cannot be read: No such file" in said
