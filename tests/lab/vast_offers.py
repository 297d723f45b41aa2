"""The machines that the fake of Vast has to rent out, and its search over them.

All prices are made up, in the range of 2026's.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tests.lab.vast_billing import storage_usd_per_hour

_NO_FILTERS = {"order", "type", "limit", "allocated_storage", "disable_bundling"}
_ALLOCATED_GB = 5.0  # where a search does not say
_NUMBERS: Mapping[str, Callable[[float, float], bool]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


class SearchError(ValueError):
    """A search that Vast would refuse."""


@dataclass(frozen=True)
class Card:
    """What the driver says of a GPU. Memory in MiB."""

    name: str
    memory_mib: int


H100 = Card("NVIDIA H100 80GB HBM3", 81559)
RTX_5090 = Card("NVIDIA GeForce RTX 5090", 32607)
RTX_3060 = Card("NVIDIA GeForce RTX 3060", 12288)


@dataclass
class Machine:
    """One offer: all GPUs of one host, whose prices ($/h) are of all of them together. Memory in MB."""

    offer_id: int
    machine_id: int
    gpu_name: str
    num_gpus: int
    card: Card  # what is really there
    dph_base: Decimal
    min_bid: Decimal
    geolocation: str
    compute_cap: int
    gpu_ram: int
    cpu_ram: int
    cpu_cores: int
    cuda_max_good: float = 13.0
    driver_version: str = "580.95.05"
    reliability: float = 0.995
    storage_cost: Decimal = Decimal("0.15")  # $/GB/month
    inet_up_cost: Decimal = Decimal("0.004")  # $/GB
    inet_down_cost: Decimal = Decimal("0.002")
    is_listed: bool = True

    def offer(self, kind: str, allocated_gb: float) -> dict[str, Any]:
        """As a search shows it.

        Args:
            kind: `on-demand` or `bid`: which price its totals are made of.
            allocated_gb: Disk that the total price includes.
        """
        gpu = self.min_bid if kind == "bid" else self.dph_base
        storage = storage_usd_per_hour(self.storage_cost, Decimal(str(allocated_gb)))
        return {
            "id": self.offer_id, "ask_contract_id": self.offer_id, "machine_id": self.machine_id,
            "host_id": self.machine_id // 10, "gpu_name": self.gpu_name, "num_gpus": self.num_gpus,
            "gpu_frac": 1.0, "gpu_ram": self.gpu_ram, "gpu_total_ram": self.gpu_ram * self.num_gpus,
            "compute_cap": self.compute_cap, "cuda_max_good": self.cuda_max_good,
            "driver_version": self.driver_version, "reliability": self.reliability,
            "reliability2": self.reliability, "cpu_ram": self.cpu_ram, "cpu_arch": "amd64",
            "cpu_cores": self.cpu_cores, "cpu_cores_effective": float(self.cpu_cores), "disk_space": 800.0,
            "disk_bw": 3200.0, "inet_down": 2400.0, "inet_up": 1100.0, "direct_port_count": 100,
            "inet_down_cost": float(self.inet_down_cost), "inet_up_cost": float(self.inet_up_cost),
            "storage_cost": float(self.storage_cost), "storage_total_cost": float(storage),
            "dph_base": float(gpu), "dph_total": float(gpu + storage), "min_bid": float(self.min_bid),
            "score": float(self.num_gpus * self.gpu_ram / (gpu or 1)), "duration": 30 * 86400.0,
            "geolocation": self.geolocation, "verified": True, "verification": "verified",
            "rentable": True, "rented": False, "external": False, "datacenter": True, "hosting_type": 1,
            "static_ip": True,
        }


def machines() -> list[Machine]:
    """What is for rent. The last one is a liar: its host says H100 and has another card.

    By `score`, Vast's own order, an unreliable H100 and one with an old driver come first: a search that has
    lost its filters gets them, whatever it was for.
    """
    return [_h100(1002, 4102, "3.10", "1.30", "Texas, US"),
            _h100(1003, 4103, "3.60", "1.45", "Virginia, US"),
            _h100(1004, 4104, "4.20", "1.60", "Ontario, CA"),
            _h100(1005, 4201, "2.40", "0.95", "Utah, US", cuda_max_good=12.2, driver_version="535.104.5"),
            _h100(1006, 4202, "2.20", "0.90", "Florida, US", reliability=0.81),
            _rtx_5090(1007, 5101, "0.51", "0.23", "Spain, ES"),
            _rtx_5090(1008, 5102, "0.55", "0.25", "Sweden, SE"),
            _rtx_3060(1009, 6101, "0.09", "0.05", "Poland, PL"),
            _rtx_3060(1010, 6102, "0.10", "0.06", "Finland, FI"),
            _h100(LIAR_OFFER, 4101, "1.90", "0.80", "Texas, US", card=RTX_3060)]


LIAR_OFFER = 1001


def _h100(offer_id: int, machine_id: int, dph: str, bid: str, place: str, **more: Any) -> Machine:
    return Machine(offer_id, machine_id, "H100 SXM", 2, dph_base=Decimal(dph), min_bid=Decimal(bid),
                   geolocation=place, compute_cap=900, gpu_ram=81559, cpu_ram=262144, cpu_cores=64,
                   **{"card": H100} | more)


def _rtx_5090(offer_id: int, machine_id: int, dph: str, bid: str, place: str) -> Machine:
    return Machine(offer_id, machine_id, "RTX 5090", 1, RTX_5090, Decimal(dph), Decimal(bid), place,
                   compute_cap=1200, gpu_ram=32607, cpu_ram=131072, cpu_cores=32)


def _rtx_3060(offer_id: int, machine_id: int, dph: str, bid: str, place: str) -> Machine:
    return Machine(offer_id, machine_id, "RTX 3060", 1, RTX_3060, Decimal(dph), Decimal(bid), place,
                   compute_cap=860, gpu_ram=12288, cpu_ram=65536, cpu_cores=32)


def search(stock: Sequence[Machine], body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The offers of these machines that a search asks for, in its order.

    Args:
        body: As POST /api/v0/bundles/ has it: `{field: {operator: value}}`, `type`, `order`, `limit`.

    Raises:
        SearchError: An unknown field, operator or kind: a typo must not find everything.
    """
    kind = body.get("type", "on-demand")
    if kind not in ("on-demand", "bid"):
        raise SearchError(f"type is {kind!r}, not on-demand or bid")
    found = [machine.offer(kind, float(body.get("allocated_storage", _ALLOCATED_GB))) for machine in stock]
    for name, conditions in body.items():
        if name not in _NO_FILTERS:
            found = [offer for offer in found if _holds(offer, name, conditions)]
    for name, direction in reversed(body.get("order", [])):
        found.sort(key=lambda offer: offer[name], reverse=direction == "desc")
    return found[:int(body.get("limit") or len(found))]


def _holds(offer: Mapping[str, Any], name: str, conditions: Mapping[str, Any]) -> bool:
    if name not in offer:
        raise SearchError(f"offers have no field {name!r}")
    return all(_compares(offer[name], name, how, wanted) for how, wanted in conditions.items())


def _compares(value: Any, name: str, how: str, wanted: Any) -> bool:
    if how in _NUMBERS:
        return _NUMBERS[how](_number(name, value), _number(name, wanted))
    if how in ("eq", "neq"):
        return _same(name, value, wanted) == (how == "eq")
    if how in ("in", "notin"):
        return any(_same(name, value, one) for one in wanted) == (how == "in")
    raise SearchError(f"{name}: no operator {how!r}")


def _same(name: str, value: Any, wanted: Any) -> bool:
    if name == "geolocation":  # a country's code finds its places
        return wanted in (value, value.rpartition(", ")[2])
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if name == "driver_version" or isinstance(value, int | float):
        return _number(name, value) == _number(name, wanted)
    return bool(value == wanted)


def _number(name: str, value: Any) -> float:
    """Clients send numbers as text, and drivers as one number: 570.133.20 is 570133020."""
    if name == "driver_version" and "." in str(value):
        return float("".join(part.zfill(3) for part in value.split(".")))
    try:
        return float(value)
    except ValueError:
        raise SearchError(f"{name}: {value!r} is no number") from None
