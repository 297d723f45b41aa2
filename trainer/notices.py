"""Word that a machine is about to be taken back: who gives it, how long before, how it is asked. No torch.

| machine of | is told | how long before | source |
|---|---|---|---|
| Azure | Scheduled Events, asked every second | 30 s, `Preempt` | Azure's document on Scheduled Events |
| GCP | `instance/preempted`, a request that waits for a change; then SIGTERM | 30 s | on Spot VMs |
| AWS | `spot/instance-action`, asked every five seconds | 2 minutes | on interruption notices |
| Slurm | SIGTERM; the end of its time is known from the start | KillWait | slurm.conf(5) |
| our own engine | SIGTERM | `STOP_GRACE_S` | |
| Vast | nothing of a lost bid; when its credit is used up is reckoned here | | |

All of it is best effort: a machine may vanish without a word. So what counts is the checkpoint before, and a
last one is a gain where it fits. Azure counts down to the time that it names. What is planned long before
(repairs of its hardware, the end of a Slurm job's time) stops nothing until a last checkpoint needs the time.
"""

import contextlib
import json
import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple, Self
from urllib.error import HTTPError

from trainer.contract import CREDIT_USED_UP, STOP_GRACE_S, Env
from trainer.machine import traffic
from trainer.metadata import ANSWER_S, HEADERS, HOSTS, NO_ANSWER, Answer, read
from trainer.rental_terms import terms_here
from trainer.run_folder import Traffic

SPARE_S = 5.0  # before a machine's end: for the record of how the attempt has ended (guess)
_NO_NOTICE_S = 100  # what torchrun gives its ranks where nobody says how long they have (guess)
# Of an end that is known long before: when to leave at the latest (AWS's two minutes, and what it rounds).
_AHEAD_S = 125.0
# The one under way, and one whose state is not rounded: 13 bytes a parameter where a timed one has 8.
_SAVES_AHEAD = 3.0
_FIRST_ANSWER_S = 125.0  # Azure's document: the first request switches the service on, in up to two minutes
_LONG_POLL_S = 60.0
_TOKEN_S = "21600"  # the longest that AWS gives
_MOST_WAIT_S = 15.0  # between two questions that nobody answers (guess)
_SILENT = 3  # questions in a row without an answer, after which it is said (guess)
_LONG_S = 30 * 24 * 3600.0  # what is as far away says nothing yet
_FILE = "notice.json"
_MIB, _GIB = 2**20, 2**30


class Notice(NamedTuple):
    """That this machine has to be left.

    Attributes:
        why: In words, for the end of the attempt.
        ends_at_s: When it is gone, by `time.monotonic` of this machine; None: nobody says.
        is_taken: Its cloud takes it back; else somebody has asked for it.
    """

    why: str
    ends_at_s: float | None = None
    is_taken: bool = False

    @property
    def left_s(self) -> float | None:
        """Seconds until it is gone; None: not known."""
        return None if self.ends_at_s is None else self.ends_at_s - time.monotonic()

    def with_earlier(self, other: "Notice | None") -> "Notice":
        """This one and what was heard before it: the cloud's word is the reason, the first end counts."""
        if other is None:
            return self
        reason = other if other.is_taken and not self.is_taken else self
        ends = [one.ends_at_s for one in (self, other) if one.ends_at_s is not None]
        return reason._replace(ends_at_s=min(ends, default=None))

    def write(self, folder: Path) -> None:
        """Tell the other processes of this node, which read it in a folder that they share."""
        draft = folder / f"{_FILE}.{os.getpid()}"
        draft.write_text(json.dumps(self._asdict()))
        draft.replace(folder / _FILE)

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """What was told, if anything was."""
        try:
            return cls(**json.loads((folder / _FILE).read_text()))
        except FileNotFoundError:
            return None


ASKED = Notice("asked to stop")
MOVED = Notice("asked to go on on another machine")


class Cloud(NamedTuple):
    """What a kind of machine says of its end.

    Attributes:
        name: As people call it.
        notice_s: Between its word, SIGTERM included, and its end; 0: it gives none that one could count on.
        ask_every_s: How often it is asked.
        source: Makes what asks it; None: it says nothing but SIGTERM.
    """

    name: str
    notice_s: float = 0.0
    ask_every_s: float = 0.0
    source: "Callable[[], Callable[[], Notice | None]] | None" = None

    @property
    def shutdown_timeout_s(self) -> int:
        """What torchrun gives its ranks when a signal reaches it and not us: less than the notice."""
        return int(max(1.0, self.notice_s - SPARE_S)) if self.notice_s else _NO_NOTICE_S

    def on_signal(self) -> Notice:
        """What SIGTERM means there."""
        return ASKED._replace(ends_at_s=time.monotonic() + self.notice_s if self.notice_s else None)


class FinalSave(NamedTuple):
    """Whether a last checkpoint is durable before a machine is gone. `words`: its size, rate and time."""

    fits: bool
    words: str


def final_save_fits(num_bytes: float, upload_bytes_per_s: float | None, left_s: float | None) -> FinalSave:
    """Judge whether it is worth the try; it is where something is not known.

    Args:
        num_bytes: Of the checkpoint, and of one that has to be finished before it.
        upload_bytes_per_s: As saves of this run were measured, from their beginning until they were durable.
        left_s: Until the machine is gone.
    """
    size = f"{num_bytes / _GIB:.1f} GiB" if num_bytes >= _GIB else f"{num_bytes / _MIB:.1f} MiB"
    if not num_bytes or upload_bytes_per_s is None or left_s is None:
        return FinalSave(True, size)
    takes_s = num_bytes / upload_bytes_per_s
    words = f"{size} at {upload_bytes_per_s / _MIB:.1f} MiB/s: {takes_s:.0f} s"
    return FinalSave(takes_s <= left_s - SPARE_S, words)


def cloud_named(name: str, environ: Mapping[str, str] = os.environ) -> Cloud:
    """What a machine of that kind says of its end.

    Args:
        name: As SkyPilot has it, in small letters, see `trainer.machine.cluster_info`; empty: not known.
        environ: Of a process on it.
    """
    if name == "slurm":
        return _CLOUDS[name]._replace(notice_s=_kill_wait_s(), source=lambda: SlurmTime(environ))
    return _CLOUDS.get(name, Cloud(name))


def listen(cloud: Cloud, heard: Callable[[Notice], None], save_s: Callable[[], float]) -> None:
    """Ask a cloud in the background, for as long as this process lives or until it has given notice.

    Args:
        cloud: Which.
        heard: Told the notice, once it is time to leave.
        save_s: Gives the seconds that a save of the run takes; 0: none was measured.
    """
    if cloud.source is not None:
        threading.Thread(target=watch, args=(cloud, cloud.source(), heard), kwargs={"save_s": save_s},
                         daemon=True, name="notices").start()


def watch(cloud: Cloud, ask: Callable[[], Notice | None], heard: Callable[[Notice], None],
          sleep: Callable[[float], None] = time.sleep, *, save_s: Callable[[], float] = lambda: 0.0) -> None:
    """Ask until there is a notice, and time to leave. What is no answer is none, and is said once."""
    num_failed, first_left_s = 0, None
    while True:
        try:
            notice, num_failed = ask(), 0
        except (*NO_ANSWER, ValueError, KeyError, TypeError, AttributeError) as error:
            notice, num_failed = None, num_failed + 1
            if num_failed == _SILENT:
                print(f"warning: {cloud.name} does not say when it takes this machine back ({error!r}): what "
                      "is not durable then is lost", flush=True)
        if first_left_s is None and not num_failed:
            first_left_s = notice.left_s if notice else math.inf
        if notice is not None and _is_time(notice, first_left_s, save_s):
            heard(notice)
            return
        sleep(min(cloud.ask_every_s * 2**min(num_failed, 10), max(_MOST_WAIT_S, cloud.ask_every_s)))


def _is_time(notice: Notice, first_left_s: float | None, save_s: Callable[[], float]) -> bool:
    """Whether to leave: at the latest when a last checkpoint needs the time.

    Not where it needs half of the time that an attempt has begun with, or more: each would leave soon after
    its beginning, and the checkpoints in between keep more.
    """
    left_s = notice.left_s
    if left_s is None or first_left_s is None or left_s <= _AHEAD_S:
        return True  # without asking how long a save takes: the store may be slow to answer
    needs_s = _SAVES_AHEAD * save_s() + SPARE_S
    return left_s <= needs_s < first_left_s / 2


def _taken(who: str, left_s: float, does: str = "takes this machine back") -> Notice:
    at = datetime.now(UTC) + timedelta(seconds=left_s)
    return Notice(f"{who} {does} at {at:%H:%M:%S} UTC", time.monotonic() + left_s, is_taken=True)


def _left_s(at: datetime, answer: Answer) -> float:
    """Seconds until then by the clock of who said it: ours may be off by more than a notice is long."""
    said_at = answer.headers["Date"]
    now = parsedate_to_datetime(said_at) if said_at else datetime.now(UTC)
    return max(0.0, (at - now).total_seconds())


class AzureEvents:
    """Azure's Scheduled Events, version 2020-07-01."""

    _ENDS = {"Preempt": "takes this machine back", "Terminate": "deletes this machine",
             "Reboot": "restarts this machine", "Redeploy": "moves this machine"}  # `Freeze` is a pause

    def __init__(self, host: str = HOSTS["azure"]) -> None:
        self._base = f"http://{host}/metadata"
        self._name = ""
        self._timeout_s = _FIRST_ANSWER_S

    def __call__(self) -> Notice | None:
        """Raises one of `NO_ANSWER`, ValueError, KeyError, TypeError or AttributeError."""
        answer = self._read("scheduledevents?api-version=2020-07-01", self._timeout_s)
        self._timeout_s = ANSWER_S
        mine = [event for event in json.loads(answer.text)["Events"]
                if event["EventType"] in self._ENDS and self._is_here(event["Resources"])]
        ends = sorted((self._until_s(event, answer), event["EventType"]) for event in mine)
        return _taken("Azure", ends[0][0], self._ENDS[ends[0][1]]) if ends else None

    @staticmethod
    def _until_s(event: Mapping[str, str], answer: Answer) -> float:
        not_before = event["NotBefore"]  # empty for what has begun
        return _left_s(parsedate_to_datetime(not_before), answer) if not_before else 0.0

    def _is_here(self, names: list[str]) -> bool:
        """Machines of a group are told of each other's events. One without a name takes all as its own."""
        if not self._name:
            with contextlib.suppress(*NO_ANSWER):
                self._name = self._read("instance/compute/name?api-version=2021-02-01&format=text").text
        return not self._name or self._name.lower() in (name.lower() for name in names)

    def _read(self, path: str, timeout_s: float = ANSWER_S) -> Answer:
        return read(f"{self._base}/{path}", HEADERS["azure"], timeout_s=timeout_s)


class GoogleFlag:
    """GCP's `instance/preempted`, by requests that are answered when it changes."""

    def __init__(self, host: str = HOSTS["gcp"], notice_s: float = 30.0) -> None:
        self._url = f"http://{host}/computeMetadata/v1/instance/preempted"
        self._notice_s = notice_s
        self._seen = ""

    def __call__(self) -> Notice | None:
        """Raises one of `NO_ANSWER` or ValueError."""
        # What has changed since the version that was seen is answered at once.
        query = f"?wait_for_change=true&timeout_sec={_LONG_POLL_S:.0f}&last_etag={self._seen}"
        seen, self._seen = self._seen, ""
        answer = read(self._url + (query if seen else ""), HEADERS["gcp"], timeout_s=_LONG_POLL_S + ANSWER_S)
        if answer.text not in ("TRUE", "FALSE"):
            raise ValueError(f"instance/preempted is {answer.text[:40]!r}")
        self._seen = answer.headers["ETag"] or ""
        return _taken("Google", self._notice_s) if answer.text == "TRUE" else None


class AwsAction:
    """AWS's `spot/instance-action`, by version 2 of its service: there is none until there is a notice."""

    _TOKEN = ("X-aws-ec2-metadata-token-ttl-seconds", _TOKEN_S)

    def __init__(self, host: str = HOSTS["aws"]) -> None:
        self._base = f"http://{host}/latest"
        self._token = ""

    def __call__(self) -> Notice | None:
        """Raises one of `NO_ANSWER`, ValueError, KeyError or TypeError."""
        self._token = self._token or read(f"{self._base}/api/token", self._TOKEN, "PUT").text
        try:
            answer = read(f"{self._base}/meta-data/spot/instance-action",
                          ("X-aws-ec2-metadata-token", self._token))
        except HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            self._token = ""  # it has expired, most likely
            raise
        at = datetime.fromisoformat(json.loads(answer.text)["time"])
        return _taken("AWS", _left_s(at, answer))


class SlurmTime:
    """The end of a Slurm job's time, which it is told when it begins (Slurm 22.05 and newer)."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        end = environ.get("SLURM_JOB_END_TIME", "")
        self._end_s = float(end) if end.isdigit() else None

    def __call__(self) -> Notice | None:
        """It was known from the start, so nobody has taken anything."""
        if self._end_s is None:
            return None
        return _taken("Slurm", self._end_s - time.time(), "ends this job")._replace(is_taken=False)


class VastCredit:
    """The end of the prepaid credit that a machine of Vast lives on: at zero Vast stops it, then deletes it.

    Told when it was rented, counted down since. Where somebody has added to it meanwhile, the next machine is
    told of that, and little is lost; where nobody has, none is rented (`launcher/vast_credit.py`).
    """

    def __init__(self, home: Path | None = None, environ: Mapping[str, str] = os.environ,
                 seen: Callable[[], Traffic] = traffic) -> None:
        self._home, self._environ, self._seen = home or Path.home(), environ, seen

    def __call__(self) -> Notice | None:
        """Raises ValueError where the price of this machine cannot be read."""
        if (terms := terms_here(self._home)) is None or terms.credit_usd is None:
            return None
        try:
            price = Decimal(self._environ.get(Env.PRICE) or 0)
        except InvalidOperation as error:
            raise ValueError(f"{Env.PRICE} is no price") from error
        seen = self._seen()
        network_usd = terms.network_usd(seen.received_bytes, seen.sent_bytes)
        left_s = terms.credit_left_s(price, network_usd, datetime.now(UTC))
        if left_s is None or left_s > _LONG_S:
            return None
        return _taken("Vast", max(0.0, left_s), f"stops this machine, for {CREDIT_USED_UP},")


def _kill_wait_s(default_s: float = 30.0) -> float:
    """Between SIGTERM and SIGKILL, as this cluster is set up."""
    try:
        asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=10,
                               check=False)
    except (OSError, subprocess.TimeoutExpired):
        return default_s
    found = re.search(r"^KillWait\s*=\s*(\d+)", asked.stdout, re.MULTILINE)
    return float(found[1]) if found else default_s


_CLOUDS = {"azure": Cloud("Azure", 30.0, 1.0, AzureEvents), "gcp": Cloud("Google", 30.0, 1.0, GoogleFlag),
           "aws": Cloud("AWS", 120.0, 5.0, AwsAction), "slurm": Cloud("Slurm", 30.0, 5.0),
           "local": Cloud("the engine", STOP_GRACE_S), "vast": Cloud("Vast", 0.0, 30.0, VastCredit)}
