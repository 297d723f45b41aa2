"""Where SkyPilot may rent, by its own catalogs: what a launch asks first, and what its server keeps to.

A task says in `max_hourly_cost` what a machine may cost. SkyPilot 0.14.1 compares that with the cheapest
region's price, on GCP with none at all, and then takes the machine in any region, at whatever it costs there.
"""

from collections.abc import Callable
from decimal import ROUND_UP, Decimal
from typing import Any

from launcher.errors import NoOfferError
from launcher.offers import WITH_LIST_PRICES
from launcher.regions import WITH_CATALOGS

_HOUR_S = 3600
_NOISE_USD = 1e-6  # of sums of floats
Places = Callable[..., list[Any]]


def within_price(places_of: Places) -> Places:
    """SkyPilot's list of the regions and zones of a machine, without those dearer than its task allows.

    Args:
        places_of: `sky.utils.resources_utils.make_launchables_for_valid_region_zones`.
    """
    def affordable(machine: Any, *more: Any, **options: Any) -> list[Any]:
        return [place for place in places_of(machine, *more, **options) if _is_within_price(place)]

    return affordable


def _is_within_price(place: Any) -> bool:
    cap = place.max_hourly_cost
    return (cap is None or _cloud(place) not in WITH_LIST_PRICES
            or place.get_cost(_HOUR_S) <= cap + _NOISE_USD)


def check_places(task: str, say: Callable[[str], None]) -> None:
    """Compare the places and prices of a task with SkyPilot's catalogs on this machine.

    Args:
        say: Told of a candidate that is too dear everywhere, where another stands beside it.

    Raises:
        ValueError: A cloud has no such region: SkyPilot's own words.
        NoOfferError: Each candidate of a document costs more in every region than its task allows.
        OSError: There is no catalog here, and no way to fetch one.
    """
    from sky.utils import dag_utils

    documents: list[Any] = dag_utils.load_chain_dag_from_yaml_str(task).tasks
    for document in documents:
        machines = list(document.resources)
        for machine in machines:
            if _cloud(machine) in WITH_CATALOGS:
                machine.validate()
        dear = [error for machine in machines if (error := _too_dear(document, machine))]
        if machines and len(dear) == len(machines):
            raise dear[0]
        for error in dear:
            say(f"{error.problem}: the other candidates stand in")


def _too_dear(document: Any, machine: Any) -> NoOfferError | None:
    """Why a machine is nowhere to be had at its price; None if it is, or SkyPilot has none at all."""
    cap = machine.max_hourly_cost
    least = None if cap is None or _cloud(machine) not in WITH_LIST_PRICES else _least(document, machine)
    if least is None or least <= cap + _NOISE_USD:
        return None
    gpus = " or ".join(f"{name}:{number}" for name, number in (machine.accelerators or {}).items())
    nodes, kind = document.num_nodes, "spot" if machine.use_spot else "on-demand"
    what = f"{nodes}x {gpus or 'a machine'}" if nodes > 1 else gpus or "a machine"
    usd = (Decimal(str(least)) * nodes).quantize(Decimal("0.01"), rounding=ROUND_UP)
    return NoOfferError(
        f"by SkyPilot's catalog {what} on {machine.infra.to_str()} ({kind}) costs ${usd:,.2f}/h or more, "
        f"and the recipe pays ${cap * nodes:,.2f}",
        place=f"{document.name}: resources.max_hourly_cost",
        fix=f"add --set hardware.{document.name}.N.price_usd_per_hour={usd}, N counting the recipe's "
            "candidates from 0; or choose another region or cloud: --infra")


def _least(document: Any, machine: Any) -> float | None:
    """Dollars an hour of one machine where it costs least; None where no region has it."""
    from sky.utils import resources_utils

    at_any_price = machine.copy(max_hourly_cost=None)
    kinds = machine.cloud.get_feasible_launchable_resources(at_any_price, document.num_nodes).resources_list
    return min((place.get_cost(_HOUR_S) for kind in kinds
                for place in resources_utils.make_launchables_for_valid_region_zones(kind)), default=None)


def _cloud(machine: Any) -> str:
    return str(machine.cloud).lower()
