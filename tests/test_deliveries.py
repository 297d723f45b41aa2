"""Each piece of news is sent once over channels, writers, retries and restarts: real stores, real threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from news_examples import attempt, beat, folder_with, minute, started

from trainer.deliveries import Channel, NotSentError, deliver, record
from trainer.news import News, Seen, news_of
from trainer.run_folder import RunFolder
from trainer.store import open_store


def lost(number: int, at: float = 9) -> list[News]:
    """That one attempt lost its machine."""
    files = attempt(number, beat(120), preempted=True, reason="spot")
    return news_of(Seen("run", minute(at), (files,), (started(),)))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = folder_with(tmp_path)
    record(found, [*lost(2, 20), *lost(1, 10)])
    return found


class Channels:
    """Collects what is sent; `fails` says how often the next ones do not arrive."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.fails = 0
        self.lock = threading.Lock()

    def send(self, news: News) -> None:
        with self.lock:
            if self.fails:
                self.fails -= 1
                raise NotSentError("HTTP 500")
            self.sent.append(news.name)

    def deliver(self, folder: RunFolder, channel: Channel = Channel.WEBHOOK, start: int = 1) -> bool:
        return deliver(folder, channel, self.send, start=start, by="host")


def test_news_are_recorded_once_and_stay_as_who_saw_them_first_wrote_them(folder: RunFolder) -> None:
    before = folder.read_bytes("news/1/preempted-1.json")
    record(folder, lost(1, 50))
    assert folder.read_bytes("news/1/preempted-1.json") == before


def test_each_channel_sends_all_in_the_order_in_which_it_happened_and_once(folder: RunFolder) -> None:
    hook, wandb = Channels(), Channels()
    assert hook.deliver(folder) and hook.deliver(folder) and wandb.deliver(folder, Channel.WANDB)
    assert hook.sent == wandb.sent == ["preempted-1", "preempted-2"]
    assert Channels().deliver(folder)
    record(folder, lost(3))
    assert hook.deliver(folder) and hook.sent[2:] == ["preempted-3"]


def test_of_many_writers_at_once_one_sends(folder: RunFolder) -> None:
    hook, together = Channels(), threading.Barrier(8)

    def one(number: int) -> None:
        own = RunFolder(open_store(folder.store.address), "run")
        record(own, lost(3, number))
        together.wait(30)
        hook.deliver(own)

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(one, range(8)))
    assert sorted(hook.sent) == ["preempted-1", "preempted-2", "preempted-3"]


def test_what_did_not_arrive_is_tried_again_by_anybody_and_five_times_in_all(folder: RunFolder) -> None:
    hook = Channels()
    hook.fails = 3
    assert not hook.deliver(folder)  # both
    assert hook.sent == []
    assert not hook.deliver(folder) and hook.sent == ["preempted-2"]
    assert hook.deliver(folder) and hook.sent == ["preempted-2", "preempted-1"]
    record(folder, lost(3))
    hook.fails = 100
    assert [hook.deliver(folder) for _ in range(7)] == [False] * 4 + [True] * 3
    assert hook.fails == 95
    hook.fails = 0
    assert Channels().deliver(folder) and hook.deliver(folder) and len(hook.sent) == 2


@pytest.mark.parametrize("dies", [KeyboardInterrupt, RuntimeError])
def test_who_dies_while_it_sends_leaves_a_claim_and_nobody_sends_it_twice(
        folder: RunFolder, dies: Callable[[], BaseException]) -> None:
    hook = Channels()

    def send(news: News) -> None:
        hook.send(news)
        raise dies()

    for _ in range(2):
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            deliver(folder, Channel.WEBHOOK, send, start=1, by="host")
    assert hook.deliver(folder) and hook.sent == ["preempted-1", "preempted-2"]


def test_news_of_an_earlier_start_are_left_and_the_record_says_who_sent_what(folder: RunFolder) -> None:
    hook = Channels()
    assert hook.deliver(folder, start=2) and hook.sent == []
    hook.fails = 1
    hook.deliver(folder)
    hook.deliver(folder)
    found = {item.key.removeprefix("run/news/1/"): folder.store.get(item.key)
             for item in folder.store.objects("run/news")}
    assert {name for name in found if "/" in name} == {
        "preempted-1/webhook.1", "preempted-1/webhook.1.failed", "preempted-1/webhook.2",
        "preempted-2/webhook.1"}
    assert b'"host"' in found["preempted-1/webhook.1"]
    assert b"HTTP 500" in found["preempted-1/webhook.1.failed"]
