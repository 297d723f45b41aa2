"""The record of charges that the fake of Vast shows at GET /api/v0/charges/, made of its instances' bills.

The form is that of Vast's documentation (one row a contract, its items beneath it; days as Unix seconds at
midnight; pages by a token). Guesses: amounts are rounded to a tenth of a cent, item by item; the record is
made anew every `LAG_S` seconds, so that what has been billed since then is not in it yet.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from tests.lab.vast_billing import Bill

LAG_S = 15
_DAY_S = 24 * 3600
_MOST = 100  # rows a page
_STEP_USD = Decimal("0.001")


def row(instance_id: int, label: str | None, bill: Bill, now: Decimal,
        surcharge_usd: Decimal) -> dict[str, Any]:
    """One contract.

    Args:
        surcharge_usd: Charged for its GPUs beyond what they cost: a provider's error.
    """
    start = _midnight(bill.segments[0].since)
    destroyed = [segment.since for segment in bill.segments if segment.status == "destroyed"]
    end = _midnight(destroyed[0] if destroyed else now)
    hours = bill.seconds["running"] / 3600
    items = [_item(start, end, "gpu", f"{hours:.3f} hours", bill.gpu_usd + surcharge_usd),
             _item(start, end, "disk", "Storage", bill.storage_usd),
             _item(start, end, "bwd", f"{bill.bytes_down / 1e9:.1f} GB Downloaded", bill.down_usd),
             _item(start, end, "bwu", f"{bill.bytes_up / 1e9:.1f} GB Uploaded", bill.up_usd)]
    return {"start": start, "end": end, "type": "instance", "source": f"instance-{instance_id}",
            "description": f"Instance {instance_id} Charges", "metadata": {"label": label}, "items": items,
            "amount": round(sum(item["amount"] for item in items), 3)}


def page(rows: Iterable[Mapping[str, Any]], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The rows that a request asks for.

    Args:
        asked: Its query: `select_filters`, `latest_first`, `limit`, `after_token`.
    """
    day = asked.get("select_filters", {}).get("day")
    if not day:
        return {"success": False, "error": "invalid_args", "msg": "select_filters.day is required"}
    types = asked["select_filters"].get("type", {}).get("in", ["instance"])
    found = [found for found in rows if found["type"] in types
             and found["end"] >= day["gte"] and found["start"] <= day["lte"]]
    found.sort(key=lambda one: one["start"], reverse=bool(asked.get("latest_first", True)))
    begin, limit = int(asked.get("after_token") or 0), min(int(asked.get("limit", 20)), _MOST)
    shown = found[begin:begin + limit]
    more = begin + limit < len(found)
    return {"success": True, "count": len(shown), "total": len(found), "results": shown,
            "next_token": str(begin + limit) if more else None}


def _item(start: int, end: int, kind: str, words: str, usd: Decimal) -> dict[str, Any]:
    return {"start": start, "end": end, "type": kind, "source": None, "description": words,
            "amount": float(usd.quantize(_STEP_USD)), "metadata": {}, "items": []}


def _midnight(moment: Decimal) -> int:
    return int(moment) // _DAY_S * _DAY_S
