"""The controls of the lab's fake of Vast, for tests."""

import json
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

HOST_ADDRESS = "10.88.0.1"  # by which instances reach this machine, and this machine itself


@dataclass(frozen=True)
class FakeVast:
    """Where it listens (`http://10.88.0.1:8099`) and the key that it takes."""

    url: str
    key: str

    def instances(self) -> list[dict[str, Any]]:
        """What is rented now, as Vast lists it."""
        return list(self._ask("GET", "/api/v1/instances/")["instances"])

    def offers(self, **filters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What can be rented now: `offers(gpu_name={"eq": "RTX 5090"})`."""
        return list(self._ask("POST", "/api/v0/bundles/", filters)["offers"])

    def rent(self, offer_id: int, **body: Any) -> int:
        """Rent an offer as Vast's clients do: `price` is a bid ($/h), `disk` is in GB. Returns the new id."""
        return int(self._ask("PUT", f"/api/v0/asks/{offer_id}/", body)["new_contract"])

    def destroy(self, instance_id: int) -> None:
        """End an instance as its owner."""
        self._ask("DELETE", f"/api/v0/instances/{instance_id}/")

    def requests(self, method: str = "", path: str = "") -> list[dict[str, Any]]:
        """What has been asked of it, oldest first: of one method, under one path, or all."""
        return [one for one in self._ask("GET", "/_fake/requests")
                if method in ("", one["method"]) and one["path"].startswith(path)]

    def bill(self) -> dict[str, Any]:
        """What every instance has cost, by id; dollars and seconds are decimal text."""
        return dict(self._ask("GET", "/_fake/bill")["instances"])

    def total_usd(self) -> Decimal:
        """What all instances together have cost."""
        return Decimal(self._ask("GET", "/_fake/bill")["total_usd"])

    def credit_usd(self) -> float:
        """What is left of what was prepaid."""
        return float(self._ask("GET", "/api/v0/users/current/")["credit"])

    def outbid(self, instance_id: int) -> None:
        """Take an interruptible instance's GPUs away; its disk stays."""
        self._ask("POST", f"/_fake/outbid/{instance_id}")

    def vanish(self, instance_id: int) -> None:
        """Lose an instance's host without a trace."""
        self._ask("POST", f"/_fake/vanish/{instance_id}")

    def price(self, machine_id: int, **usd_per_hour: str) -> None:
        """Change prices of a machine from now on: `dph_base`, `min_bid`, `bid_price`."""
        self._ask("POST", f"/_fake/price/{machine_id}", usd_per_hour)

    def show_liar(self, is_shown: bool) -> None:
        """Offer the H100 machine that has an RTX 3060, or do not."""
        self._ask("POST", f"/_fake/liar/{'on' if is_shown else 'off'}")

    def surcharge(self, usd: str) -> None:
        """Charge so much too much for the newest instance, in the record of charges alone."""
        self._ask("POST", "/_fake/surcharge", {"usd": usd})

    def restock(self) -> None:
        """All offers and prices as at the start. Nothing may be rented."""
        self._ask("POST", "/_fake/restock")

    def wait_for(self, actual_status: str, timeout_s: float = 120) -> dict[str, Any]:
        """The only instance that is rented, once it has this status."""
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            rows = self.instances()
            if len(rows) == 1 and rows[0]["actual_status"] == actual_status:
                return rows[0]
            time.sleep(0.2)
        raise AssertionError(f"no instance was {actual_status} within {timeout_s} s")

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body or {}).encode(),
                                         {"Authorization": f"Bearer {self.key}"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
