"""Plans that would pass a limit of their recipe: by how much, and which limit would do. Pure."""

from datetime import datetime
from decimal import ROUND_UP, Decimal
from typing import Any

from launcher import console
from launcher.cost import Range
from launcher.errors import NoOfferError
from launcher.recipe import HIGHEST_LIMIT, LIMIT_OPTIONS, Recipe


def refuse_past_deadline(recipe: Recipe, hours: Range, now: datetime) -> None:
    """Refuse what the middle estimate says would not be done by its deadline.

    Args:
        hours: Of what is left to train: the benchmark has hours of its own.
        now: UTC.

    Raises:
        NoOfferError: It would not.
    """
    limits, takes = recipe.limits, f"~{hours.mid:.2f} h (median; {hours.low:.2f} to {hours.high:.2f} h)"
    if limits.deadline_hours is not None and float(hours.mid) > limits.deadline_hours:
        problem = (f"to train would take {takes}, and {{name}} is {limits.deadline_hours:g}, "
                   f"{float(hours.mid) - limits.deadline_hours:.2f} h too little")
        raise NoOfferError(**past_limit(recipe, "deadline_hours", problem, hours.mid, hours.high))
    if limits.deadline is None:
        return
    left_h = (limits.deadline - now).total_seconds() / 3600
    if float(hours.mid) > left_h:
        away = console.duration(abs(limits.deadline - now))
        over = f"in {away}" if left_h > 0 else f"{away} ago"
        raise NoOfferError(f"to train would take {takes}, and its deadline is "
                           f"{limits.deadline:%Y-%m-%d %H:%M} UTC, {over}",
                           place=recipe.place("limits", "deadline"),
                           fix=f"add --deadline {up(hours.mid)} (hours from now; {up(hours.high)} is p90)")


def refuse_over_hours(recipe: Recipe, hours: Range, paid_h: float) -> None:
    """Refuse what the middle estimate says would take more paid hours than there may be.

    Args:
        paid_h: Hours that the run has behind it.

    Raises:
        NoOfferError: It would.
    """
    limit = recipe.limits.max_hours
    if limit is None or paid_h + float(hours.mid) <= limit:
        return
    behind = Decimal(str(paid_h))
    so_far = f"has had {paid_h:.2f} paid hours, what is left would take" if paid_h else "would take"
    problem = (f"this run {so_far} ~{hours.mid:.2f} h (median; {hours.low:.2f} to {hours.high:.2f} h), "
               f"and {{name}} is {limit:g}, {up(behind + hours.mid - Decimal(str(limit)))} h too little")
    raise NoOfferError(**past_limit(recipe, "max_hours", problem, behind + hours.mid, behind + hours.high))


def past_limit(recipe: Recipe, name: str, problem: str, needed: Decimal, at_most: Decimal) -> dict[str, Any]:
    """Of a refusal: its change is the least limit that will do, for the middle estimate is what decides.

    Args:
        name: Of the limit in a recipe; `{name}` in the problem is what it is called where it was said.
        needed, at_most: By the middle and the high estimate.
    """
    place, option = recipe.place("limits", name), LIMIT_OPTIONS[name]
    told = {"problem": problem.format(name=option if place.startswith(option) else f"limits.{name}"),
            "place": place}
    if needed > HIGHEST_LIMIT:
        return {**told, "fix": "lower train.steps"}
    note = f"{option} {up(at_most)} for the p90" if up(at_most) > up(needed) else ""
    return {**told, "changes": {f"limits.{name}": up(needed)}, "note": note}


def short_usd(value: Decimal) -> str:
    """`$12.34`; below a dollar with four digits, or what is too little could be more than all of it."""
    return f"${value:.{2 if value >= 1 else 4}f}"


def up(value: Decimal) -> Decimal:
    """Rounded up to two decimals: a fix that is rounded down would not help."""
    return value.quantize(Decimal("0.01"), rounding=ROUND_UP)
