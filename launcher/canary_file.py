"""One file that says all of a canary run, to attach to a bug report: without a secret, a name or a home."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.canary_claims import verdicts_json
from launcher.canary_evidence import Evidence, Verdict
from launcher.reconcile import Charges

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|SAS", re.IGNORECASE)
_SHORTEST_SECRET = 6  # shorter ones stand in too many other words
_IN_A_URL = re.compile(r"(?<=://)[^/@\s]+@")
_HIDDEN = "(hidden)"


def contents(evidence: Evidence, verdicts: Sequence[Verdict], charges: Charges | None, task: str,
             versions: Mapping[str, str | None]) -> dict[str, Any]:
    """Everything that a run has left, as JSON values; not yet safe to give away, see `without_secrets`."""
    record = evidence.record
    return {
        "run_id": record.run_id, "versions": dict(versions), "verdicts": verdicts_json(verdicts),
        "machines": {str(number): seen.model_dump(mode="json") for number, seen in evidence.machines.items()},
        "cost": evidence.report.to_json(),
        "reconciliation": evidence.reconciliation.to_json() if evidence.reconciliation else None,
        "charges": charges.model_dump(mode="json")["charges"] if charges else None,
        "rentals": [rental.model_dump(mode="json") for rental in record.rentals],
        "attempts": [files.model_dump(mode="json") for files in record.attempts],
        "events": [event.model_dump(mode="json") for event in record.events],
        "outcome": record.outcome.model_dump(mode="json") if record.outcome else None,
        "benchmark": record.bench, "plan": evidence.plan.model_dump(mode="json"),
        "recipe": evidence.recipe.model_dump(mode="json"), "task": task,
    }


def secrets_of(environ: Mapping[str, str], more: Iterable[str] = ()) -> list[str]:
    """Values of an environment that must not be given away, by their names; the longest first.

    Args:
        more: Others, whatever their names are.
    """
    found = {value for name, value in environ.items() if _SECRET_NAME.search(name)} | set(more)
    return sorted((value for value in found if len(value) >= _SHORTEST_SECRET), key=len, reverse=True)


def without_secrets(value: Any, secrets: Sequence[str], names: Mapping[str, str]) -> Any:
    """A JSON value in which no text holds a secret, or one of the names of a person and a machine.

    Args:
        secrets: The longest first.
        names: What stands for each: `{"/home/ann": "~", "ann": "USER"}`. Of words, only whole ones.
    """
    if isinstance(value, dict):
        return {without_secrets(key, secrets, {}): without_secrets(part, secrets, names)
                for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part, secrets, names) for part in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, _HIDDEN)
    value = _IN_A_URL.sub(f"{_HIDDEN}@", value)
    for name, word in names.items():
        value = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", word, value)
    return value


def as_text(value: Any) -> str:
    """As the file has it."""
    return json.dumps(value, indent=1) + "\n"
