"""One message to one address that the user has named: a POST of a small JSON. No torch.

The address is a secret: whoever knows it can write there. No error, no log and no record has more of it than
its host. No redirect is followed: it could lead anywhere.
"""

import http.client
import json
import re
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from trainer.contract import Env, LdlmError
from trainer.news import News

# A chat answers within a second; whoever waits longer waits for a machine that is paid for (guess).
_TIMEOUT_S = 10.0
_HERE = ("localhost", "127.0.0.1", "::1")
# It is the address or the message: the same again would be refused again. 408 and 429 ask for patience.
_MAY_PASS = (408, 425, 429)


class WebhookError(LdlmError):
    """A message was not taken, as far as is known.

    Attributes:
        may_repeat: It has certainly not arrived, and may if it is sent again.
    """

    def __init__(self, problem: str, *, host: str, may_repeat: bool) -> None:
        super().__init__(problem, place=f"webhook at {host}",
                         fix=f"name another address: ldlm init --webhook, or export {Env.WEBHOOK}=...; "
                             "a message for a try: ldlm doctor --webhook")
        self.may_repeat = may_repeat


def address_problem(url: str) -> str | None:
    """Why this is no address that is told anything; None: it is one. Never quotes it."""
    try:
        found = urlsplit(url)
        host, _ = found.hostname, found.port
    except ValueError:
        return "it is no URL"
    if not host or found.scheme not in ("https", "http") or re.search(r"[^!-~]", url):
        return "it is no URL like https://HOST/PATH"
    if found.scheme == "http" and host not in _HERE:
        return "it must begin with https: over http anybody on the way could read it"
    if found.username or found.password:
        return "it has a name or a password before its host, which is not sent"
    return None


def host_of(url: str) -> str:
    """What may be shown of it."""
    return urlsplit(url).hostname or "?"


def payload(news: News) -> dict[str, object]:
    """What is sent of one piece of news: `text` is read by Slack and its likes, `content` by Discord."""
    text = f"{news.run_id}: {news.sentence} ({news.dollars}, step {news.step})"
    return _texts(text) | {
        "id": f"{news.run_id}/{news.name}", "run_id": news.run_id, "kind": str(news.kind),
        "sentence": news.sentence, "time": news.at.isoformat(timespec="seconds"),
        "spent_usd": str(news.spent_usd), "step": news.step}


def test_payload() -> dict[str, object]:
    """What is sent for a try."""
    return _texts("ldlm: this webhook works; runs will tell what happens to them here") | {"kind": "test"}


def _texts(text: str) -> dict[str, object]:
    # A reason can hold anything: nobody is called by it, and Slack takes nothing in it for markup.
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {"text": plain, "content": text, "allowed_mentions": {"parse": []}}


def post(url: str, message: Mapping[str, object], timeout_s: float = _TIMEOUT_S) -> None:
    """Send a message.

    Args:
        url: See `address_problem`.
        timeout_s: Seconds that the server may be silent.

    Raises:
        WebhookError: It was not taken, or nobody knows.
    """
    found, host = urlsplit(url), host_of(url)
    kind = http.client.HTTPSConnection if found.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, found.port, timeout=timeout_s)
    try:
        _send(connection, found.path or "/", found.query, json.dumps(message).encode(), host)
        status = _answer(connection, host)
    finally:
        connection.close()
    if 300 <= status < 400:
        raise WebhookError(f"it redirects elsewhere (HTTP {status}), which is not followed", host=host,
                           may_repeat=False)
    if not 200 <= status < 300:
        raise WebhookError(f"it answers HTTP {status}", host=host,
                           may_repeat=status >= 500 or status in _MAY_PASS)


def _send(connection: http.client.HTTPConnection, path: str, query: str, body: bytes, host: str) -> None:
    """Until all of it is on its way, the server cannot have understood it."""
    try:
        connection.request("POST", f"{path}?{query}" if query else path, body,
                           {"Content-Type": "application/json", "User-Agent": "ldlm"})
    except (OSError, http.client.HTTPException) as error:
        raise WebhookError(f"it cannot be reached: {_words(error)}", host=host, may_repeat=True) from None


def _answer(connection: http.client.HTTPConnection, host: str) -> int:
    try:
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise WebhookError(f"it has the message and does not answer as a server does: {_words(error)}",
                           host=host, may_repeat=False) from None


def _words(error: Exception) -> str:
    """Of what went wrong, without what was asked for: that has the address in it."""
    if isinstance(error, ssl.SSLError):
        return f"{type(error).__name__}: {error.reason}"
    if isinstance(error, TimeoutError):
        return "it is silent"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
