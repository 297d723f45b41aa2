"""Plan -> Course: what a run with a deadline may take, what that costs, and how long it has. Pure."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

from launcher.course import Course, Place, overhead_of
from launcher.offers import Offer
from launcher.plan import Plan
from launcher.recipe import Recipe
from launcher.store_prices import sent_usd_per_gb, store_price
from trainer.contract import Document, Env

_HOUR_S = 3600.0
# Between two decisions: what `simulate` looks at, ten minutes, and of short runs a 150th (guess).
_LONGEST_TICK_S, _TICKS = 600.0, 150
_UNDISTURBED = ("training", "evaluating and saving")  # losses and waits are what is decided about
_UNKNOWN = Decimal("Infinity")


def course_of(plan: Plan, recipe: Recipe, envs_of: Callable[[Offer], dict[str, str]],
              wishes_of: Callable[[Offer], dict[str, Any] | None]) -> Course | None:
    """The course of a planned run; None where there is nothing to decide by time: no deadline, or no spot
    that is cheaper than on demand by prices that are known.

    Args:
        envs_of: What nodes are told of the offer that they are.
        wishes_of: What Vast is asked for where an offer is there.
    """
    offers = _both_kinds(plan.candidates(Document.TRAIN))
    spot, on_demand = (min((_price(offer) for offer, is_spot in offers
                            if is_spot == kind), default=_UNKNOWN) for kind in (True, False))
    if plan.deadline is None or plan.start is None or not spot < on_demand < _UNKNOWN:
        return None
    hours = sum(float(part.hours.mid) for part in plan.parts if part.name in _UNDISTURBED)
    whole_h = (plan.deadline - plan.planned_at) / timedelta(hours=1)
    start_h, lost_h = overhead_of(whole_h, hours, plan.start.again_s / _HOUR_S,
                                  plan.saves.lost_s / _HOUR_S if plan.saves else 0.0)
    tick_s = min(_LONGEST_TICK_S, max(1.0, whole_h * _HOUR_S / _TICKS))
    resources = [_rented_as(offer) for offer in rented_apart([offer for offer, _ in offers])]
    places = tuple(Place(
        infra=offer.infra, spot=is_spot, resource=resources.index(_rented_as(offer)),
        usd_per_hour=offer.price_usd_per_hour or Decimal(0), move_usd=_move_usd(plan, offer, recipe.store),
        envs=envs_of(offer) | _label(offer, is_spot), wishes=wishes_of(offer)) for offer, is_spot in offers)
    return Course(begins_at=plan.planned_at, ends_at=plan.deadline, work_h=round(hours, 6),
                  overhead_h=round(start_h + lost_h, 6), lost_h=round(lost_h, 6), tick_s=round(tick_s, 3),
                  from_step=plan.done_steps, to_step=plan.steps, policy=recipe.limits.policy, places=places)


def _both_kinds(offers: Sequence[Offer]) -> list[tuple[Offer, bool]]:
    """Each with whether it is spot. This machine plays both, where the recipe has a price of each."""
    local = offers[0]
    if not local.is_local or local.on_demand_usd_per_hour is None:
        return [(offer, offer.spot) for offer in offers]
    return [(local, True),
            (local.model_copy(update={"price_usd_per_hour": local.on_demand_usd_per_hour}), False)]


def _label(offer: Offer, is_spot: bool) -> dict[str, str]:
    """Offers of clouds say in their label which of both they are."""
    return {Env.OFFER: f"{offer.label} ({'spot' if is_spot else 'on-demand'})"} if offer.is_local else {}


def _price(offer: Offer) -> Decimal:
    return _UNKNOWN if offer.price_usd_per_hour is None else offer.price_usd_per_hour


def rented_apart(offers: Sequence[Offer]) -> list[Offer]:
    """Those that are candidates of their own in a task: to bid at Vast and to rent there on demand is one."""
    found: dict[tuple[object, ...], Offer] = {}
    for offer in offers:
        found.setdefault(_rented_as(offer), offer)
    return list(found.values())


def _rented_as(offer: Offer) -> tuple[object, ...]:
    """What tells the candidates of a task apart; whether Vast is bid for stands elsewhere in it."""
    return offer.infra, offer.accelerators, offer.spot and offer.cloud != "vast", offer.image


def _move_usd(plan: Plan, offer: Offer, store: str | None) -> Decimal:
    """A last checkpoint is sent, and read with the encoder where the run goes on; at list prices."""
    saved = plan.saves.num_bytes if plan.saves else 0
    read = saved + (plan.sizes.encoder.source_bytes if plan.sizes and plan.sizes.encoder.fetch_s else 0)
    price = store_price(store) if store and sent_usd_per_gb(offer.infra, store) else None
    read_usd = price.read_usd(read) if price else Decimal(0)
    sent_usd = plan.saves.upload_usd if plan.saves else Decimal(0)
    return (sent_usd + read_usd).quantize(Decimal("0.0001"))
