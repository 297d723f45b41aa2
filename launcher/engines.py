"""Which engine carries a run out, and one look at a run through it."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from socket import gethostname
from typing import TYPE_CHECKING

from launcher.engine import ALIVE, Engine, EnginePhase, EngineState
from launcher.errors import EngineError, RunRecordError
from launcher.local_engine import LocalEngine
from launcher.rentals import Rentals, merged
from launcher.run_record import RunRecord, RunView, is_alive_elsewhere, look_at, read_record
from launcher.server_health import start_words
from launcher.settle import settle
from trainer.contract import CLOCK_SKEW, Name, StoreError
from trainer.run_folder import RunFolder
from trainer.store import Store

if TYPE_CHECKING:
    from launcher.sky_engine import SkyEngine



def sky_engine(store: Store, say: Callable[[str], None] = lambda line: None) -> "SkyEngine":
    """SkyPilot, for runs of this store."""
    from launcher.sky_engine import SkyEngine

    return SkyEngine(store, say)


def start_server(say: Callable[[str], None]) -> None:
    """Have SkyPilot's API server run, and say so where it is started. Raises EngineError."""
    from launcher.sky_server import start_server as start

    start(say)


def server_lacks(clouds: Collection[str]) -> Iterator[EngineError]:
    """What SkyPilot's API server lacks before one could rent through it. Raises EngineError: it is away."""
    from launcher.sky_server import sky_lacks

    yield from sky_lacks(clouds)


def check_server(clouds: Collection[str]) -> None:
    """Refuse to rent through an API server of SkyPilot that is not ready for it. Raises EngineError."""
    for error in server_lacks(clouds):
        raise error


def engine_at(infra: str, store: Store, say: Callable[[str], None] = lambda line: None) -> Engine:
    """The engine that carries runs out at a place: `local`, or a cloud in SkyPilot's language."""
    return LocalEngine() if infra == "local" else sky_engine(store, say)


def engine_of(record: RunRecord, store: Store) -> Engine:
    """The engine that a run was last given to."""
    return engine_at(record.infra, store)


def state_of(record: RunRecord, store: Store) -> EngineState:
    """What its engine knows of a run. A cloud is not asked about a run that its record has closed."""
    if record.has_ended and record.infra != "local":
        return EngineState(EnginePhase.ENDED)
    return engine_of(record, store).state(record.run_id)


def check_is_over(record: RunRecord, state: EngineState, now: datetime, *, if_here: str,
                  if_elsewhere: str) -> None:
    """Refuse what may only be done to a run that nothing carries out.

    Args:
        if_here: What to do about one that its engine has under way.
        if_elsewhere: About one that its engine does not have, and whose machine lives.

    Raises:
        RunRecordError: It runs, or nobody can tell.
    """
    if state.phase in ALIVE:
        raise RunRecordError(f"run {record.run_id} is running", place=record.url, fix=if_here)
    if is_hidden(record, state):
        raise cannot_tell(record, state)
    if is_alive_elsewhere(record, now) and not _knows_its_machine(record, state):
        host = record.attempts[-1].attempt.host
        raise RunRecordError(f"run {record.run_id} is running on {host}", place=record.url, fix=if_elsewhere)


def is_hidden(record: RunRecord, state: EngineState) -> bool:
    """True if a run at a cloud may cost money and write checkpoints, and its engine cannot say so."""
    return record.infra != "local" and state.phase is EnginePhase.UNKNOWN


def cannot_tell(record: RunRecord, state: EngineState) -> RunRecordError:
    """What is said of a run that is hidden."""
    ask = "see what SkyPilot says of it: .venv/bin/sky jobs queue" if state.word else start_words()
    return RunRecordError(f"whether run {record.run_id} is running cannot be told: {state.detail}",
                          place=record.url, fix=f"{ask}; then repeat this")


def _knows_its_machine(record: RunRecord, state: EngineState) -> bool:
    """True if what an engine says outweighs a recent sign of life."""
    if record.infra == "local":
        return state.phase is not EnginePhase.NONE and record.attempts[-1].attempt.host == gethostname()
    heard_since = state.ended_at and record.last_seen and record.last_seen > state.ended_at
    return state.phase is EnginePhase.ENDED and not heard_since


def view(record: RunRecord, store: Store) -> RunView:
    """Judge a run now; closes the record of one that ended at a cloud while nobody was looking."""
    state, now = state_of(record, store), datetime.now(UTC)
    with suppress(StoreError):  # who may only read sees the run as it stands
        folder, is_whole = RunFolder(store, record.run_id), not record.torn
        changed = record.infra != "local" and is_whole and settle(folder, record, state, now)
        if _learn_rentals(record, store) or changed:
            record = read_record(folder)
    return look_at(record, state, now)


def _learn_rentals(record: RunRecord, store: Store) -> bool:
    """Copy what SkyPilot's server knows of a run's machines into its folder. Returns True if it is news."""
    now = datetime.now(UTC)
    if Name.RENTALS in record.torn_names:  # what another server has told is perhaps still in it
        return False
    if not record.may_have_rentals and all(rental.is_settled(now) for rental in record.rentals):
        return False
    with suppress(EngineError):  # the bill is then made of what the nodes have written
        found = sky_engine(store).rentals(record.run_id) or Rentals(rentals=(), num_torn=record.num_torn)
        known = merged(record.rentals, found, _created_at(record))
        if (known.rentals, known.num_torn) != (tuple(record.rentals), record.num_torn):
            RunFolder(store, record.run_id).write(Name.RENTALS, known)
            return True
    return False


def _created_at(record: RunRecord) -> datetime:
    return record.events[0].at - CLOCK_SKEW if record.events else datetime.min.replace(tzinfo=UTC)
