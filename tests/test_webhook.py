"""What is posted to a webhook and what becomes of its answers, against a real server."""

import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from webhook_server import PATH, WebhookServer, webhook_server

from trainer.news import Kind, News
from trainer.webhook import WebhookError, address_problem, host_of, payload, post

NEWS = News(name="preempted-2", kind=Kind.PREEMPTED, run_id="smoke-1", start=1,
            at=datetime(2026, 11, 28, 8, 37, tzinfo=UTC), step=120, spent_usd=Decimal("0.0123"),
            sentence="attempt 2 lost its machine (<!channel> & more); step 120 was durable")


@pytest.fixture
def hook() -> Iterator[WebhookServer]:
    with webhook_server() as found:
        yield found


def test_a_message_is_one_small_json_that_slack_and_discord_show_and_calls_nobody(
        hook: WebhookServer) -> None:
    post(hook.url, payload(NEWS))
    sentence = "attempt 2 lost its machine (<!channel> & more); step 120 was durable"
    text = f"smoke-1: {sentence} ($0.0123, step 120)"
    assert hook.messages == [{
        "text": text.replace("&", "&amp;").replace("<!channel>", "&lt;!channel&gt;"), "content": text,
        "allowed_mentions": {"parse": []}, "id": "smoke-1/preempted-2", "run_id": "smoke-1",
        "kind": "preempted", "sentence": sentence,
        "time": "2026-11-28T08:37:00+00:00", "spent_usd": "0.0123", "step": 120}]
    assert hook.paths == [PATH]


def refused(url: str, timeout_s: float = 5.0) -> WebhookError:
    with pytest.raises(WebhookError) as error:
        post(url, payload(NEWS), timeout_s)
    shown = "".join(traceback.format_exception(error.value))
    assert "a-secret" not in shown and host_of(url) in shown
    return error.value


@pytest.mark.parametrize(("code", "may_repeat"), [
    (500, True), (502, True), (503, True), (429, True), (400, False), (403, False), (404, False),
    (410, False)])
def test_what_is_refused_for_a_moment_may_be_sent_again_and_what_is_wrong_may_not(
        code: int, may_repeat: bool, hook: WebhookServer) -> None:
    hook.answers = [code]
    error = refused(hook.url)
    assert (error.problem, error.may_repeat) == (f"it answers HTTP {code}", may_repeat)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(code: int, hook: WebhookServer) -> None:
    with webhook_server() as other:
        hook.answers, hook.elsewhere = [code], other.url
        error = refused(hook.url)
        assert "redirects elsewhere" in error.problem and not error.may_repeat
        assert other.messages == [] and other.paths == []


@pytest.mark.parametrize("answer", ["silence", "hang up"])
def test_who_has_the_message_and_does_not_answer_is_not_asked_again(answer: str, hook: WebhookServer) -> None:
    hook.answers = [answer]
    error = refused(hook.url, timeout_s=0.3)
    assert "does not answer" in error.problem and not error.may_repeat
    assert len(hook.messages) == 1


def test_what_cannot_be_reached_has_certainly_not_got_it() -> None:
    error = refused(f"http://127.0.0.1:1{PATH}")
    assert "cannot be reached: Connection refused" in error.problem and error.may_repeat
    assert "ldlm init --webhook" in str(error)


@pytest.mark.parametrize(("url", "words"), [
    ("", "no URL"), ("hooks.example.org/x", "no URL"), ("ftp://h/x", "no URL"), ("https://", "no URL"),
    ("https://h:port/x", "no URL"), ("https://h/x\r\nHost: other", "no URL"), ("https://h/ x", "no URL"),
    ("http://hooks.example.org/a-secret", "must begin with https"),
    ("https://me:a-secret@hooks.example.org/x", "a password before its host")])
def test_an_address_that_cannot_be_used_is_refused_without_being_shown(url: str, words: str) -> None:
    problem = address_problem(url)
    assert problem and words in problem and "a-secret" not in problem


@pytest.mark.parametrize("url", [f"https://hooks.slack.com{PATH}", "https://discord.com/api/webhooks/1/x?wait=1",
                                 "http://127.0.0.1:8080/x", "http://localhost/x"])
def test_usual_addresses_can_be_used_and_only_their_host_is_shown(url: str) -> None:
    assert address_problem(url) is None
    assert "/" not in host_of(url)
