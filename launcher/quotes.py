"""Plans that were shown, kept for a while as files: a launch can carry out exactly one, by its digest."""

import hashlib
import re
import shlex
from dataclasses import fields
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from launcher.commands import PlanOptions
from launcher.errors import UsageError
from launcher.frozen import Frozen
from launcher.home import ldlm_home, write_atomically
from launcher.plan import Plan
from launcher.proposal import Proposal
from launcher.recipe import Recipe

_SHOWN, _LEAST = 12, 8  # hex digits of a digest: those that a screen names, those that have to be typed
# At Vast a machine is in 17 % of the looks at its market, in the median; prices of other clouds move by the
# day. How long one may be taken for true is a guess, for both.
_HOLDS_AT_VAST, _HOLDS = timedelta(minutes=15), timedelta(hours=1)
_KEPT = timedelta(days=7)  # so long it is told why one is stale, instead of that nobody knows it (guess)
_NEW = "ldlm plan RECIPE makes one"

Command = Literal["launch", "resume", "bench"]


class Order(Frozen):
    """What was typed.

    Attributes:
        command: The one that carries it out.
        what: A recipe; of a resume and of a benchmark the run.
    """

    command: Command
    what: str
    options: PlanOptions

    @property
    def to_plan_anew(self) -> str:
        """What shows the plan as it is now; of a run its own command, which asks."""
        command = "plan" if self.command == "launch" else self.command
        words = ["ldlm", command, self.what]
        for field in fields(PlanOptions):
            value = getattr(self.options, field.name)
            if field.name == "overrides":
                words += [word for item in value for word in ("--set", item)]
            elif value is not None:
                words += [f"--{field.name.replace('_', '-')}", value]
        return shlex.join(words)


class Quote(Frozen):
    """A plan that can be approved by its digest.

    Attributes:
        task_digest: Of the task that is rendered from it.
        commit: Of the checkout; None where git does not tell.
    """

    order: Order
    plan: Plan
    recipe: Recipe
    task_digest: str
    commit: str | None

    @classmethod
    def of(cls, order: Order, proposal: Proposal, commit: str | None) -> "Quote":
        """The quote of a proposal."""
        return cls(order=order, plan=proposal.plan, recipe=proposal.recipe,
                   task_digest=proposal.task.digest, commit=commit)

    @property
    def holds_until(self) -> datetime:
        """UTC. From then on its prices are not taken for true any more, whoever may still offer them."""
        life = _HOLDS_AT_VAST if "vast" in self.plan.clouds else _HOLDS
        return self.plan.planned_at + life

    @cached_property
    def text(self) -> str:
        """Its file."""
        return self.model_dump_json()

    @property
    def digest(self) -> str:
        """SHA-256 of its file, as 64 hex digits.

        It covers all that is approved and all that is carried out: the plan whole (its run id and the moment
        at which it was planned, offers with their prices, hours, dollars, limits, deadline, warnings), the
        recipe with everything that was typed and settled, the bytes of the rendered task, the commit, and
        the words that were typed. So no two plans have the same one, and one plan is launched once: its run
        id is then taken. It does not cover what is only looked up for the screen (Vast's market), nor files
        that are in no commit; `launch` refuses to send such files to rented machines.
        """
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def short_digest(self) -> str:
        """As screens name it, and as it may be typed."""
        return self.digest[:_SHOWN]

    @property
    def words(self) -> str:
        """For a screen."""
        return f"until {self.holds_until:%Y-%m-%d %H:%M} UTC, as --plan {self.short_digest}"


def keep(quote: Quote, now: datetime) -> None:
    """Write its file, for its owner alone, and delete those that are old. Raises OSError."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.glob("*.json"):
        if now.timestamp() - path.stat().st_mtime > _KEPT.total_seconds():
            path.unlink(missing_ok=True)
    write_atomically(folder / f"{quote.digest}.json", quote.text, mode=0o600)


def find(typed: str, command: Command, what: str | None) -> Quote:
    """The quote of a digest, or of its first digits.

    Args:
        command: That was typed.
        what: Recipe or run that was typed; None: any.

    Raises:
        UsageError: It is no digest; nobody knows it; several begin like it; its file is damaged; it is of
            another command or another run.
    """
    path = _path(typed)
    quote = _read(path)
    known = quote.order
    if known.command != command or what not in (None, known.what):
        run = "" if known.command == "launch" else f" {known.what}"
        raise UsageError(f"it is the plan of ldlm {known.command} {known.what}", place=_place(typed),
                         fix=f"type ldlm {known.command}{run} --plan {typed}")
    return quote


def _path(typed: str) -> Path:
    digits = typed.lower()
    if not re.fullmatch(r"[0-9a-f]{1,64}", digits):
        raise UsageError("is no digest of a plan, which has 64 of the digits 0-9 a-f", place=_place(typed),
                         fix=f"type what a plan says of itself: {_NEW}")
    if len(digits) < _LEAST:
        raise UsageError(f"is too short to be the digest of one plan: {len(digits)} digits",
                         place=_place(typed), fix=f"type at least its first {_LEAST} digits")
    found = sorted(_folder().glob(f"{digits}*.json"))
    if not found:
        raise UsageError("no plan with this digest is kept here", place=_place(typed),
                         fix=f"{_NEW}, and says its digest; they are kept for {_KEPT.days} days")
    if found[1:]:
        names = " and ".join(path.stem[:len(digits) + _LEAST] for path in found[:2])
        raise UsageError("several plans begin like this", place=_place(typed),
                         fix=f"type more of it: {names}")
    return found[0]


def _read(path: Path) -> Quote:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != path.stem:
        raise UsageError("is torn, or was changed after it was shown: it is not the plan of its digest",
                         place=str(path), fix=_NEW)
    try:
        return Quote.model_validate_json(data)
    except ValidationError as error:
        raise UsageError("is of another version of ldlm", place=str(path), fix=_NEW) from error


def _place(typed: str) -> str:
    return f"--plan {typed}"


def _folder() -> Path:
    return ldlm_home() / "quotes"
