"""What SkyPilot's server remembers of the machines that it has rented for us: one line for each thing learnt.

Several processes of the server write it and some die while they do, so a line is one write, lines are only
added, and one that is torn is passed over.
"""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from launcher.rentals import Rental

_PATH = Path("~/.sky/ldlm_rentals.jsonl")


def rented(rental: Rental) -> None:
    """A machine was rented."""
    _add(rental.model_dump(mode="json", exclude_defaults=True))  # what is learnt of it comes later


def seen_running(instance_id: str, at: datetime) -> None:
    """It runs since now."""
    _add({"instance_id": instance_id, "running_at": at.isoformat()})


def repriced(instance_id: str, at: datetime, usd_per_hour: Decimal) -> None:
    """An hour of its GPUs costs something else from now on."""
    _add({"instance_id": instance_id, "price": {"at": at.isoformat(), "usd_per_hour": str(usd_per_hour)}})


def unpulled(instance_id: str, image: str) -> None:
    """It could not pull its image, which is the image's fault."""
    _add({"instance_id": instance_id, "unpulled": image})


def wrong(instance_id: str) -> None:
    """It is not the machine that its run pays for."""
    _add({"instance_id": instance_id, "is_wrong": True})


def left_by_choice(run_id: str) -> None:
    """What a run has now is about to be left, by its course."""
    for rental in read().values():
        if rental.run_id == run_id and rental.ended_at is None:
            _add({"instance_id": rental.instance_id, "left_by_choice": True})


def gone(instance_id: str, at: datetime) -> None:
    """Its provider does not list it."""
    _add({"instance_id": instance_id, "ended_at": at.isoformat()})


def given_back(instance_id: str, at: datetime) -> None:
    """It was asked to end."""
    _add({"instance_id": instance_id, "ended_at": at.isoformat(), "given_back_at": at.isoformat()})


def given_up(instance_id: str, at: datetime, why: str) -> None:
    """It was asked to end before it had ever run."""
    _add({"instance_id": instance_id, "ended_at": at.isoformat(), "given_back_at": at.isoformat(),
          "given_up": why})


def returned(instance_id: str, at: datetime) -> None:
    """Its provider lists it after all: it has not ended."""
    _add({"instance_id": instance_id, "returned_at": at.isoformat()})


def read() -> dict[str, Rental]:
    """Every rental that is remembered, by its instance id, oldest first."""
    return read_all()[0]


def read_all() -> tuple[dict[str, Rental], int]:
    """The same, and how many lines are torn or make no sense: what they told is not known."""
    rows: dict[str, dict[str, Any]] = {}
    found: dict[str, Rental] = {}
    num_torn = 0
    for line in _lines():
        try:
            row = _taken_in(rows, json.loads(line))
            found[row["instance_id"]] = Rental.model_validate_json(json.dumps(row))
        except KeyError:  # of a machine that was not rented through us
            continue
        except (ValueError, TypeError, AttributeError):
            num_torn += 1
            continue
        rows[row["instance_id"]] = row
    return found, num_torn


def _lines() -> list[str]:
    try:
        text = _PATH.expanduser().read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if line]


def _taken_in(rows: Mapping[str, dict[str, Any]], line: dict[str, Any]) -> dict[str, Any]:
    """What is known of a machine with one more line."""
    instance_id, price = line["instance_id"], line.pop("price", None)
    row = dict(rows.get(instance_id, {}) if "machine_id" in line else rows[instance_id])
    if "returned_at" in line:
        row.pop("ended_at", None)
    # What was learnt first stands: two processes may both see that a machine has ended.
    row |= {name: value for name, value in line.items() if name not in row}
    if price:
        row["prices"] = [*row["prices"], price]
    return row


def _add(line: dict[str, Any]) -> None:
    path = _PATH.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        # After a torn line, which has no end, a line of its own.
        os.write(handle, b"\n" + json.dumps(line).encode() + b"\n")
    finally:
        os.close(handle)
