"""How long it takes on an offer until training goes on: a first start, and one from a checkpoint. Pure."""

from launcher.frozen import Frozen
from launcher.offers import Offer
from launcher.plan_sizes import READ_BYTES_PER_S, Sizes, fetch_bytes_per_s
from launcher.saves import SavesPlan

# Without weights and statistics. Measured with smoke: 15 s on two CPU cores, 4 of them its statistics; 28 and
# 26 s on one H100. Cloud: guess, with install and data.
_NODE_S = {"local": 11.0, "local GPU": 27.0, "cloud": 600.0}


class StartPlan(Frozen):
    """Seconds from a machine that is there to its first step, one part after the other; all are guesses.

    Attributes:
        node_s: Environment, look at the machine, imports, text, model, and the step itself.
        fetch_s: Until the encoder's weights are on a rented node.
        loading_s: From there to where they are used.
        statistics_s: Of hidden states: a run's first start measures them.
        checkpoint_s: Every other start fetches its state; None when its size is not known.
    """

    node_s: float
    fetch_s: float
    loading_s: float
    statistics_s: float
    checkpoint_s: float | None

    @property
    def first_s(self) -> float:
        """Of a run's first start."""
        return self._always_s + self.statistics_s

    @property
    def again_s(self) -> float:
        """After a loss, or when a run is resumed."""
        return self._always_s + (self.checkpoint_s or 0.0)

    @property
    def _always_s(self) -> float:
        return self.node_s + self.fetch_s + self.loading_s


def plan_start(offer: Offer, store: str | None, sizes: Sizes | None, saves: SavesPlan | None,
               statistics_s: float) -> StartPlan:
    """How long starts take on an offer.

    Args:
        store: URL of the run's store.
        sizes, saves: None when the token encoder's size is not known, which then counts nothing.
        statistics_s: See `StartPlan`.
    """
    node_s = _NODE_S["cloud" if not offer.is_local else "local GPU" if offer.gpu else "local"]
    encoder = sizes.encoder if sizes else None
    return StartPlan(node_s=node_s, fetch_s=encoder.fetch_s if encoder else 0.0,
                     loading_s=encoder.loading_s if encoder else 0.0, statistics_s=round(statistics_s, 1),
                     checkpoint_s=round(saves.num_bytes / read_bytes_per_s(offer, store), 1)
                     if saves else None)


def read_bytes_per_s(offer: Offer, store: str | None) -> float:
    """From the run's store to one node (guess)."""
    is_here = offer.is_local and (not store or store.startswith("file:"))
    return READ_BYTES_PER_S if is_here else fetch_bytes_per_s(offer.cloud)
