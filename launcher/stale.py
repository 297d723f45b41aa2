"""Why a plan that was approved earlier would not be carried out as it stands: what has moved since. Pure."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from launcher.offers import Offer
from launcher.plan import Plan
from launcher.proposal import Proposal
from launcher.quotes import Quote
from trainer.contract import Document

_MOVED = Decimal("0.01")  # of a price: less is rounding, and far within the range of any plan (guess)
# Of a bid that follows the market: what was approved is its limit, and every rental decides anew (guess).
_MOVED_BID = Decimal("0.10")
_MOST = 4  # changes of a recipe that are named


def has_expired(quote: Quote, now: datetime) -> str | None:
    """That its time is over, in words; None: it is not."""
    if now < quote.holds_until:
        return None
    return f"it held until {quote.holds_until:%Y-%m-%d %H:%M} UTC"


def moved(quote: Quote, fresh: Proposal, commit: str | None, now: datetime) -> Iterator[str]:
    """What is not any more as it was when the quote was made, a few words each.

    Args:
        fresh: The same order, planned now.
        commit: Of the checkout now.
    """
    yield from _recipe_changes(quote.recipe.model_dump(mode="json"), fresh.recipe.model_dump(mode="json"))
    yield from _price_changes(quote.plan, fresh.plan)
    yield from _progress(quote.plan, fresh.plan)
    deadline, least = quote.plan.deadline, quote.plan.hours.low
    if deadline is not None and Decimal((deadline - now).total_seconds()) / 3600 < least:
        yield (f"its deadline is {deadline:%Y-%m-%d %H:%M} UTC, and it takes at least ~{least:.2f} h")
    if quote.commit != commit:
        yield f"the code was {_short(quote.commit)}, and is {_short(commit)}"


def _short(commit: str | None) -> str:
    sha, dirty, _ = (commit or "unknown to git").partition("-dirty")
    return (sha[:10] if commit else sha) + dirty


def _recipe_changes(old: Any, new: Any) -> Iterator[str]:
    before, after = dict(_leaves(old)), dict(_leaves(new))
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in changed[:_MOST]:
        yield f"{name} was {before.get(name, 'not there')}, and is {after.get(name, 'not there')}"
    if changed[_MOST:]:
        yield f"{len(changed) - _MOST} more values of the recipe have changed"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values by their dotted names."""
    if isinstance(value, Mapping | list) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _price_changes(old: Plan, new: Plan) -> Iterator[str]:
    told = set()
    for document in Document:
        now = {offer.label: offer for offer in new.candidates(document)}
        for offer in old.candidates(document):
            words = _price_change(offer, now.get(offer.label))
            if words and words not in told:
                told.add(words)
                yield words
        first, other = old.offers[document].label, new.offers[document].label
        if first != other and first in now:
            yield f"{document} would now be on {other}"


def _price_change(old: Offer, new: Offer | None) -> str | None:
    if new is None:
        return f"{old.label} is not offered any more"
    was, now = old.price_usd_per_hour, new.price_usd_per_hour
    if was == now:
        return None
    if not was or now is None:
        return f"the price of {old.label} was {_usd(was)}, and is {_usd(now)}"
    share = (now - was) / was
    if abs(share) < (_MOVED if old.bid_from_usd_per_hour is None else _MOVED_BID):
        return None
    return f"the price of {old.label} was {_usd(was)}, and is {_usd(now)} ({share:+.0%})"


def _usd(price: Decimal | None) -> str:
    return "not known" if price is None else f"${price:,.4f}".rstrip("0").rstrip(".") + "/h"


def _progress(old: Plan, new: Plan) -> Iterator[str]:
    """Of a run that is resumed."""
    if old.done_steps != new.done_steps:
        yield f"step {old.done_steps:,} was durable, and step {new.done_steps:,} is"
    if new.spent_usd - old.spent_usd > _MOVED * old.spent_usd:
        yield f"${old.spent_usd:.4f} were spent, and ${new.spent_usd:.4f} are"
