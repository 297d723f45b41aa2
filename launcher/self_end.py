"""What ends a rented machine whose controller has died, for each cloud: the words for plan and doctor. Pure.

On Vast `launcher/vast_onstart.py` does it, on GCP and Azure `trainer/deadman.py`.
"""

from collections.abc import Iterable, Iterator

from launcher.offers import Offer
from trainer.deadman import IDLE_LIMIT_S

_HOW = {
    "vast": ("destroys itself by its own key", "seen in the lab, not at Vast"),
    "gcp": ("deletes itself by SkyPilot's service account, or powers off, which leaves the bill of its disk",
            "never seen there"),
    "azure": ("deletes itself by SkyPilot's managed identity; its public address stays, about $0.12 a day",
              "never seen there"),
}
_NOT_RENTED = ("local", "slurm")  # there nobody bills by the hour; Slurm ends jobs by a limit of its own


def self_end(cloud: str) -> str | None:
    """What a machine of a cloud does when nobody needs it; None where it does nothing."""
    if cloud not in _HOW:
        return None
    how, seen = _HOW[cloud]
    return f"after {IDLE_LIMIT_S / 60:g} minutes without a trainer a machine {how} ({seen})"


def of_no_switch(offers: Iterable[Offer]) -> Iterator[str]:
    """Warnings of a plan: clouds whose machines would be billed for as long as nobody looks."""
    for cloud in dict.fromkeys(offer.cloud for offer in offers):
        if cloud not in _HOW and cloud not in _NOT_RENTED:
            yield (f"on {cloud} a machine whose controller has died does not end itself: it is billed until "
                   "you end it")
