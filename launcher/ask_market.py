"""Asks Vast, through SkyPilot's server, what there is for a proposal; a plan does without an answer."""

from dataclasses import replace

from launcher.engines import sky_engine
from launcher.errors import EngineError
from launcher.market import wishes
from launcher.proposal import Proposal
from launcher.server_health import server_health
from launcher.settings import api_server
from trainer.store import open_store


def with_market(proposal: Proposal) -> Proposal:
    """The same with what Vast has for it now, or why that is not known. Starts no server."""
    url = proposal.recipe.store or ""
    # To open a folder is to make it, and a machine of Vast would not reach it.
    can_ask = url and not url.startswith("file:") and not proposal.is_local
    wanted = wishes(proposal.task.documents()) if can_ask else {}
    if not wanted:
        return proposal
    if server_health().error:  # before SkyPilot is imported, which takes seconds
        # Its URL may bear a password, so it is not named.
        why = "does not answer" if api_server() else "does not run; a launch starts it"
        return replace(proposal, market_problem=f"not asked: SkyPilot's API server {why}")
    engine = sky_engine(open_store(url))
    try:
        markets = {which: engine.market(wish) for which, wish in wanted.items()}
    except EngineError as error:
        return replace(proposal, market_problem=f"not known: {error.problem}")
    return replace(proposal, markets=markets, market_problem=None)
