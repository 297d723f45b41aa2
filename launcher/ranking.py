"""Everything that a run may train on, ranked: the cheapest that is likely to keep its limits first. Pure.

Nothing here looks at whether a machine can be taken back: what losing it costs is in its expected dollars, so
spot comes first only where it is cheaper all told. With what is left of a run as `Case.done` the same ranking
is of a resume.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

from launcher.availability import Availability
from launcher.cost import Range
from launcher.credits import expected, out_of_pocket
from launcher.errors import NoOfferError, RecipeError
from launcher.estimate import Case, Estimate, behind, estimate_of
from launcher.forecast import Odds, forecast
from launcher.frozen import Frozen
from launcher.lives import believed, believed_by
from launcher.offers import Offer
from launcher.saves import check_promise
from launcher.speed import SpeedOrigin
from trainer.contract import Document

ENOUGH = 0.8  # a chance to keep the limits that is taken for keeping them (guess)


class Ranked(Frozen):
    """One offer, with what a run would probably take and cost there.

    Attributes:
        speed_origin: Of `tokens_per_s`; `speed_source` has it in words.
        hours: Until the benchmark has ended.
        usd: None when a price is not known.
        usd_per_billion_tokens: Expected, of the tokens that are left.
        out_of_pocket_usd: Of the expected dollars what no credits of the user's pay; None: there are none.
        problem: Why it cannot be; then nothing else is known.
    """

    offer: Offer
    tokens_per_s: float | None = None
    speed_origin: SpeedOrigin | None = None
    speed_source: str | None = None
    availability: Availability | None = None
    availability_source: str | None = None
    hours: Range | None = None
    usd: Range | None = None
    usd_per_billion_tokens: Decimal | None = None
    odds: Odds | None = None
    out_of_pocket_usd: Decimal | None = None
    problem: str | None = None

    @property
    def chance(self) -> float:
        """That both limits are kept, as far as is known."""
        if self.odds is None:
            return 0.0
        return min(self.odds.in_time, 1.0 if self.odds.within_cap is None else self.odds.within_cap)

    @property
    def expected_usd(self) -> Decimal | None:
        """None when a price is not known, or nothing is."""
        return self.odds.expected_usd if self.odds else None

    @property
    def own_usd(self) -> Decimal | None:
        """What its user expects to pay, credits aside: by this it is ranked."""
        return self.expected_usd if self.out_of_pocket_usd is None else self.out_of_pocket_usd

    @property
    def _order(self) -> tuple[bool, bool, bool, float, Decimal, Decimal]:
        """What is likely to keep its limits by its dollars, the rest by how likely it is."""
        is_likely = self.chance >= ENOUGH
        return (self.problem is not None, self.expected_usd is None, not is_likely,
                0.0 if is_likely else -self.chance, self.own_usd or Decimal(0),
                self.expected_usd or Decimal(0))


def ranked(case: Case) -> tuple[Ranked, ...]:
    """Every candidate for training of a case, the best first; of equals the recipe's first."""
    offers = case.candidates(Document.TRAIN)
    rows = [_row(_on(case, offer, offers)) for offer in offers]
    return tuple(sorted(rows, key=lambda row: row._order))


def best_first(case: Case, rows: Sequence[Ranked]) -> Case:
    """The case with its candidates for training in the order of a ranking."""
    return _on(case, rows[0].offer, [row.offer for row in rows])


def reason_of(rows: Sequence[Ranked]) -> str | None:
    """Why the first of a ranking is it, in one line; None where there was nothing to choose."""
    others = [row for row in rows[1:] if row.problem is None]
    if not others or rows[0].problem:
        return None
    first = rows[0]
    if first.own_usd is None:
        return "no price is known, so it is the recipe's first"
    if first.chance < ENOUGH:
        return f"none is likely to keep its limits: of {len(others) + 1} this one most, {first.chance:.0%}"
    priced = [row for row in others if row.own_usd is not None]
    if not priced:
        return "no other has a price"
    cheaper = [row for row in priced if row.own_usd is not None and row.own_usd < first.own_usd]
    if cheaper:
        least = min(cheaper, key=lambda row: row.own_usd or 0)
        return (f"the cheapest that keeps its limits: {least.offer.label}, ~${least.own_usd:.2f}, keeps "
                f"them in {least.chance:.0%}")
    # Of what the table shows, so that whoever reckons finds the same.
    more = round(priced[0].own_usd or Decimal(0), 2) - round(first.own_usd, 2)
    whose = "" if first.out_of_pocket_usd is None else " out of your pocket"
    return f"the cheapest expected of {len(priced) + 1}: ${more:.2f} less{whose} than {priced[0].offer.label}"


def _on(case: Case, offer: Offer, offers: Sequence[Offer]) -> Case:
    """The case on one of its offers for training, the others behind it in order."""
    others: Mapping[Document, Sequence[Offer]] = {
        **case.others, Document.TRAIN: tuple(one for one in offers if one is not offer)}
    return replace(case, offers={**case.offers, Document.TRAIN: offer}, others=others)


def _row(case: Case) -> Ranked:
    offer, config = case.offers[Document.TRAIN], case.recipe.train
    if offer.too_low:
        return Ranked(offer=offer, problem=offer.too_low)
    try:
        estimate, odds = forecast(case, estimate_of(case))
        if estimate.saves:
            check_promise(case.recipe, offer, estimate.saves)
    except (RecipeError, NoOfferError) as error:
        return Ranked(offer=offer, problem=error.problem)
    done_steps, _ = behind(config, case.done)
    left = (config.steps - done_steps) * config.tokens_per_step
    usd = odds.expected_usd
    return Ranked(offer=offer, tokens_per_s=round(estimate.speed.tokens_per_s, 1),
                  out_of_pocket_usd=_out_of_pocket_usd(case, estimate, usd),
                  availability=believed(offer), availability_source=believed_by(offer),
                  speed_origin=estimate.speed.origin, speed_source=estimate.speed.source,
                  hours=estimate.hours, usd=estimate.usd, odds=odds,
                  usd_per_billion_tokens=None if usd is None or not left else usd * 10**9 / left)


def _out_of_pocket_usd(case: Case, estimate: Estimate, usd: Decimal | None) -> Decimal | None:
    if usd is None or not case.wallets or case.now is None:
        return None
    controller_usd = estimate.controller_usd.mid if estimate.controller_usd else Decimal(0)
    charges = expected(estimate.parts, case.offers, usd, controller_usd, case.now)
    return out_of_pocket(charges, case.wallets).out_of_pocket_usd
