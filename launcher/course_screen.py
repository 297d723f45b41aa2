"""What a run with a deadline has decided last, on its screens: what, when, why, until when."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from launcher import console
from launcher.errors import LdlmError
from launcher.run_record import RunRecord, RunView, Status
from launcher.runs import open_run
from trainer.run_folder import RunFolder, last_start
from trainer.store import Store, open_store

if TYPE_CHECKING:
    from launcher.next_move import Move

_NEVER_PAYS = "spot-only"  # the one policy that takes no on demand, whatever is late


def newest_move(store: Store, record: RunRecord) -> "Move | None":
    """The last decision of a run since it was last started; one without a deadline has none, and its store
    is not asked. Raises StoreError: it cannot be read."""
    if not record.has_deadline:
        return None
    from launcher.course_record import CourseRecord  # brings NumPy

    move = CourseRecord(RunFolder(store, record.run_id)).newest()
    started = last_start(record.events)
    return None if move and started and move.seen.at < started else move


def course_facts(view: RunView) -> list[tuple[str, str]]:
    """For the screen of a run that goes on: its newest decision; nothing where none was taken."""
    if view.status is Status.ENDED:
        return []
    try:
        move = newest_move(open_store(view.record.store_address), view.record)
    except LdlmError as error:
        return [("course", f"cannot be read: {error}")]
    if move is None:
        return []
    at = move.seen.at
    return [("course", move_words(move)), ("", move.reason),
            ("", f"decided {at:%Y-%m-%d %H:%M} UTC, again by {_clock(move.again_at, at)}")]


def say_course(run_id: str, store_option: str | None) -> None:
    """Above what its nodes print, as talk: what a run that goes on holds or waits for. Nothing is said where
    its record cannot be read: what nodes print may be read all the same."""
    try:
        store, record = open_run(run_id, store_option)
        move = None if record.has_ended else newest_move(store, record)
    except LdlmError:
        return
    if move:
        say_move(move, console.talk)


def say_move(move: "Move", say: Callable[[str, str], None]) -> None:
    """A decision and its reason, each as a line and its style."""
    say(f"course: {move_words(move)}", "title")
    say(f"  {move.reason}", "quiet")


def move_words(move: "Move") -> str:
    """A decision in words for one line."""
    if move.action == "on_demand":
        return "on demand"
    last = f"on demand at {_clock(move.on_demand_at, move.seen.at)} at the latest"
    if move.policy == _NEVER_PAYS:
        last = "never on demand"
    elif move.left_usd is not None and move.left_usd < move.on_demand_usd:
        last = "the cap does not pay on demand to the end"
    return f"waits for spot; {last}" if move.action == "wait" else f"spot; when it is lost, {last}"


def _clock(moment: datetime, now: datetime) -> str:
    return f"{moment:%H:%M}" + (" UTC" if moment.date() == now.date() else f" UTC on {moment:%m-%d}")


def course_json(view: RunView) -> dict[str, Any]:
    """The same for programs; null where none was taken."""
    move = newest_move(open_store(view.record.store_address), view.record)
    return {"course": None if move is None else {
        "decided_at": move.seen.at.isoformat(), "policy": move.policy, "action": move.action,
        "place": move.place, "reason": move.reason, "again_at": move.again_at.isoformat(),
        "on_demand_at": None if move.policy == _NEVER_PAYS else move.on_demand_at.isoformat(),
        "cap_leaves_usd": move.left_usd, "on_demand_to_end_usd": move.on_demand_usd}}
