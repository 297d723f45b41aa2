"""`ldlm cost --reconcile`: our ledger beside what others have on record, and why they may differ.

Of Vast it is the account's own charges. Of other clouds it is SkyPilot's cost report, which is no bill: its
catalog's price times the time that it saw a cluster up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from launcher import console
from launcher.attempt_cost import AttemptCost
from launcher.engines import sky_engine
from launcher.errors import EngineError
from launcher.reconcile import Charge, Charges, Reconciliation, charges_path, costs_path, reconcile
from launcher.rental_cost import Parts, on_rentals, parts_by_instance
from launcher.rentals import RENTED_AT
from launcher.report import cost_report
from launcher.run_record import RunView
from trainer.spent import charged_until
from trainer.store import open_store

_CENT = Decimal("0.01")
_OF_VAST = {"gpu": ("gpu",), "disk": ("disk",), "network": ("bwd", "bwu")}
_WHY = {
    "gpu": "Vast bills GPUs while its own clock sees the machine run, we from its boot to its last word, or "
           "until it was given back",
    "disk": "Vast does not say how many hours its month has: we count 720",
    "network": "Vast counts bytes at its host, we at the machine's card, to its last heartbeat"}


@dataclass(frozen=True)
class Side:
    """One record beside our ledger.

    Attributes:
        who: Whose record.
        found: None: nobody could be asked.
        why: Why they may differ, or why nobody could be asked.
    """

    run_id: str
    who: str
    found: Reconciliation | None
    why: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Stable form: `who`, `why`, and what `Reconciliation.to_json` says, or null."""
        return {"who": self.who, "compared": self.found.to_json() if self.found else None,
                "why": list(self.why)}


Ask = Callable[[str], Charges]


def sides_of(view: RunView) -> list[Side]:
    """Every record that there may be of a run; none of one that ran here."""
    engine = sky_engine(open_store(view.record.store_address), console.talk)
    return list(compare(view, engine.charges))


def compare(view: RunView, ask: Ask) -> Iterator[Side]:
    """Ask for each record and put it beside the ledger.

    Args:
        view: Of the run.
        ask: Answers a path of `launcher/reconcile.py`, or raises EngineError.
    """
    if view.record.rentals:
        yield _asked(view, "Vast's charges", lambda: _at_vast(view, ask))
    if _elsewhere(view):
        yield _asked(view, "SkyPilot's cost report", lambda: _at_skypilot(view, ask))


def _asked(view: RunView, who: str, look: Callable[[], tuple[Reconciliation, list[str]]]) -> Side:
    try:
        return Side(view.record.run_id, who, *look())
    except EngineError as error:
        return Side(view.record.run_id, who, None, [f"could not be asked: {error.problem}"])


def _at_vast(view: RunView, ask: Ask) -> tuple[Reconciliation, list[str]]:
    record = view.record
    charges = ask(charges_path(record.rentals)).charges
    ours = parts_by_instance(record.attempts, charged_until(record.attempts, view.charged_to),
                             record.rentals, view.charged_to)
    found = reconcile({name: parts.usd for name, parts in ours.items()}, charges)
    mine = [charge for charge in charges if charge.instance_id in ours]
    return found, list(_why_at_vast(view, found, ours, mine))


def _why_at_vast(view: RunView, found: Reconciliation, ours: dict[str, Parts],
                 charges: Sequence[Charge]) -> Iterator[str]:
    if found.missing:
        yield f"not in Vast's record yet, which comes late: {', '.join(found.missing)}"
    if still := [rental.instance_id for rental in view.record.rentals if not rental.ended_at]:
        yield f"still rented, so that both go on: {', '.join(still)}"
    for kind, names in _OF_VAST.items():
        mine = sum((getattr(ours[charge.instance_id], f"{kind}_usd") for charge in charges), Decimal(0))
        theirs = sum((charge.usd_by_kind.get(name, Decimal(0)) for charge in charges for name in names),
                     Decimal(0))
        if abs(mine - theirs) >= _CENT:
            yield f"{kind}: ours {_signed(mine - theirs)}; {_WHY[kind]}"
    if not found.missing and 0 < abs(found.ours_usd - found.theirs_usd) < _CENT:
        yield "less than a cent: Vast's amounts have three decimals"


def _at_skypilot(view: RunView, ask: Ask) -> tuple[Reconciliation, list[str]]:
    attempts = _elsewhere(view)
    since = min(cost.began_at for cost in attempts)
    charges = ask(costs_path(view.record.run_id, since)).charges
    whole = "all clusters"  # a cluster that is made again keeps its name: attempts are not told apart
    theirs = [Charge(instance_id=whole, usd=sum((one.usd for one in charges), Decimal(0)), usd_by_kind={})]
    ours = sum((cost.usd - sum(cost.beside.values()) for cost in attempts), Decimal(0))
    found = reconcile({whole: ours}, theirs if charges else [])
    return found, [
        "no bill: its catalog's price now times the time that it saw clusters up; ours is the price of the "
        "plan from boot to the last word. Both are without disks and networks" if charges
        else "SkyPilot's server has no cluster of this run on record: another one may have"]


def _elsewhere(view: RunView) -> list[AttemptCost]:
    """Attempts on clouds whose contracts nobody has noted down."""
    record = view.record
    held = on_rentals(record.attempts, charged_until(record.attempts, view.charged_to), record.rentals,
                      view.charged_to)
    rented = {files.attempt.number for files, on in zip(record.attempts, held, strict=True)
              if on.gpu_usd is None and files.attempt.cloud not in ("", RENTED_AT)}
    return [cost for cost in cost_report(view).attempts if cost.number in rented]


def show_sides(sides: Sequence[Side]) -> None:
    """Each record beside the ledger: dollars, the difference, why it may be."""
    if not sides:
        console.answer("nothing was rented, so nobody else has a record of it")
    for number, side in enumerate(sides):
        if number:
            console.answer()
        console.answer(f"{side.run_id}: our ledger beside {side.who}", "title")
        if side.found:
            console.answer()
            _show(side.found)
        if side.why:
            console.answer()
            console.answer_notes(side.why)


def _show(found: Reconciliation) -> None:
    rows = [[one.instance_id, console.dollars(one.ours_usd, 4),
             "-" if one.theirs_usd is None else console.dollars(one.theirs_usd, 4),
             _signed(one.difference_usd)] for one in found.machines]
    console.answer_table(["machine", "ours", "theirs", "difference"], rows, right=[1, 2, 3], total=[
        "total", console.dollars(found.ours_usd, 4), console.dollars(found.theirs_usd, 4),
        _signed(found.ours_usd - found.theirs_usd)])


def _signed(usd: Decimal) -> str:
    return f"{'+' if usd > 0 else '-' if usd < 0 else ''}{console.dollars(abs(usd), 4)}"
