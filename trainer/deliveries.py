"""Sends the news of a run over a channel, each once. No torch.

Who may send is settled in the run folder, by names alone, so that one listing tells everything:

    news/1/preempted-2.json              what is told, of the run's first start
    news/1/preempted-2/webhook.1         somebody has taken it upon himself to send it (a conditional put)
    news/1/preempted-2/webhook.1.failed  it has certainly not arrived; the next may try, as `webhook.2`

A claim that nobody gives back counts as sent: a machine that dies in the middle of it, or a server that has
the message and does not answer, costs a message; telling twice would be worse. So each is told at most once,
and is tried at most five times over all attempts and machines.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import StrEnum

from pydantic import BaseModel

from trainer.contract import LdlmError, Name
from trainer.news import News
from trainer.run_folder import RunFolder
from trainer.store import AlreadyExistsError

_MAX_TRIES = 5  # a webhook that is down for longer than these take is not told (guess)
_FAILED = ".failed"


class Channel(StrEnum):
    """Ways to tell."""

    WEBHOOK = "webhook"
    WANDB = "wandb"


class _Claim(BaseModel):
    by: str


class _Failure(BaseModel):
    problem: str


class NotSentError(LdlmError):
    """A piece of news has certainly not arrived, and may be sent again."""


def record(folder: RunFolder, news: Iterable[News]) -> None:
    """Write down what is not written down yet. Raises StoreError."""
    for one in news:
        with suppress(AlreadyExistsError):
            folder.write(f"{_place(one.start)}/{one.name}.json", one, create=True)


def deliver(folder: RunFolder, channel: Channel, send: Callable[[News], None], *, start: int,
            by: str) -> bool:
    """Try once to send what this channel has not sent of the news of a start, oldest first.

    Args:
        folder: Of the run.
        send: Raises NotSentError; what else it raises counts as sent.
        start: The last one: what happened before is known to who has started the run again.
        by: Who sends, for whoever reads the record.

    Returns:
        False where something is left to be tried again.

    Raises:
        StoreError: The record cannot be read or written.
    """
    is_done, place = True, _place(start)
    due = [(folder.read(f"{place}/{name}.json", News), number)
           for name, number in _unsent(folder, place, channel).items()]
    for news, number in sorted(due, key=lambda one: one[0].at):
        claim = f"{place}/{news.name}/{channel}.{number}"
        try:
            folder.write(claim, _Claim(by=by), create=True)
        except AlreadyExistsError:
            continue
        try:
            send(news)
        except NotSentError as error:
            folder.write(claim + _FAILED, _Failure(problem=error.problem))
            is_done = is_done and number == _MAX_TRIES
    return is_done


def _place(start: int) -> str:
    return f"{Name.NEWS}/{start}"


def _unsent(folder: RunFolder, place: str, channel: Channel) -> dict[str, int]:
    """News that nobody has sent or is sending, each with the number of the try that is due."""
    tries, failures, names = Counter[str](), Counter[str](), []
    for found in folder.store.objects(folder.key(place)):
        name, _, rest = found.key.removeprefix(folder.key(f"{place}/")).partition("/")
        if not rest:
            names.append(name.removesuffix(".json"))
        elif rest.startswith(f"{channel}."):
            (failures if rest.endswith(_FAILED) else tries)[name] += 1
    return {name: tries[name] + 1 for name in names if tries[name] == failures[name] < _MAX_TRIES}
