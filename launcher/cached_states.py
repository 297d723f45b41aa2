"""Would it pay to keep the encoder's hidden states in the store, instead of computing them again? Pure.

Nothing keeps them: a plan only says from how many passes over the text on it would be cheaper. A pass is one
epoch of one run; all runs that read the same text through the same encoder could share them.
"""

import math
from dataclasses import dataclass
from decimal import Decimal

from launcher.estimate import Case, Estimate
from launcher.frozen import Frozen
from launcher.rentals import HOURS_OF_MONTH
from launcher.running_costs import fetched_usd_per_gb
from launcher.saves import rates_of
from launcher.speed import encoder_share
from launcher.starts import read_bytes_per_s
from launcher.store_prices import store_price
from trainer.contract import Document

_VALUE_BYTES = 2  # bf16, as the trained parts read them
_GB = 10**9


@dataclass(frozen=True)
class StatePrices:
    """Dollars for a GB: sent to the store once, fetched at each pass, kept for a month."""

    sent_usd: Decimal
    fetched_usd: Decimal
    kept_usd_per_month: Decimal


@dataclass(frozen=True)
class EncodingPace:
    """How a run goes with its encoder in the loop.

    Attributes:
        tokens_per_s: Over all ranks.
        encoder_share: Of the time, in [0, 1].
        usd_per_hour: Of all machines.
        fetch_bytes_per_s: Of the store's line to all of them.
    """

    tokens_per_s: float
    encoder_share: float
    usd_per_hour: Decimal
    fetch_bytes_per_s: float


class CachedStates(Frozen):
    """What a pass over the text costs with and without its encoder.

    Attributes:
        num_tokens: Of the text.
        bytes_per_token: Of hidden states.
        write_usd: Once.
        saved_usd: By a pass that fetches instead of encoding: time of the machines, which is the encoder's,
            less where the line is slower than the trained parts.
        reuse_usd: Of fetching and keeping them for one pass.
        pays_from: Passes from which on it is cheaper; None: never.
    """

    num_tokens: int
    bytes_per_token: int
    write_usd: Decimal
    saved_usd: Decimal
    reuse_usd: Decimal
    pays_from: int | None

    @property
    def num_bytes(self) -> int:
        """Of the whole text's states."""
        return self.num_tokens * self.bytes_per_token


def cached_states(num_tokens: int, hidden_size: int, pace: EncodingPace, prices: StatePrices) -> CachedStates:
    """Break-even of cached hidden states.

    The first pass encodes in any case, and writes; states lie in the store as long as passes take now.

    Args:
        num_tokens: Of the text, at least 1.
        hidden_size: Channels of a hidden state.
        pace: Of a run as it is planned.
        prices: By list.
    """
    size = _VALUE_BYTES * hidden_size
    gigabytes = Decimal(num_tokens * size) / _GB
    token_s = 1 / pace.tokens_per_s
    with_states_s = max(token_s * (1 - pace.encoder_share), size / pace.fetch_bytes_per_s)
    saved_h = Decimal(num_tokens * max(0.0, token_s - with_states_s) / 3600)
    pass_h = Decimal(num_tokens * token_s / 3600)
    saved, write, fetch = (saved_h * pace.usd_per_hour, gigabytes * prices.sent_usd,
                           gigabytes * prices.fetched_usd)
    keep = gigabytes * prices.kept_usd_per_month * pass_h / HOURS_OF_MONTH
    # Of P passes the first saves and fetches nothing: (P - 1) saved > write + (P - 1) fetch + P keep.
    gain, first = saved - fetch - keep, saved + write - fetch
    return CachedStates(num_tokens=num_tokens, bytes_per_token=size, write_usd=_rounded(write),
                        saved_usd=_rounded(saved), reuse_usd=_rounded(fetch + keep),
                        pays_from=math.floor(first / gain) + 1 if gain > 0 else None)


def _rounded(usd: Decimal) -> Decimal:
    return usd.quantize(Decimal("0.0001"))


def states_of(case: Case, estimate: Estimate) -> CachedStates | None:
    """Of a run as it is planned; None where text, encoder or a price is not known."""
    offer, store = case.offers[Document.TRAIN], case.recipe.store
    price = store_price(store) if store else None
    if not (case.text_tokens and case.shape and price) or offer.price_usd_per_hour is None:
        return None
    fitted = estimate.fitted
    pace = EncodingPace(
        tokens_per_s=estimate.speed.tokens_per_s, usd_per_hour=offer.price_usd_per_hour,
        encoder_share=encoder_share(fitted.config, case.shape, offer, fitted.world_size),
        fetch_bytes_per_s=read_bytes_per_s(offer, store) * offer.num_nodes)
    prices = StatePrices(sent_usd=Decimal(str(rates_of(offer, store).upload_usd_per_gb)),
                         fetched_usd=fetched_usd_per_gb(offer, store),
                         kept_usd_per_month=price.kept_usd_per_gb_month)
    return cached_states(case.text_tokens, case.shape.hidden_size, pace, prices)
