"""Which offers somebody wants to see, and in which order."""

from decimal import Decimal
from typing import Any

import pytest
from test_priced_offers import MARKET, priced

from launcher.errors import UsageError
from launcher.offer_list import Wanted, read_gpu, read_most, read_sort

OFFERS = [*MARKET,
          priced("vast", "Spain, ES", "bid", "4.00", num_gpus=8, reliability=0.99, upload_mbit_s=900),
          priced("vast", "Sweden, SE", "on-demand", "3.00", reliability=0.999, upload_mbit_s=100)]


def told(**words: Any) -> list[str]:
    return [f"{one.accelerators} {one.infra} {one.terms} {one.price_usd_per_hour}"
            for one in Wanted(**words).among(OFFERS)]


@pytest.mark.parametrize(("words", "first", "num"), [
    ({}, "H100:1 vast/Utah, US bid 0.95", 9), ({"spot": True}, "H100:1 vast/Utah, US bid 0.95", 6),
    ({"spot": False}, "H100:1 vast/Utah, US on-demand 2.40", 3),
    ({"gpus": ("H100:8",)}, "H100:8 vast/Spain, ES bid 4.00", 1),
    ({"gpus": ("H100", "L4")}, "H100:1 vast/Utah, US bid 0.95", 9), ({"gpus": ("A100",)}, None, 0),
    ({"infra": "gcp"}, "H100:1 gcp/europe-west4 spot 5.51", 3),
    ({"infra": "gcp/us-central1/us-central1-b"}, "H100:1 gcp/us-central1 spot 6.33", 2),
    ({"infra": "vast/Texas, US, NA"}, "H100:1 vast/Texas, US bid 1.30", 1),
    ({"region": "SWEDEN"}, "H100:1 vast/Sweden, SE on-demand 3.00", 1),
    ({"most_usd_per_hour": Decimal("1.30")}, "H100:1 vast/Utah, US bid 0.95", 2),
    ({"sort": "per-gpu"}, "H100:8 vast/Spain, ES bid 4.00", 9),
    ({"sort": "reliability"}, "H100:1 vast/Sweden, SE on-demand 3.00", 9),
    ({"sort": "upload"}, "H100:8 vast/Spain, ES bid 4.00", 9),
    ({"sort": "region"}, "H100:1 azure/southeastasia spot 1.55", 9)])
def test_what_is_asked_for_is_what_is_listed(words: dict[str, Any], first: str | None, num: int) -> None:
    found = told(**words)
    assert (next(iter(found), None), len(found)) == (first, num)


def test_cards_that_nobody_has_are_named() -> None:
    assert Wanted(("H100", "L4", "H100:8", "H100:4")).without(OFFERS) == ["L4", "H100:4"]


def test_names_of_cards_are_spelled_as_skypilot_does() -> None:
    assert [read_gpu(text) for text in ("h100", "rtx5090:1", "A100-80gb:08")] == [
        "H100", "RTX5090:1", "A100-80GB:8"]


@pytest.mark.parametrize("text", ["H10", "", "H100:", "H100:0", "H100:-1", "H100:x", "H100:1:1", "H100:²",
                                  f"H100:{'9' * 5000}"])
def test_a_card_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_gpu(text)
    assert caught.value.place == "--gpu" and caught.value.fix


def test_a_file_may_have_cards_that_ldlm_does_not_know() -> None:
    assert read_gpu("FOO:2", from_file=True) == "FOO:2" and read_gpu("h100", from_file=True) == "H100"
    with pytest.raises(UsageError, match="no number of GPUs"):
        read_gpu("FOO:x", from_file=True)


@pytest.mark.parametrize("text", ["-3", "0", "nan", "inf", "1e9", "two", ""])
def test_dollars_that_nobody_can_mean_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_most(text)
    assert caught.value.place == "--max-usd-per-hour"
    assert read_most("2.50") == Decimal("2.50")


def test_an_order_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        read_sort("luck")
    assert caught.value.fix == "use one of price, per-gpu, reliability, upload, region, age"
