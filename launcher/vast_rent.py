"""Rents one machine of Vast and never two: an answer that got lost may have rented one all the same.

Vast's SDK repeats a request whose answer is lost, and so could rent once more. Here each request goes out
once. Where it stays unclear what came of it, the account's list of machines is asked before the next one.
"""

import time
from collections.abc import Callable
from copy import copy
from http import HTTPStatus
from typing import Any

from launcher import rental_log
from launcher.vast_onstart import without_mark

_MAX_TRIES = 5  # offers go while one looks at them
_PAUSES_S = (1.0, 5.0)  # where Vast wants fewer requests (guess)
# A gateway may have given up on a request that Vast carries out later, and a list may lag (guess).
_LOOKS, _BETWEEN_LOOKS_S = 12, 5.0

Offer = dict[str, Any]


def rent(sdk: Any, offers: list[Offer], contract: dict[str, Any],
         of_offer: Callable[[Offer], dict[str, Any]]) -> tuple[Offer, str]:
    """Rent the first offer that is still there.

    Args:
        sdk: Vast's, 1.9.1.
        contract: Words of its `create_instance`, with a `label`.
        of_offer: More of them, which differ by the offer.

    Returns:
        The offer, and the id of the instance.

    Raises:
        RuntimeError: None could be had, or it cannot be told whether one was.
    """
    import requests

    once, unheard = _without_retries(sdk), list[Offer]()
    for offer in offers[:_MAX_TRIES]:
        try:
            return offer, str(_answer(once, offer, contract | of_offer(offer))["new_contract"])
        except (requests.RequestException, LookupError) as error:
            said = _in_words(error)
            if is_refusal(error):
                continue
        unheard.append(offer)
        if found := _rented_unheard(sdk, unheard, contract["label"], said):
            return found
    raise RuntimeError(f"Vast rents out none of the {len(offers)} machines that it offers: {said}")


def _without_retries(sdk: Any) -> Any:
    """The SDK with another client: others in this process go on using theirs."""
    once = copy(sdk)
    once.client = copy(sdk.client)
    once.client.retry = 1
    return once


def _answer(once: Any, offer: Offer, contract: dict[str, Any]) -> Any:
    """Vast's answer to one request, asked anew only where it has not looked at the first."""
    import requests

    for pause_s in _PAUSES_S:
        try:
            return once.create_instance(id=offer["id"], **contract)
        except requests.HTTPError as error:
            if _status(error) != HTTPStatus.TOO_MANY_REQUESTS:
                raise
            time.sleep(pause_s)
    return once.create_instance(id=offer["id"], **contract)


def _status(error: Exception) -> int | None:
    """Of Vast's answer; None: there was none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_refusal(error: Exception) -> bool:
    """True if Vast itself says that it has not done what it was asked for."""
    status = _status(error)
    return status is not None and 400 <= status < 500 and status != HTTPStatus.REQUEST_TIMEOUT


def _in_words(error: Exception) -> str:
    """What Vast answered. The SDK's own words may name an address that bears the account's key."""
    status = _status(error)
    return f"it answers {status}" if status else f"its answer got lost ({type(error).__name__})"


def _rented_unheard(sdk: Any, offers: list[Offer], label: str, said: str) -> tuple[Offer, str] | None:
    """The machine that was rented although nothing has told so; None: none was.

    Args:
        offers: That were asked for without a clear answer.
        said: What came instead of the last one.

    Raises:
        RuntimeError: Vast does not tell. SkyPilot then ends what bears this label, and begins anew.
    """
    import requests

    by_machine = {offer["machine_id"]: offer for offer in offers}
    try:
        for look in range(_LOOKS):
            time.sleep(_BETWEEN_LOOKS_S if look else 0)
            rows = _unknown(sdk.show_instances(), label)
            kept = next((row for row in rows if row["machine_id"] in by_machine), None)
            if kept:
                for row in rows:
                    if row is not kept:
                        sdk.destroy_instance(id=row["id"])
                return by_machine[kept["machine_id"]], str(kept["id"])
    except requests.RequestException as error:
        raise RuntimeError(f"Vast may have rented out machine {offers[-1]['machine_id']} ({said}), and does "
                           f"not tell ({_in_words(error)}): no other one is rented") from error
    return None


def _unknown(rows: list[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    """Machines of this label about which nothing is noted down: all others were rented before."""
    known = rental_log.read()
    return [row for row in rows if without_mark(row["label"]) == label and str(row["id"]) not in known]
