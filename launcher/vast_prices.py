"""What Vast has for rent now, machine by machine: live, through its SDK and the search that rentals make.

The account's key is used where Vast's own tools keep it. Each card is searched for twice: what it costs on
demand, and the lowest bid that wins it.
"""

import importlib
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from launcher.engine import has_credentials
from launcher.errors import StoreError
from launcher.market_search import offers_of
from launcher.offers import cloud_offer
from launcher.patience import soon
from launcher.priced_offers import Found, read_offer
from launcher.recipe import Candidate
from launcher.vast_search import query_of, settings_of

SOURCE = "Vast"
_DISK_GIB = 100  # room that a machine must have; as recipes ask
_KEY_FILE = "~/.config/vastai/vast_api_key"
_KEYS = "https://cloud.vast.ai/manage-keys"
# Vast's models of a card, where they are not its name with a space behind RTX. The other way round as in
# SkyPilot 0.14.1 (fetch_vast.py), which finds the models of a rental in its own catalog.
_MODELS = {
    "A100": ("A100 PCIE", "A100 SXM4"), "A100-80GB": ("A100 PCIE", "A100 SXM4"),
    "H100": ("H100 PCIE", "H100 SXM", "H100 NVL"), "H200": ("H200", "H200 NVL"),
    "T4": ("Tesla T4",), "V100": ("Tesla V100",), "V100-32GB": ("Tesla V100",),
    "RTXA6000": ("RTX A6000",), "RTX6000-Ada": ("RTX 6000Ada",),
    "RTXPRO6000": ("RTX PRO 6000 WS", "RTX PRO 6000 S")}


def vast_prices(gpus: Collection[str]) -> Found:
    """The machines of Vast with some cards, on demand and by bid.

    Args:
        gpus: `H100` for any number of it in a machine, `H100:8`.
    """
    if not has_credentials("vast"):
        return Found(down={"vast": f"its key is not here; write it to {_KEY_FILE} ({_KEYS})"})
    try:
        sdk: Any = importlib.import_module("vastai").VastAI(retry=1, quiet=True)
        return soon(lambda: sum((_of_card(sdk, gpu) for gpu in gpus), Found()))
    except ImportError:
        return Found(down={"vast": "its package is not installed; make .venv"})
    except StoreError as error:
        return Found(down={"vast": f"{error.problem}; repeat it later"})
    except Exception as error:  # noqa: BLE001  requests' own text may hold the key
        return Found(down={"vast": _silence(error)})


def _silence(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"it does not take the key (HTTP {status}); write a new one to {_KEY_FILE} ({_KEYS})"
    why = f"HTTP {status}" if status else type(error).__name__
    return f"it did not answer ({why}); repeat it later"


def _of_card(sdk: Any, gpu: str) -> Found:
    now = datetime.now(UTC)
    on_demand, by_bid = (offers_of(sdk, _query(gpu, bids=bids), _DISK_GIB, bids=bids)
                         for bids in (False, True))
    costs = {row.get("machine_id"): row.get("dph_base") for row in on_demand}
    told = [_told(row, gpu, "on-demand", row.get("dph_base"), None, now) for row in on_demand]
    told += [_told(row, gpu, "bid", row.get("min_bid"), costs.get(row.get("machine_id")), now)
             for row in by_bid]
    read = [read_offer(one, f"machine {one['machine_id']}") for one in told]
    problems = [one for one in read if isinstance(one, str)]
    shown = f" (and {len(problems) - 1} more)" if problems[1:] else ""
    return Found(tuple(one for one in read if not isinstance(one, str)),
                 (f"vast: passed over: {problems[0]}{shown}",) if problems else ())


def _query(gpu: str, *, bids: bool) -> dict[str, Any]:
    """The search of a rental at any price, over all models of a card."""
    name, _, number = gpu.partition(":")
    candidate = Candidate(infra="vast", gpu=f"{name}:{number or 1}", disk_gib=_DISK_GIB)
    settings = settings_of(cloud_offer(candidate, datetime.now(UTC)), None, None)
    query: dict[str, Any] = query_of(settings, f"{number or 1}x-any", _DISK_GIB, bids=bids, without=())
    query["gpu_name"] = {"in": list(_MODELS.get(name) or [re.sub(r"^RTX(?=\d)|(?=Ti$)", r"\g<0> ", name)])}
    if not number:
        del query["num_gpus"]
    return query


def _told(row: Mapping[str, Any], gpu: str, terms: str, usd: object, on_demand_usd: object,
          now: datetime) -> dict[str, Any]:
    """What Vast says of a machine, in our words; numbers are read as they are written."""
    def dollars(number: object) -> str | None:
        return None if number is None else str(number)

    return {"cloud": "vast", "region": (row.get("geolocation") or "").lstrip(", "), "terms": terms,
            "gpu": gpu.partition(":")[0], "num_gpus": row.get("num_gpus"),
            "gpu_memory_gib": round((row.get("gpu_ram") or 0) / 1024, 1) or None,
            "price_usd_per_hour": dollars(usd), "on_demand_usd_per_hour": dollars(on_demand_usd),
            "machine_id": row.get("machine_id"), "reliability": row.get("reliability"),
            "cuda": row.get("cuda_max_good"), "sent_usd_per_gb": dollars(row.get("inet_up_cost")),
            "received_usd_per_gb": dollars(row.get("inet_down_cost")), "upload_mbit_s": row.get("inet_up"),
            "download_mbit_s": row.get("inet_down"), "seen_at": now, "source": SOURCE,
            "disk_usd_per_gb_month": dollars(row.get("storage_cost"))}
