"""What the fake of Vast knows: machines for rent, the instances on them, who pays what.

No HTTP (fake_vast.py) and no processes (vast_host.py).
"""

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from tests.lab import vast_charges
from tests.lab.vast_billing import Account, Rates, Status, storage_usd_per_hour
from tests.lab.vast_offers import LIAR_OFFER, Card, Machine, machines, search

PREPAID_USD = Decimal(100)
_OUTBID_BY = Decimal("1.25")
_FIRST_INSTANCE = 5001
MISSING_TAG = ":no-such-tag"  # of an image: no machine can pull it
_ALIVE = (Status.LOADING, Status.RUNNING)
# Vast's words; a stopped instance is `exited`.
_ACTUAL = {Status.LOADING: "loading", Status.RUNNING: "running", Status.STOPPED: "exited"}


class Refused(Exception):
    """Vast says no: an HTTP status and the words of its answer."""

    def __init__(self, status: int, error: str, message: str) -> None:
        super().__init__(message)
        self.status, self.error, self.message = status, error, message


class Host(Protocol):
    """What runs the instances."""

    def address(self, instance_id: int) -> str: ...
    def write_disk(self, instance_id: int, onstart: str) -> None: ...
    def boot(self, instance_id: int, card: Card, count: int, own_key: str,
             is_up: Callable[[], None]) -> None: ...
    def kill(self, instance_id: int) -> None: ...
    def remove_disk(self, instance_id: int) -> None: ...
    def traffic(self, instance_id: int) -> tuple[int, int]: ...


@dataclass
class Instance:
    """One contract. A bid makes it interruptible; it is kept when it is gone, for its bill."""

    id: int
    machine: Machine
    account: Account
    label: str | None
    image: str | None
    env: Mapping[str, str]
    disk_gb: Decimal
    bid: Decimal | None
    started_at: float
    own_key: str = field(default_factory=lambda: secrets.token_hex(16))  # good for this instance alone
    is_wanted: bool = True  # its owner has not stopped it
    boots: int = 0
    is_listed: bool = True

    @property
    def is_alive(self) -> bool:
        """It has the machine's GPUs."""
        return self.account.status in _ALIVE

    @property
    def status_msg(self) -> str:
        """What its machine's docker says, or why it stands still."""
        if (self.image or "").endswith(MISSING_TAG):
            return (f"Error response from daemon: manifest for {self.image} not found: manifest unknown: "
                    "manifest unknown")
        is_outbid = self.account.status is Status.STOPPED and self.is_wanted
        return "outbid: waiting for the GPU" if is_outbid else ""


def clock() -> Decimal:
    """Unix seconds."""
    return Decimal(time.time_ns()) / 10**9


@dataclass
class Market:
    """Every method holds one lock: requests come from many threads."""

    host: Host
    clock: Callable[[], Decimal] = clock
    ssh_keys: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)  # of the account; whoever tests makes them
    _instances: dict[int, Instance] = field(default_factory=dict)
    _record: tuple[Decimal, list[dict[str, Any]]] | None = None  # of charges, and when it was made
    _surcharge_usd: Decimal = Decimal(0)
    _machines: dict[int, Machine] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.restock()

    def restock(self) -> None:
        """Offer every machine at its first price, but the liar. Raises Refused while one is rented."""
        with self._lock:
            if self.rows():
                raise Refused(409, "rented", "instances are rented: destroy them first")
            self._machines = {machine.offer_id: machine for machine in machines()}
            self.show_liar(False)
            self.surcharge(Decimal(0))

    def search(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Offers of the machines that nobody rents here. Raises SearchError."""
        with self._lock:
            return search([one for one in self._machines.values() if self._is_offered(one)], body)

    def rent(self, offer_id: int, body: Mapping[str, Any]) -> int:
        """Make an instance, on demand unless `price` names a bid. Returns its id.

        Raises:
            Refused: The offer is gone, the bid too low, the disk too large.
        """
        with self._lock:
            machine = self._machines.get(offer_id)
            if machine is None or not self._is_offered(machine):
                raise Refused(404, "no_such_ask", f"Instance type by id {offer_id} is not available.")
            bid = None if body.get("price") is None else Decimal(str(body["price"]))
            if bid is not None and bid < machine.min_bid:
                raise Refused(400, "bid_too_low", f"the bid {bid} is below min_bid {machine.min_bid}")
            disk_gb = Decimal(str(body.get("disk") or 10))
            if disk_gb > machine.offer("bid", 0)["disk_space"]:
                raise Refused(400, "no_space", f"the machine does not have {disk_gb} GB")
            rates = Rates(machine.storage_cost, machine.inet_up_cost, machine.inet_down_cost)
            number = _FIRST_INSTANCE + len(self._instances)
            account = Account(rates, machine.dph_base if bid is None else bid, disk_gb, self.clock)
            self._instances[number] = Instance(
                number, machine, account, body.get("label"), body.get("image"), body.get("env") or {},
                disk_gb, bid, float(self.clock()))
            self.host.write_disk(number, body.get("onstart") or "")
            self._boot(self._instances[number])
            return number

    def rows(self) -> list[dict[str, Any]]:
        """All instances that are not destroyed, as Vast lists them."""
        with self._lock:
            return [self._row(one) for one in self._instances.values() if one.is_listed]

    def row(self, instance_id: int) -> dict[str, Any] | None:
        """One of them; None where it is gone, as in Vast's own answer."""
        with self._lock:
            found = self._instances.get(instance_id)
            return self._row(found) if found and found.is_listed else None

    def own_key(self, instance_id: int) -> str | None:
        """The key with which an instance may ask about itself; None where it is gone."""
        with self._lock:
            found = self._instances.get(instance_id)
            return found.own_key if found and found.is_listed else None

    def change(self, instance_id: int, body: Mapping[str, Any]) -> None:
        """Stop it, start it, label it. One that is started waits until its bid wins. Raises Refused."""
        with self._lock:
            instance = self._find(instance_id)
            instance.label = body.get("label", instance.label)
            if "state" in body:
                instance.is_wanted = body["state"] == "running"
                self._settle(instance.machine)

    def bid(self, instance_id: int, price: Any) -> None:
        """Change what is bid for its machine, and paid from now on. Too little loses it, enough gets it back.

        Args:
            price: Dollars an hour; None: the lowest that wins, as Vast's own client says of `change bid`.

        Raises:
            Refused: No such instance, an on-demand one (the kind of a rental never changes), or no price.
        """
        with self._lock:
            instance = self._find(instance_id)
            if instance.bid is None:
                raise Refused(400, "on_demand", f"instance {instance_id} is on-demand: it has no bid")
            bid = instance.machine.min_bid if price is None else Decimal(str(price))
            if not bid.is_finite() or bid <= 0:
                raise Refused(400, "invalid_args", f"the bid {price} is no price")
            instance.bid = bid
            instance.account.costs(bid)
            self._settle(instance.machine)

    def destroy(self, instance_id: int) -> None:
        """End it and its disk; the machine is for rent again. Raises Refused."""
        with self._lock:
            instance = self._find(instance_id)
            self._halt(instance, Status.DESTROYED)
            instance.is_listed = False
            self.host.remove_disk(instance_id)

    def outbid(self, instance_id: int) -> None:
        """Others bid more for its machine. Raises Refused where it is not an interruptible one."""
        with self._lock:
            instance = self._find(instance_id)
            if instance.bid is None:
                raise Refused(400, "on_demand", f"instance {instance_id} is on-demand: nobody can outbid it")
            instance.machine.min_bid = (instance.bid * _OUTBID_BY).quantize(Decimal("0.0001"))
            self._settle(instance.machine)

    def vanish(self, instance_id: int) -> None:
        """Its host is gone for good, with disk and offer; only its bill remains. Raises Refused."""
        with self._lock:
            instance = self._find(instance_id)
            instance.machine.is_listed = False
            self.destroy(instance_id)

    def price(self, machine_id: int, prices: Mapping[str, Any]) -> None:
        """Change what a machine costs from now on ($/h), for its instances too.

        Args:
            prices: `dph_base`: what on-demand costs. `min_bid`: the lowest bid that wins; one that loses is
                stopped, one that wins again is started. `bid_price`: the bid of its interruptible instances.

        Raises:
            Refused: No such machine.
        """
        with self._lock:
            machine = next((one for one in self._machines.values() if one.machine_id == machine_id), None)
            if machine is None:
                raise Refused(404, "no_such_machine", f"there is no machine {machine_id}")
            machine.dph_base = Decimal(str(prices.get("dph_base", machine.dph_base)))
            machine.min_bid = Decimal(str(prices.get("min_bid", machine.min_bid)))
            for instance in self._on(machine):
                if instance.bid is None and "dph_base" in prices:
                    instance.account.costs(machine.dph_base)
                elif instance.bid is not None and "bid_price" in prices:
                    instance.bid = Decimal(str(prices["bid_price"]))
                    instance.account.costs(instance.bid)
            self._settle(machine)

    def show_liar(self, is_shown: bool) -> None:
        """Offer the machine whose host says H100 and has another card, or do not."""
        with self._lock:
            self._machines[LIAR_OFFER].is_listed = is_shown

    def bill(self) -> dict[str, Any]:
        """What every instance has cost, those that are gone too, and all together."""
        with self._lock:
            for instance in self._instances.values():
                self._count_bytes(instance)
            bills = {one.id: one.account.bill() for one in self._instances.values()}
            total = sum((bill.total_usd for bill in bills.values()), Decimal(0))
            return {"instances": {
                str(number): {"label": self._instances[number].label,
                              "machine_id": self._instances[number].machine.machine_id} | bill.as_json()
                for number, bill in bills.items()}, "total_usd": f"{total:f}"}

    def charges(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The record of what was charged, as the account's owner sees it: some seconds old."""
        with self._lock:
            now = self.clock()
            if self._record is None or now - self._record[0] >= vast_charges.LAG_S:
                for instance in self._instances.values():
                    self._count_bytes(instance)
                newest = max(self._instances, default=0)
                self._record = now, [vast_charges.row(
                    one.id, one.label, one.account.bill(), now,
                    self._surcharge_usd if one.id == newest else Decimal(0))
                    for one in self._instances.values()]
            return vast_charges.page(self._record[1], asked)

    def surcharge(self, usd: Decimal) -> None:
        """Charge so much too much for the newest instance, in the record and nowhere else."""
        with self._lock:
            self._surcharge_usd = usd

    def account_row(self) -> dict[str, Any]:
        """The account that pays: `credit` is what is left of what was prepaid."""
        return {"id": 1, "username": "lab", "email": "lab@localhost", "balance": 0.0,
                "credit": float(PREPAID_USD - Decimal(self.bill()["total_usd"]))}

    def close(self) -> None:
        """Destroy every instance."""
        with self._lock:
            for instance in self._instances.values():
                if instance.is_listed:
                    self.destroy(instance.id)

    def _find(self, instance_id: int) -> Instance:
        found = self._instances.get(instance_id)
        if found is None or not found.is_listed:
            raise Refused(404, "no_such_instance", f"no instance {instance_id}")
        return found

    def _on(self, machine: Machine) -> list[Instance]:
        return [one for one in self._instances.values() if one.machine is machine and one.is_listed]

    def _is_offered(self, machine: Machine) -> bool:
        return machine.is_listed and self._is_free(machine)

    def _is_free(self, machine: Machine) -> bool:
        return not any(one.is_alive for one in self._on(machine))

    def _settle(self, machine: Machine) -> None:
        """Stop what may not run on a machine any more, start what may again."""
        for instance in self._on(machine):
            may_run = instance.is_wanted and (instance.bid is None or instance.bid >= machine.min_bid)
            if instance.is_alive and not may_run:
                self._halt(instance, Status.STOPPED)
            elif may_run and self._is_free(machine):
                self._boot(instance)

    def _boot(self, instance: Instance) -> None:
        instance.boots += 1
        this_boot = instance.boots
        instance.account.becomes(Status.LOADING)

        def is_up() -> None:
            with self._lock:
                if instance.boots == this_boot and instance.account.status is Status.LOADING:
                    instance.account.becomes(Status.RUNNING)

        machine = instance.machine
        if not (instance.image or "").endswith(MISSING_TAG):  # else it is loading for ever
            self.host.boot(instance.id, machine.card, machine.num_gpus, instance.own_key, is_up)

    def _halt(self, instance: Instance, status: Status) -> None:
        self._count_bytes(instance)
        self.host.kill(instance.id)
        instance.account.becomes(status)

    def _count_bytes(self, instance: Instance) -> None:
        instance.account.transferred(*self.host.traffic(instance.id))

    def _row(self, one: Instance) -> dict[str, Any]:
        machine, status = one.machine, one.account.status
        gpu, storage = one.account.gpu_usd_per_hour, storage_usd_per_hour(machine.storage_cost, one.disk_gb)
        address = self.host.address(one.id)
        return machine.offer("on-demand", 0) | {
            "id": one.id, "label": one.label, "image_uuid": one.image, "extra_env": list(one.env.items()),
            "actual_status": _ACTUAL[status], "cur_state": "running" if one.is_alive else "stopped",
            "intended_status": "running" if one.is_wanted else "stopped",
            "status_msg": one.status_msg,
            "is_bid": one.bid is not None, "bid_price": None if one.bid is None else float(one.bid),
            "dph_base": float(gpu), "dph_total": float(gpu + storage), "storage_total_cost": float(storage),
            "disk_space": float(one.disk_gb), "rented": True, "start_date": one.started_at,
            "ssh_host": address, "ssh_port": 22, "public_ipaddr": address, "local_ipaddrs": address,
            "ports": {},
        }
