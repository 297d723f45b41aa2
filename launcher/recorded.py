"""The parts of a run's plan and benchmark that reports read. Another version may have written more."""

from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, ConfigDict, PositiveInt

from launcher.cost import Range
from trainer.contract import Document
from trainer.rental_terms import UsdPerHour


class Recorded(BaseModel):
    """The part of a JSON object that reports need; another version may have written more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class PlannedOffer(Recorded):
    """What reports need of an offer."""

    infra: str = ""
    price_is_simulated: bool = False
    price_usd_per_hour: UsdPerHour | None = None
    on_demand_usd_per_hour: UsdPerHour | None = None


class RecordedPlan(Recorded):
    """What reports need of `plan.json`."""

    tokens_per_step: PositiveInt
    usd: Range | None
    offers: dict[Document, PlannedOffer]
    deadline: datetime | None = None
    others: dict[Document, tuple[PlannedOffer, ...]] = {}

    @property
    def clouds(self) -> set[str]:
        """Where anything may have been rented."""
        return {offer.infra.partition("/")[0] for offer in self._all_offers}

    @property
    def prices(self) -> list[Decimal]:
        """Of an hour, of all that may have been rented, on demand as well."""
        each = ((offer.price_usd_per_hour, offer.on_demand_usd_per_hour) for offer in self._all_offers)
        return [price for prices in each for price in prices if price is not None]

    @property
    def _all_offers(self) -> list[PlannedOffer]:
        return [*self.offers.values(), *(offer for offers in self.others.values() for offer in offers)]


class Scores(Recorded):
    """What reports need of the scores of a benchmark, over held-out text; None where it was no number."""

    reconstruction_accuracy: float | None = None
    reconstruction_accuracy_noisy: float | None = None
    diffusion_loss: float | None = None
    diffusion_loss_trivial: float | None = None
    diffusion_loss_linear: float | None = None


class Throughput(Recorded):
    """What reports need of the speed of a benchmark, as `trainer/bench_trained.py` describes it.

    What has a default was not measured by earlier versions.
    """

    device: str
    is_rtx5090: bool
    dtype: str
    denoiser_steps: int
    tokens: int
    num_generations: int
    seconds_p10: float
    seconds_p90: float
    tokens_per_s: float
    prompt_tokens: int = 0
    prompted_tokens_per_s: float | None = None
    reference_tokens_per_s: float | None = None
    fraction_of_limit: float | None = None
    latents_error: float | None = None
    same_tokens: float | None = None
    usd_per_million_tokens: Decimal | None = None
    warnings: tuple[str, ...] = ()


class Bench(Recorded):
    """What reports need of `bench/result.json`; `reconstructions` are pairs of text and guess."""

    step: int
    scores: Scores
    throughput: Throughput
    reconstructions: list[tuple[str, str]]
    samples: list[str]
