"""What Vast's own record says that machines have cost, asked through its SDK. See `launcher/reconcile.py`."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from launcher.reconcile import Charge, Charges

_PAGE = 100  # the most that the SDK asks for
_MAX_PAGES = 50
_DAY_S = 24 * 3600
_SOURCE = "instance-"


def charges_at_vast(sdk: Any, instance_ids: Collection[str], since: datetime, now: datetime) -> Charges:
    """Look machines up in the account's record.

    Args:
        sdk: Vast's, 1.9.1.
        since: When the first of them was rented.

    Raises:
        RuntimeError: Vast's answer is that it has none.
    """
    return charged(_rows(sdk, since, now), instance_ids)


def charged(rows: Iterable[Mapping[str, Any]], instance_ids: Collection[str]) -> Charges:
    """The charges of some machines among the rows of a record; several rows of one add up (pure)."""
    totals: dict[str, Decimal] = {}
    kinds: dict[str, dict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    for row in rows:
        name = str(row.get("source") or "").removeprefix(_SOURCE)
        if row.get("type") != "instance" or name not in instance_ids:
            continue
        totals[name] = totals.get(name, Decimal(0)) + _usd(row)
        for item in row.get("items") or ():
            kinds[name][str(item["type"])] += _usd(item)
    return Charges(charges=tuple(Charge(instance_id=name, usd=usd, usd_by_kind=dict(kinds[name]))
                                 for name, usd in totals.items()))


def _rows(sdk: Any, since: datetime, now: datetime) -> Iterator[Mapping[str, Any]]:
    # A charge is booked on its day, which begins at midnight: asked for from a later hour it is left out.
    midnight = int(since.timestamp()) // _DAY_S * _DAY_S
    token = None
    for _ in range(_MAX_PAGES):
        page = sdk.show_invoices_v1(charges=True, charge_type=["instance"], start_date=midnight,
                                    end_date=int(now.timestamp()), limit=_PAGE, next_token=token)
        if page.get("success") is False:
            raise RuntimeError(f"Vast gives no charges: {page.get('msg') or page.get('error')}")
        yield from page["results"]
        token = page.get("next_token")
        if not token:
            return


def _usd(row: Mapping[str, Any]) -> Decimal:
    return Decimal(str(row["amount"]))
