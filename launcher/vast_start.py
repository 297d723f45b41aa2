"""Which rented machine of Vast will never start, by what Vast says of it or does not say. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from launcher.rentals import Rental

_LONGEST_START = timedelta(minutes=25)  # an image of 10 GB on a slow line; then it is cut (guess)
_OUTBID_AT_ONCE = timedelta(minutes=2)  # stopped, and has never run: SkyPilot would wait for ever (guess)
_GONE_FOR = timedelta(minutes=1)  # a list may lack for a moment what is there, above all what is new (guess)
# At these words of an instance's `status_msg` Vast's own SDK gives up (1.3.0, cli/commands/machines.py).
_FAILED = re.compile(r"error|failed|failure|exception|oci runtime|permission denied", re.IGNORECASE)
# Docker's words for an image that no machine can pull; its limit of pulls per address is not among them.
_NO_IMAGE = re.compile(r"manifest (for .* not found|unknown)|pull access denied|no such image"
                       r"|repository .* not found|requested access to the resource is denied"
                       r"|invalid reference format|no matching manifest", re.IGNORECASE)


@dataclass(frozen=True)
class Hopeless:
    """Why a machine is given back.

    Attributes:
        unpulled: The image, where it is the image's fault.
    """

    why: str
    unpulled: str | None = None


def hopeless(rental: Rental, instance: Mapping[str, Any] | None, now: datetime) -> Hopeless | None:
    """Why a machine will not start any more; None: it may, it runs, or it has run.

    Args:
        instance: As SkyPilot lists it; None: it is not in its list.
    """
    if instance is None or instance["status"] == "RUNNING" or rental.running_at is not None:
        return None
    said, waited = (instance.get("status_msg") or "").strip(), now - rental.rented_at
    if _FAILED.search(said):
        image = instance.get("image_uuid") if _NO_IMAGE.search(said) else None
        return Hopeless(f"does not start: {said}", image)
    is_stopped = instance["status"] in ("EXITED", "STOPPED")
    if waited > (_OUTBID_AT_ONCE if is_stopped else _LONGEST_START):
        return Hopeless(f"has not started in {waited.total_seconds() / 60:.0f} minutes")
    return None


def lost(rental: Rental, now: datetime, *, is_listed: bool) -> str | None:
    """Why it is in vain to wait for a machine that has not been ready yet; None: it is not.

    Args:
        is_listed: Vast's list has it now.
    """
    if rental.given_up:
        return f"{rental.given_up}, so it was given back"
    if rental.ended_at is None:
        return None
    if rental.given_back_at:
        return "was given back before it was ready"
    is_gone = not is_listed and now - rental.ended_at >= _GONE_FOR
    return "is gone: it vanished before it was ready" if is_gone else None
