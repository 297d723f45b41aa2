"""Asks Vast, through SkyPilot's server, what there is for a proposal; a plan does without an answer."""

import os
import socket
from dataclasses import replace
from urllib.parse import urlsplit

from launcher.controller_ssh import server_url
from launcher.engines import sky_engine
from launcher.errors import EngineError
from launcher.market import wishes
from launcher.proposal import Proposal
from launcher.settings import api_server
from trainer.store import open_store

_HERE = ("127.0.0.1", 46580)  # SkyPilot's own default
_PORT_HERE = "SKYPILOT_API_SERVER_LOCAL_PORT"
_CONNECTS_WITHIN_S = 1.0


def with_market(proposal: Proposal) -> Proposal:
    """The same with what Vast has for it now, or why that is not known. Starts no server."""
    url = proposal.recipe.store or ""
    # To open a folder is to make it, and a machine of Vast would not reach it.
    can_ask = url and not url.startswith("file:") and not proposal.is_local
    wanted = wishes(proposal.task.documents()) if can_ask else {}
    if not wanted:
        return proposal
    if not _is_listening():  # before SkyPilot is imported, which takes seconds
        # Its URL may bear a password, so it is not named.
        why = "does not answer" if api_server() else "does not run; a launch starts it"
        return replace(proposal, market_problem=f"not asked: SkyPilot's API server {why}")
    engine = sky_engine(open_store(url))
    try:
        markets = {which: engine.market(wish) for which, wish in wanted.items()}
    except EngineError as error:
        return replace(proposal, market_problem=f"not known: {error.problem}")
    return replace(proposal, markets=markets, market_problem=None)


def _is_listening() -> bool:
    try:
        url = urlsplit(server_url(api_server() or ""))
    except EngineError:  # ssh does not get there
        return False
    port = url.port or (443 if url.scheme == "https" else 80)
    address = (url.hostname, port) if url.hostname else (_HERE[0], int(os.environ.get(_PORT_HERE, _HERE[1])))
    try:
        socket.create_connection(address, timeout=_CONNECTS_WITHIN_S).close()
    except OSError:
        return False
    return True
