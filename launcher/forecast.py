"""What a run will probably cost and take on an offer, all told: losses, waiting and what runs beside. Pure.

The ranges are percentiles of some hundred ways in which the run may go (`launcher/forecast_paths.py`). Each
part has its own: what is rare for one of them is not rare for all, so they do not add up.
"""

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from launcher.availability import CERTAIN
from launcher.cost import Range
from launcher.estimate import Case, Estimate, Part, PartName, behind, num_saves
from launcher.frozen import Frozen
from launcher.lives import believed
from launcher.offers import WITH_LIST_PRICES, Offer
from launcher.running_costs import RunningCosts, running_costs
from launcher.speed import GUESS_FACTORS
from trainer.contract import Document

if TYPE_CHECKING:
    from launcher.forecast_paths import Elsewhere, Job, Paths
    from launcher.policy import Bools, Floats, Ints

_PERCENTILES = (0.1, 0.5, 0.9)
_MOST_ELSEWHERE = 2  # places that a forecast moves to: each takes time, and gains less than the one before


class Odds(Frozen):
    """What offers are compared by, and how often what was wished comes true.

    Attributes:
        expected_usd: The mean; None when a price is not known.
        losses: Machines that are taken back, the mean.
        losses_range: Of the same; None in plans of older versions.
        in_time: Share of the ways in which training ends by its deadline; 1 without one.
        within_cap: Share in which all of it, with what is spent, costs no more than the cap; None when a
            price is not known.
    """

    expected_usd: Decimal | None
    losses: float
    losses_range: Range | None = None
    in_time: float
    within_cap: float | None


def forecast(case: Case, estimate: Estimate) -> tuple[Estimate, Odds]:
    """An estimate with the ranges of a forecast in place of its own, and the odds."""
    from launcher.forecast_paths import paths_of
    from launcher.policies_known import KNOWN
    from launcher.policy_ours import FORECAST_OURS

    costs = running_costs(case.offers[Document.TRAIN], case.recipe.store, estimate.sizes, estimate.saves,
                          estimate.start, case.controller_usd_per_hour)
    job = _job(case, estimate, costs)
    policy = next((one for one in KNOWN if one.name == case.recipe.limits.policy), FORECAST_OURS)
    bill = _Bill(case, estimate, paths_of(job, policy), costs)
    hours, training_h = bill.hours, bill.training_hours
    deadline = case.deadline_h
    _, spent = behind(case.recipe.train, case.done)
    usd = bill.usd
    odds = Odds(
        expected_usd=None if usd is None else _decimal(float(usd.mean()), 4),
        losses=round(float(bill.paths.num_losses.mean()), 2),
        losses_range=_range(bill.paths.num_losses, 1),
        in_time=1.0 if deadline is None else _share(training_h <= deadline),
        within_cap=None if usd is None else _share(usd <= float(case.recipe.limits.max_cost_usd - spent)))
    return replace(estimate, parts=bill.parts(), hours=_hours(hours), training_hours=_hours(training_h),
                   controller_usd=bill.controller_usd, usd=_usd(usd)), odds


def _job(case: Case, estimate: Estimate, costs: RunningCosts) -> "Job":
    from launcher.forecast_paths import Job

    offer, saves, start = case.offers[Document.TRAIN], estimate.saves, estimate.start
    by_name = {part.name: float(part.hours.mid) for part in estimate.parts}
    trains = "training" in by_name
    price, on_demand = offer.price_usd_per_hour, _on_demand(case, offer)
    return Job(
        training_h=by_name.get("training", 0.0), speed_factors=estimate.speed.factors,
        beside_h=by_name.get("evaluating and saving", 0.0), first_h=by_name.get("set-up", 0.0),
        again_h=start.again_s / 3600, bench_h=by_name["benchmark"], guess_factors=GUESS_FACTORS,
        interval_h=saves.every_s / 3600 if saves else 0.0, save_h=saves.save_s / 3600 if saves else 0.0,
        availability=believed(offer) if trains else CERTAIN,
        bench_availability=believed(case.offers[Document.BENCH]),
        bench_limit_h=case.recipe.limits.bench_hours, deadline_h=case.deadline_h,
        on_demand_price=_ratio(on_demand, price) if trains and on_demand is not None else None,
        elsewhere=_elsewhere(case, offer), move_price=_ratio(costs.next_start_usd, price),
        is_watched=_is_watched(offer))


def _elsewhere(case: Case, offer: Offer) -> "tuple[Elsewhere, ...]":
    """Where the run may go on with the same machines, the cheapest first: at no lower price, for what is
    cheaper has a forecast of its own, and with one bid at Vast, as a task has."""
    from launcher.forecast_paths import Elsewhere

    alike = [(_ratio(other.price_usd_per_hour, offer.price_usd_per_hour), other)
             for other in case.others.get(Document.TRAIN, ())
             if offer.spot and other.spot and other.price_usd_per_hour and other.hardware == offer.hardware
             and not offer.cloud == other.cloud == "vast"]
    dearer = sorted((one for one in alike if one[0] >= 1), key=lambda one: one[0])
    return tuple(Elsewhere(believed(other), price, _is_watched(other))
                 for price, other in dearer[:_MOST_ELSEWHERE])


def _is_watched(offer: Offer) -> bool:
    """Clouds do not tell what spot there is: only an attempt shows it."""
    return offer.cloud not in WITH_LIST_PRICES


def _ratio(usd: Decimal, price: Decimal | None) -> float:
    """To two digits: regions whose prices are nearly alike then have one forecast of hours."""
    return float(f"{usd / price:.2g}") if price else 1.0


def _on_demand(case: Case, offer: Offer) -> Decimal | None:
    """Price of the same hardware where nobody takes it back, if the run may go there when it is late.

    A task cannot have both at Vast.
    """
    if not offer.spot or offer.price_usd_per_hour is None:
        return None
    prices = [other.price_usd_per_hour for other in case.candidates(Document.TRAIN)
              if not other.spot and other.hardware == offer.hardware and other.price_usd_per_hour is not None
              and not other.cloud == offer.cloud == "vast"]
    return min(prices, default=None)


class _Bill:
    """Hours and dollars of N ways in which a run may go; see `forecast`."""

    def __init__(self, case: Case, estimate: Estimate, paths: "Paths", costs: RunningCosts) -> None:
        self.paths, self._case, self._costs, self._estimate = paths, case, costs, estimate
        self._trains = len(estimate.parts) > 1

    @property
    def training_hours(self) -> "Floats":
        """(N,) of what the deadline is about."""
        return self.paths.trained_after_h if self._trains else self.paths.bench_took_h

    @property
    def hours(self) -> "Floats":
        """(N,) of all of it."""
        return self.paths.ended_after_h

    @property
    def usd(self) -> "Floats | None":
        """(N,) of all of it; None when a price is not known."""
        dollars = [usd for _, _, usd in self._rows()]
        if any(usd is None for usd in dollars):
            return None
        return sum((usd for usd in dollars if usd is not None), self._controller())

    @property
    def controller_usd(self) -> Range | None:
        """None: nobody asks money for it."""
        return None if self._costs.controller_usd_per_hour is None else _usd(self._controller())

    def _controller(self) -> "Floats":
        return self.hours * float(self._costs.controller_usd_per_hour or 0)

    def parts(self) -> tuple[Part, ...]:
        """The rows of a plan, without those in which nothing will happen."""
        found = [Part(name=name, document=self._document(name), hours=_hours(hours), usd=_usd(usd))
                 for name, hours, usd in self._rows()]
        always = {part.name for part in self._estimate.parts}
        return tuple(part for part in found if part.name in always or part.hours.high or (
            part.usd and part.usd.high))

    def _document(self, name: PartName) -> Document:
        return Document.TRAIN if self._trains and name != "benchmark" else Document.BENCH

    def _rows(self) -> "list[tuple[PartName, Floats, Floats | None]]":
        paths, nothing = self.paths, self.paths.bench_h * 0.0
        bench = self._priced(paths.bench_h, self._case.offers[Document.BENCH])
        if not self._trains:
            return [("waiting", paths.bench_waiting_h, nothing), ("benchmark", paths.bench_h, bench)]
        train, again_h = self._case.offers[Document.TRAIN], paths.restarts_h + paths.redone_h
        training = self._priced(paths.training_h, train)
        more = _on_demand(self._case, train)
        if training is not None and more is not None:
            price = train.price_usd_per_hour or Decimal(0)
            training = training + paths.on_demand_h * float(more - price) + paths.dearer_h * float(price)
        return [("set-up", paths.first_h, self._priced(paths.first_h, train)),
                ("training", paths.training_h, training),
                ("evaluating and saving", paths.beside_h, self._priced(paths.beside_h, train)),
                ("after losses", again_h, self._priced(again_h, train)),
                ("waiting", paths.waiting_h + paths.bench_waiting_h, nothing),
                ("disk, network, store", nothing, self._beside()),
                ("benchmark", paths.bench_h, bench)]

    def _priced(self, hours: "Floats", offer: Offer) -> "Floats | None":
        price = offer.price_usd_per_hour
        return None if price is None else hours * float(price)

    def _beside(self) -> "Floats":
        """(N,) dollars of disk, network and store; uploads are as many as the work is long."""
        paths, costs, config = self.paths, self._costs, self._case.recipe.train
        done, _ = behind(config, self._case.done)
        work_h = float(paths.work_h.mean())
        uploads_usd = num_saves(config, done, work_h, self._estimate.saves) * float(costs.save_usd)
        return (paths.held_h * float(costs.held_usd_per_hour) + self.hours * float(costs.run_usd_per_hour)
                + float(costs.first_start_usd) + (paths.num_starts - 1) * float(costs.next_start_usd)
                + paths.work_h / work_h * uploads_usd)


def _hours(hours: "Floats") -> Range:
    return _range(hours, 6)


def _usd(usd: "Floats | None") -> Range | None:
    return None if usd is None else _range(usd, 4)


def _range(values: "Floats | Ints", digits: int) -> Range:
    import numpy as np

    found = np.quantile(values, _PERCENTILES, method="hazen")
    low, mid, high = (_decimal(float(value), digits) for value in found)
    return Range(low=low, mid=mid, high=high)


def _decimal(value: float, digits: int) -> Decimal:
    return Decimal(f"{value:.{digits}f}")


def _share(is_so: "Bools") -> float:
    return round(float(is_so.mean()), 3)
