"""What earlier runs have seen of machines, by place, and what is believed of an offer by it. Pure.

The same card in another region of a cloud, or another number of them in a machine, is another market with
much in common: all that runs have seen there counts as one run would here, however many they were. Other
clouds and other cards count nothing: they have other customers.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from launcher.availability import GUESS_LOSS_SPREAD, GUESS_WAIT_SPREAD, Availability, Seen, learned
from launcher.offers import Offer
from launcher.vast_credit import lacked_credit
from trainer.contract import Document
from trainer.interval import Life, lives_of
from trainer.run_folder import STARTS, TAKEN, AttemptFiles, Event

# Hours until a machine is lost that its cloud may take back, all guesses. Vast names no rate, and who bids
# more takes the machine: between the 2.2 h of public traces (AWS spot, V100 and K80, 2022 and 2023) and the
# 20 h of Azure's lowest band, 0 to 5 % an hour. Azure: the middle of its bands, 10 %. Google names none: half
# the day that its preemptible machines lived at most.
_SPOT_HOURS_TO_LOSS = {"vast": 7.0, "azure": 10.0, "gcp": 12.0}
_HOURS_TO_LOSS = 500.0  # of any other: a fault of the machine (guess)
# Hours without a machine after a loss. Vast has many hosts (guess). Others: AWS, 2022 and 2023, 0.3 to 4 h,
# 1.3 h in the middle; waits of half an hour to one are told of GCP.
_SPOT_HOURS_TO_MACHINE = {"vast": 0.2, "azure": 1.0, "gcp": 1.0}
_ON_DEMAND_HOURS_TO_MACHINE = 0.05  # of clouds (guess)
_NO_MORE = ("stop_requested", "ended", *STARTS)  # kinds of events with which a search for a machine ends


class Place(NamedTuple):
    """Where machines of one kind are to be had: `infra` with a region, or none where any will do."""

    infra: str
    gpu: str | None
    num_gpus: int
    num_nodes: int
    spot: bool

    @classmethod
    def of(cls, offer: Offer, region: str = "") -> "Place":
        """That of an offer, or of a machine that was had by it in a region. Zones count as their region."""
        infra = f"{offer.cloud}/{region}" if region else offer.infra
        region = "/".join(infra.lower().split("/")[:2])
        return cls(region, offer.gpu, offer.num_gpus, offer.num_nodes, offer.spot)

    def holds(self, other: "Place") -> bool:
        """True where a machine at the other place is one of this."""
        return self._replace(infra=other.infra) == other and self.infra in (other.infra, other.cloud)

    def is_like(self, other: "Place") -> bool:
        """True where what is seen at the other says something of this one."""
        return (self.cloud, self.gpu, self.num_nodes, self.spot) == (
            other.cloud, other.gpu, other.num_nodes, other.spot)

    @property
    def cloud(self) -> str:
        """First part of infra."""
        return self.infra.partition("/")[0]


class Sighting(NamedTuple):
    """What one run has seen of one place."""

    run_id: str
    place: Place
    seen: Seen


def sightings_of(run_id: str, offers: Mapping[str, Offer], attempts: Sequence[AttemptFiles],
                 events: Sequence[Event], now: datetime) -> list[Sighting]:
    """What a run has seen, place by place.

    A loss is a machine that was taken back. One that lives, was given back or stopped by a person, or whose
    program crashed or hung, adds its hours and no loss; so does one that was taken since its account had
    prepaid nothing more. A wait counts from a machine that was taken back until the next; its end was not
    seen where the run went elsewhere, was stopped or gave up. This machine is left out: what is taken from a
    run here is taken in play.

    Args:
        offers: What it may have trained on, by label.
        attempts: In order.
        events: Of the run.
        now: UTC.
    """
    of_ours = {event.detail.get("attempt") for event in events if event.kind == TAKEN}
    of_ours |= {files.attempt.number for files in attempts if files.end and lacked_credit(files.end)}
    training = [files.attempt for files in attempts if files.attempt.document is Document.TRAIN]
    places = {attempt.number: Place.of(offer, attempt.region) for attempt in training
              if (offer := offers.get(attempt.offer)) and not offer.is_local}
    found: dict[Place, list[Seen]] = {}
    for life in lives_of(attempts, now):
        if place := places.get(life.number):
            is_lost = life.was_taken and life.number not in of_ours
            wait_h, is_over = _wait(life, attempts, events) if is_lost else (0.0, False)
            found.setdefault(place, []).append(
                Seen(losses=int(is_lost), up_h=life.hours, returns=int(is_over), down_h=wait_h))
    return [Sighting(run_id, place, together(seen)) for place, seen in found.items()]


def _wait(life: Life, attempts: Sequence[AttemptFiles], events: Sequence[Event]) -> tuple[float, bool]:
    """Hours in which a run looked for a machine after one was taken back, and whether it got one by the same
    offer, in whichever region."""
    until = [event.at for event in events if event.kind in _NO_MORE and event.at > life.until]
    later = [files.attempt for files in attempts
             if files.attempt.number > life.number and not (files.end and files.end.wrong_machine)]
    if later and later[0].billed_from <= min(until, default=later[0].billed_from):
        hours = (later[0].billed_from - life.until).total_seconds() / 3600
        return max(0.0, hours), later[0].offer == life.offer
    return (min(until) - life.until).total_seconds() / 3600 if until else 0.0, False


def together(seen: Iterable[Seen]) -> Seen:
    """As if one run had seen it all."""
    parts = list(seen)
    return Seen(losses=sum(one.losses for one in parts), up_h=sum(one.up_h for one in parts),
                returns=sum(one.returns for one in parts), down_h=sum(one.down_h for one in parts))


def with_seen(offer: Offer, sightings: Sequence[Sighting]) -> Offer:
    """An offer with what runs have seen of its place, and of those like it."""
    place, here, elsewhere = Place.of(offer), dict[str, list[Seen]](), list[Seen]()
    for sighting in sightings:
        if place.holds(sighting.place):
            here.setdefault(sighting.run_id, []).append(sighting.seen)
        elif place.is_like(sighting.place):
            elsewhere.append(sighting.seen)
    return offer.model_copy(update={"seen": tuple(map(together, here.values())),
                                    "seen_elsewhere": together(elsewhere) if elsewhere else None})


def guessed(offer: Offer) -> Availability:
    """What is believed of an offer before any run of ours was there; of a bid by its margin (a model)."""
    of_cloud = _SPOT_HOURS_TO_LOSS[offer.cloud] if offer.spot else _HOURS_TO_LOSS
    if offer.spot:
        waits_h = _SPOT_HOURS_TO_MACHINE[offer.cloud]
    else:
        waits_h = 0.0 if offer.is_local else _ON_DEMAND_HOURS_TO_MACHINE
    return Availability(hours_to_loss=offer.hours_to_outbid or of_cloud, loss_spread=GUESS_LOSS_SPREAD,
                        hours_to_machine=waits_h, wait_spread=GUESS_WAIT_SPREAD)


def believed(offer: Offer) -> Availability:
    """The guess, moved by what earlier runs have seen."""
    return learned(guessed(offer), (*offer.seen, *_elsewhere(offer)))


def believed_by(offer: Offer) -> str:
    """Where that comes from: `3 of your runs, 41 h`, or `guess`."""
    told = []
    if offer.seen:
        runs = f"{len(offer.seen)} of your runs" if offer.seen[1:] else "1 run of yours"
        told.append(f"{runs}, {together(offer.seen).up_h:.3g} h")
    told += [f"{seen.up_h:.3g} h elsewhere on {offer.cloud}" for seen in _elsewhere(offer)]
    return "; ".join(told) or "guess"


def _elsewhere(offer: Offer) -> tuple[Seen, ...]:
    return (offer.seen_elsewhere,) if offer.seen_elsewhere else ()
