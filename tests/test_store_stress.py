"""A store that is slow, throttles, fails or cuts connections: what is saved arrives whole, or fails."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from launcher.doctor_here import look_at_store
from tests.bad_line import ERRORS, BadServer, bad_server
from tests.s3_server import KEYS
from tests.test_store import forget_aws
from trainer import store as stores
from trainer.aws import AwsCredentials
from trainer.contract import AwayError, Document, StoreError
from trainer.run_folder import RunFolder
from trainer.store import Store, open_store

MIB = 2**20


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_aws(monkeypatch)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server() -> Iterator[BadServer]:
    with bad_server() as started:
        yield started


def text(num_bytes: int) -> bytes:
    return bytes(range(256)) * (num_bytes // 256)


def all_comes_back(store: Store, num_bytes: int) -> bool:
    """A streamed object, one that is put whole, a small one, ranges and a listing."""
    written = text(num_bytes)
    store.stream("it", [written[at:at + 5 * MIB] for at in range(0, num_bytes, 5 * MIB)])
    store.put("whole", written[:3 * MIB])
    store.put("little", b"little")
    ranges = [store.get_range("it", at, min(at + 7 * MIB, num_bytes)) for at in range(0, num_bytes, 7 * MIB)]
    return (b"".join(ranges) == written and store.get("whole") == written[:3 * MIB]
            and store.get("little") == b"little"
            and {one.key: one.num_bytes for one in store.objects()} == {
                "it": num_bytes, "whole": 3 * MIB, "little": 6})


@pytest.mark.parametrize("how", ["cut", *map(str, ERRORS)])
def test_requests_that_fail_now_and_then_are_made_again(server: BadServer, how: str) -> None:
    server.share, server.how = 0.3, how
    assert all(all_comes_back(open_store(server.url), 40 * MIB) for _ in range(2))
    assert {"PUT", "POST", "GET"} <= server.struck.keys(), "each kind has met it"


def test_parts_that_share_a_slow_line_take_the_time_that_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    # Four parts at once over 200 Mbit/s: each is under way for longer than a heartbeat may be.
    monkeypatch.setattr(stores, "_ASKING", stores._Patience(timedelta(seconds=1), timedelta(seconds=1)))
    with bad_server(gigabits_per_s=0.2) as slow:
        assert all_comes_back(open_store(slow.url), 64 * MIB)


def test_an_object_that_comes_slowly_is_told_from_a_server_that_has_fallen_silent(
        monkeypatch: pytest.MonkeyPatch) -> None:
    quick = stores._READING._replace(silence=timedelta(seconds=1), tried_for=timedelta(seconds=1))
    monkeypatch.setattr(stores, "_READING", quick)
    with bad_server(gigabits_per_s=0.1) as slow:
        store = open_store(slow.url)
        store.stream("it", [text(32 * MIB)])
        assert store.get_range("it", 0, 32 * MIB) == text(32 * MIB)
        slow.share, slow.how = 1.0, "silent"
        with pytest.raises(AwayError, match="cannot read: "):
            store.get_range("it", 0, 32 * MIB)


def test_keys_are_asked_for_again_before_botocore_lets_them_run_out() -> None:
    from botocore.credentials import RefreshableCredentials

    renewed_s = RefreshableCredentials._mandatory_refresh_timeout
    assert AwsCredentials()()["expires_at"] - datetime.now(UTC) < timedelta(seconds=renewed_s)


def test_a_store_that_would_give_two_machines_one_attempt_is_refused_by_a_run_and_by_doctor(
        server: BadServer) -> None:
    def claim(run_id: str) -> int:
        return RunFolder(open_store(server.url), run_id).claim_attempt(
            Document.TRAIN, billed_from=datetime.now(UTC), price_usd_per_hour=Decimal(0), offer="",
            host="h").number

    def doctor_says() -> str:
        return next(look_at_store(server.url, is_rented=True)).detail

    assert claim("good") == 1 and "written, read, listed, deleted" in doctor_says()
    server.keeps_conditions = False
    with pytest.raises(StoreError, match="writes over an object that it was told to create"):
        claim("bad")
    with pytest.raises(StoreError, match="writes over an object"):
        doctor_says()
