"""Tells of a run while nobody watches: sees what is new in its record, writes it down, sends it to the
webhook.

On the first node of an attempt it is a thread beside the programs, so that a webhook or a store that is away
holds nothing up. A controller, which sees ends that no node can, calls `tell_end`, or runs

    python -m trainer.tell OUTCOME REASON

with the environment of the run's task. No torch.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from trainer.config import TrainConfig
from trainer.contract import Document, Env, LdlmError, Name, Outcome, attempt_file
from trainer.deliveries import Channel, NotSentError, deliver, record
from trainer.kept_rows import RowReader
from trainer.learning import Learning, judge
from trainer.news import News, Seen, news_of
from trainer.run_folder import Attempt, AttemptFiles, Event, Heartbeat, RunFolder, RunOutcome
from trainer.store import open_store
from trainer.webhook import WebhookError, address_problem, host_of, payload, post

# Five tries of one message with these pauses take 43 minutes, during which training goes on (guess).
_PAUSES_S = (30.0, 120.0, 600.0, 1800.0)
# Of a last word: the machine is paid for meanwhile. A controller's is not (guess).
_LAST_PAUSES_S, _LAST_S = (1.0, 2.0, 4.0, 8.0), 20.0


class Webhook:
    """The address of this process's environment, if it has one that can be used.

    Args:
        environ: `Env.WEBHOOK` is read.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._url = environ.get(Env.WEBHOOK, "").strip()
        self._warned: set[str] = set()
        if self._url and (problem := address_problem(self._url)):
            print(f"warning: {Env.WEBHOOK}: {problem}; nobody is told what happens to this run", flush=True)
            self._url = ""

    def deliver(self, folder: RunFolder, start: int) -> bool:
        """See `trainer.deliveries.deliver`; True where there is no address."""
        if not self._url:
            return True
        return deliver(folder, Channel.WEBHOOK, self._send, start=start, by=socket.gethostname())

    def _send(self, news: News) -> None:
        try:
            post(self._url, payload(news))
        except WebhookError as error:
            self._say(f"{news.name} is not told: {error.place}: {error.problem}")
            if error.may_repeat:
                raise NotSentError(error.problem) from error
        else:
            print(f"told {host_of(self._url)}: {news.name}", flush=True)

    def _say(self, text: str) -> None:
        if text not in self._warned:
            print(f"warning: {text}", flush=True)
        self._warned.add(text)


class Watch:
    """What one attempt's node sees of its run: what came before it is read once.

    Args:
        folder: Of the run.
        own: Of this node.
        attempts: Of the run, in order.
        events: Of the run, oldest first.
        config: Of the run.
        environ: Of this node.
    """

    def __init__(self, folder: RunFolder, own: Attempt, attempts: Sequence[AttemptFiles],
                 events: Sequence[Event], config: TrainConfig, environ: Mapping[str, str]) -> None:
        self._folder, self._own, self._config = folder, own, config
        self._earlier = tuple(files for files in attempts if files.attempt.number < own.number)
        self._seen = Seen(folder.run_id, datetime.now(UTC), self._earlier, tuple(events),
                          cap_usd=Decimal(environ[Env.MAX_COST]) if environ.get(Env.MAX_COST) else None)
        self._rows = RowReader(folder)
        self._scores: dict[str, float] = {}

    def look(self) -> Seen:
        """What is known now. Two small reads, and the rows after an evaluation. Raises StoreError."""
        beat = self._folder.find(attempt_file(self._own.number, "heartbeat.json"), Heartbeat)
        own = AttemptFiles(attempt=self._own, heartbeat=beat)
        outcome = self._folder.find(Name.OUTCOME, RunOutcome)
        self._seen = replace(self._seen, at=datetime.now(UTC), outcome=outcome, learning=self._judged(beat),
                             attempts=(*self._earlier, own))
        return self._seen

    def _judged(self, beat: Heartbeat | None) -> Learning | None:
        """The verdict on the run, anew only where the heartbeat has other scores than before."""
        scores = {name: value for name, value in (beat.metrics if beat else {}).items()
                  if name.startswith("eval/")}
        if self._own.document is not Document.TRAIN or scores == self._scores:
            return self._seen.learning
        self._scores = scores
        return judge(self._rows.rows().values(), self._config)


class Teller:
    """The thread of a node that tells of its run.

    Args:
        watch: What it looks at.
        folder: Of the run.
        webhook: Where it tells.
        every_s: Seconds between two looks.
    """

    def __init__(self, watch: Watch, folder: RunFolder, webhook: Webhook, every_s: float) -> None:
        self._watch, self._folder, self._webhook, self._every_s = watch, folder, webhook, every_s
        self._known: set[str] = set()
        self._tries, self._next_try = 0, 0.0
        self._is_delivered = False  # an earlier attempt may have left something
        self._warned = ""
        self._over, self._is_last = threading.Event(), False
        self._thread = threading.Thread(target=self._tell, daemon=True, name="tell")
        self._thread.start()

    def end(self, *, is_last: bool) -> None:
        """Stop.

        Args:
            is_last: Tell what is new for some seconds before; else the next attempt tells of it.
        """
        self._is_last = is_last
        self._over.set()
        self._thread.join(_LAST_S if is_last else 0)

    def _tell(self) -> None:
        while not self._over.wait(self._every_s):
            self._look(_PAUSES_S)
        self._next_try, give_up = 0.0, time.monotonic() + _LAST_S
        while self._is_last and not self._look(_LAST_PAUSES_S) and time.monotonic() < give_up:
            time.sleep(0.2)

    def _look(self, pauses_s: Sequence[float]) -> bool:
        """Write down and send what is new. True where nothing is left to be done."""
        try:
            seen = self._watch.look()
            new = [news for news in news_of(seen) if news.name not in self._known]
            record(self._folder, new)
            self._known |= {news.name for news in new}
            if new:
                self._is_delivered, self._tries, self._next_try = False, 0, 0.0
            if not self._is_delivered and time.monotonic() >= self._next_try:
                self._is_delivered = self._webhook.deliver(self._folder, seen.start)
                self._next_try = time.monotonic() + pauses_s[min(self._tries, len(pauses_s) - 1)]
                self._tries += 1
        except Exception as error:  # whatever is wrong with one look, training goes on and the next is due
            if (problem := f"{type(error).__name__}: {error}") != self._warned:
                print(f"warning: what happens to this run is not told now: {problem}", flush=True)
            self._warned = problem
            return False
        return self._is_delivered


def tell_end(folder: RunFolder, outcome: RunOutcome, environ: Mapping[str, str],
             pauses_s: Sequence[float] = _LAST_PAUSES_S) -> None:
    """Write down and send how a run has ended, and what its last machine could not tell.

    Args:
        folder: Of the run.
        outcome: Its end; nothing is told of one that a person wished.
        environ: `Env.WEBHOOK` is read.
        pauses_s: Seconds before each try after the first.

    Raises:
        StoreError: The record cannot be read or written.
    """
    seen = Seen(folder.run_id, datetime.now(UTC), folder.attempts(), folder.events(), outcome=outcome)
    record(folder, news_of(seen))
    webhook = Webhook(environ)
    for pause_s in (*pauses_s, None):
        if webhook.deliver(folder, seen.start) or pause_s is None:
            return
        time.sleep(pause_s)


def main(argv: Sequence[str]) -> int:
    """Tell of an end that only a controller has seen."""
    try:
        outcome, reason = argv
        folder = RunFolder(open_store(os.environ[Env.STORE]), os.environ[Env.RUN_ID])
        tell_end(folder, RunOutcome(outcome=Outcome(outcome), at=datetime.now(UTC), step=0, reason=reason),
                 os.environ, _PAUSES_S)
    except LdlmError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.node_exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
