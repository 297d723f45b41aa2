"""Why a run could not be carried out now: a launch stops at the first reason, a plan tells them all."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

from launcher.engine import has_skypilot, missing
from launcher.engine_folder import engine_home
from launcher.engines import server_lacks, sky_engine
from launcher.errors import EngineError, LdlmError, NoOfferError, Refused, UsageError
from launcher.git_state import git_sha, uncommitted
from launcher.lint import lint
from launcher.local_setup import check_own_environment
from launcher.market import refusal as market_refusal
from launcher.market import refusal_by_list, wishes
from launcher.month import check_month
from launcher.next_steps import check_is_here, check_wandb_key
from launcher.node_secrets import node_secrets
from launcher.patience import soon
from launcher.preempt_at import PreemptAt
from launcher.proposal import Proposal
from launcher.recipe import checkout_folder
from launcher.regions import known_region
from launcher.render import Task
from launcher.run_record import check_free
from launcher.server_health import server_health
from launcher.settings import api_server
from launcher.sky_ready import RENTED
from launcher.sky_setup import lacking_here
from launcher.store_keys import Needs
from launcher.store_room import check_room
from trainer.run_folder import RunFolder
from trainer.store import may_exist, open_store

_MOST_FILES = 5  # named


def refusals(proposal: Proposal, *, resuming: bool = False, allow_dirty: bool = False,
             preempt_at: PreemptAt | None = None) -> Iterator[LdlmError]:
    """Every reason why nothing could be started; what is found at once comes first. Starts no server.

    Args:
        resuming: The run is there already.
        allow_dirty: Changes that are in no commit may go to the nodes.
        preempt_at: When the local engine shall take the machine away.
    """
    yield from _of(partial(check_is_here, proposal, resuming=resuming))
    yield from _of(partial(check_wandb_key, proposal))
    if proposal.is_local:
        yield from _of(_check_home)
        yield from _of(partial(check_own_environment, checkout_folder()))
        yield from _of(partial(check_room, proposal.plan, proposal.recipe))
    else:
        yield from _of_places(proposal, preempt_at)
    yield from _of_lint(proposal.task)
    yield from proposal.refusals
    yield from market_refusals(proposal, resuming=resuming)
    yield from _of_lists(proposal, resuming=resuming)
    if not (proposal.is_local or allow_dirty):
        yield from _of(_check_clean)
    yield from _of_store(proposal, resuming=resuming)
    if not proposal.is_local:
        yield from _of(partial(check_month, proposal, datetime.now(UTC)))
        yield from _of_server(proposal)


def check_usable(proposal: Proposal, *, resuming: bool = False, allow_dirty: bool = False,
                 preempt_at: PreemptAt | None = None) -> None:
    """Refuse what could not be carried out, before anybody is asked and anything is written.

    Raises:
        LdlmError: The first of `refusals`, of the kind that it is.
    """
    for error in refusals(proposal, resuming=resuming, allow_dirty=allow_dirty, preempt_at=preempt_at):
        raise error


def market_refusals(proposal: Proposal, *, resuming: bool) -> Iterator[LdlmError]:
    """What nothing fits that Vast has now, as far as it was asked."""
    wanted = wishes(proposal.task.documents()) if proposal.markets else {}
    for document, market in proposal.markets.items():
        if none := market_refusal(proposal.recipe, document, wanted[document], market, resuming=resuming):
            yield none


def _of_lists(proposal: Proposal, *, resuming: bool) -> Iterator[LdlmError]:
    """What nothing is to be had for by the prices of the plan, where Vast itself was not asked."""
    for document in dict.fromkeys(part.document for part in proposal.plan.parts):
        if document in proposal.markets:
            continue
        offer = proposal.plan.offers[document]
        if none := refusal_by_list(proposal.recipe, document, offer, resuming=resuming):
            yield none


def _of(check: Callable[[], object]) -> Iterator[LdlmError]:
    """What a check raises."""
    try:
        check()
    except LdlmError as error:
        yield error


def _of_places(proposal: Proposal, preempt_at: PreemptAt | None) -> Iterator[LdlmError]:
    if preempt_at:
        yield UsageError(f"machines at {proposal.infra} are not taken back at {preempt_at}",
                         place="--preempt-at",
                         fix="leave it out; --infra local plays the cloud that takes a machine")
    plan, place = proposal.plan, proposal.recipe.place("hardware")
    for infra in dict.fromkeys(offer.infra.partition("/")[0] for offer in plan.offers.values()):
        yield from missing(infra)
    for infra in dict.fromkeys(offer.infra for which in plan.offers for offer in plan.candidates(which)):
        yield from _of(partial(known_region, infra, place))


def _of_lint(task: Task) -> Iterator[LdlmError]:
    """Known traps; one that stands in several places is one reason."""
    places: dict[tuple[str, str], dict[str, list[str]]] = {}
    for found in lint(task):
        document, _, key = found.place.partition(": ")
        places.setdefault((found.problem, found.fix), {}).setdefault(key, []).append(document)
    for (problem, fix), keys in places.items():
        where = ", ".join(f"{' and '.join(documents)}: {key}" for key, documents in keys.items())
        yield NoOfferError(problem, place=where, fix=fix)


def _of_store(proposal: Proposal, *, resuming: bool) -> Iterator[LdlmError]:
    """Keys for the nodes; where they are here, whether the store can be read, and has no such run."""
    store = proposal.recipe.store
    if store is None:
        return
    lacks = [] if proposal.is_local else list(_of(partial(soon, partial(_try_keys, store, proposal.task))))
    yield from lacks
    if not (lacks or resuming) and may_exist(store):
        yield from _of(partial(soon, partial(_check_store, store, proposal.plan.run_id)))


def _try_keys(url: str, task: Task) -> None:
    """Make the keys that nodes would get: what keeps one from it is known before anybody approves."""
    needs = Needs.of_task(task.documents()[1]["envs"])
    node_secrets(url, os.environ, needs)


def _check_store(url: str, run_id: str) -> None:
    store = open_store(url)
    store.objects(run_id)  # a bucket that is not there says so only to who lists it
    check_free(RunFolder(store, run_id))


def _of_server(proposal: Proposal) -> Iterator[LdlmError]:
    """What SkyPilot's API server lacks, and SkyPilot itself says of the task; of one that is not started yet
    what its files will have it lack."""
    clouds, health = proposal.plan.clouds, server_health()
    if health.error is None and has_skypilot():
        try:
            yield from server_lacks(clouds)
            if proposal.recipe.store:  # that there is none is said elsewhere
                sky_engine(open_store(proposal.recipe.store)).check(proposal.task.text)
        except (EngineError, NoOfferError) as error:
            yield error
    elif api_server() and health.error:
        yield health.error
    elif clouds & set(RENTED):
        yield from lacking_here()


def _check_home() -> None:
    home = engine_home().absolute()
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise EngineError(f"cannot write the engine's folder: {nearest} is no folder that you may write",
                          place=str(home), fix="make it writable, or set LDLM_HOME to another folder")


def _check_clean() -> None:
    """Nobody could say later what has run if no commit holds it, and a file that was forgotten there, a key
    maybe, would go to a stranger's machine."""
    sha, place = git_sha(), str(checkout_folder())
    if sha is None:
        raise Refused("this is no git repository, or git does not answer: nobody could say what nodes run",
                      place=place, fix="work in a clone, or add --allow-dirty")
    if sha.endswith("-dirty"):
        names = uncommitted()
        more = f" and {len(names) - _MOST_FILES} more" if len(names) > _MOST_FILES else ""
        raise Refused(f"what is in no commit goes to the nodes, too: {', '.join(names[:_MOST_FILES])}{more}",
                      place=place, fix="commit it, name it in .gitignore, or add --allow-dirty")
