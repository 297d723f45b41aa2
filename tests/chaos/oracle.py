"""What has to be true of a run, from its files alone: no code of the trainer reads them here."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard

# What a resume goes on from, however it was stored: by kind and group, every number as float32, end to end;
# and the small tensors.
State = dict[str, bytes]

_KEPT_BYTES = {"float32": 4, "float24": 3, "bfloat16": 2}  # the upper ones of a float32
_RECORD = re.compile(r"attempts/\d+/((attempt|heartbeat|end|machine)\.json|metrics/\d+\.jsonl"
                     r"|evaluations/\d+\.json|stacks/rank-\d{4}\.txt)"
                     r"|outcome\.json|evaluation/result\.json|events/.*\.json|news/\d+/[a-z0-9-]+\.json")


class Truth(NamedTuple):
    """What a run comes to that nobody interrupts.

    Attributes:
        losses: By step, then by name, as hex floats: equal text is equal bits.
        states: By step, of those that are saved.
    """

    losses: dict[int, dict[str, str]]
    states: dict[int, State]


class Keep(NamedTuple):
    """Checkpoints that stay: so many of the newest, and those of some steps."""

    newest: int
    steps: frozenset[int] = frozenset()


def losses(run: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Every row of losses of every attempt."""
    for path in sorted(run.glob("attempts/*/metrics/*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found = {name: float(value).hex() for name, value in row.items() if name.startswith("loss/")}
            if found:
                yield int(row["step"]), found


def read_state(folder: Path) -> State | None:
    """What a checkpoint holds; None where it is not whole, or not what its manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        files = {file["name"]: (folder / file["name"]).read_bytes()
                 for file in (*manifest["shards"], manifest["rest"])}
        for file in (*manifest["shards"], manifest["rest"]):
            if len(files[file["name"]]) != file["num_bytes"]:
                return None
        rest = files[manifest["rest"]["name"]]
        if hashlib.sha256(rest).hexdigest() != manifest["rest"]["sha256"]:
            return None
        vectors: dict[str, dict[int, bytes]] = {}
        for piece in manifest["pieces"]:
            vectors.setdefault(f"{piece['kind']} {piece['group']}", {})[piece["begin"]] = _decoded(
                piece, files[piece["file"]])
        return {"rest": rest} | _with_averages({name: b"".join(parts[begin] for begin in sorted(parts))
                                                for name, parts in vectors.items()})
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, zstandard.ZstdError):
        return None


def _decoded(piece: dict[str, Any], data: bytes) -> bytes:
    kept, count = _KEPT_BYTES[piece["dtype"]], piece["count"]
    stored = data[piece["offset"]:piece["offset"] + piece["num_bytes"]]
    high = zstandard.decompress(stored[:piece["packed_bytes"]])
    if len(high) != count or len(stored) - piece["packed_bytes"] != (kept - 1) * count:
        raise ValueError("a piece has another length")
    numbers = np.zeros((count, 4), np.uint8)
    low = np.frombuffer(stored[piece["packed_bytes"]:], np.uint8)
    numbers[:, 4 - kept:-1] = low.reshape(kept - 1, count).T
    numbers[:, -1] = np.frombuffer(high, np.uint8)
    return numbers.tobytes()


def _with_averages(vectors: State) -> State:
    """The average itself where its distance from the weights was stored."""
    found = {}
    for name, data in vectors.items():
        kind, group = name.split()
        if kind == "average_delta":
            weights = np.frombuffer(vectors[f"master {group}"], np.float32)
            name, data = f"average {group}", (weights + np.frombuffer(data, np.float32)).tobytes()
        found[name] = data
    return found


def is_rounded(folder: Path) -> bool:
    """A checkpoint holds moments and averages in fewer bits than training has of them."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    forms = {(piece["kind"], piece["dtype"]) for piece in manifest["pieces"]}
    return forms == {("master", "float32"), ("momentum", "bfloat16"), ("variance", "float24"),
                     ("average_delta", "bfloat16")}


def checkpoints(run: Path) -> dict[int, Path]:
    """Folders that have a manifest, by step."""
    return {int(path.parent.name.removeprefix("step-")): path.parent
            for path in run.glob("checkpoints/step-*/manifest.json")}


def newest_true(run: Path, truth: Truth) -> int:
    """The newest step whose checkpoint holds the bits that it has to hold; 0: none."""
    return max((step for step, folder in checkpoints(run).items()
                if (state := read_state(folder)) is not None and state == truth.states.get(step)), default=0)


def told_durable(run: Path) -> int:
    """The newest step that some heartbeat has called durable."""
    told = [0]
    for path in run.glob("attempts/*/heartbeat.json"):
        told.append(json.loads(path.read_bytes())["durable_step"])
    return max(told)


def lies(run: Path, truth: Truth) -> list[str]:
    """Checkpoints that look whole and hold other bits than they have to."""
    return [f"the checkpoint of step {step} holds other bits than the uninterrupted run's"
            for step, folder in checkpoints(run).items()
            if (state := read_state(folder)) is not None and state != truth.states.get(step)]


def faults_of_a_finished_run(run: Path, truth: Truth, num_steps: int, keep: Keep) -> list[str]:
    """What is wrong at the end."""
    wrong = lies(run, truth)
    if newest_true(run, truth) != num_steps:
        wrong.append(f"the newest good checkpoint is of step {newest_true(run, truth)}, not {num_steps}")
    seen: set[int] = set()
    for step, row in losses(run):
        seen.add(step)
        if row != truth.losses[step]:
            wrong.append(f"the losses of step {step} are not the uninterrupted run's")
    if missing := sorted(set(range(1, num_steps + 1)) - seen):
        wrong.append(f"no losses of steps {missing}")
    wrong += [f"the checkpoint of step {step} stays" for step in superfluous(checkpoints(run), keep)]
    return [*wrong, *(f"{name} stays for ever" for name in sorted(debris(run)))]


def superfluous(found: Iterable[int], keep: Keep) -> Iterator[int]:
    """Steps of checkpoints that need not stay. For one of those of `keep` that is not there, the next may."""
    steps = sorted(found, reverse=True)
    for place, (step, before) in enumerate(zip(steps, [*steps[1:], 0], strict=True)):
        if place >= keep.newest and not any(before < one <= step for one in keep.steps):
            yield step


def debris(run: Path) -> Iterator[str]:
    """Files that nothing needs, and empty folders."""
    for place, folders, files in os.walk(run):
        where = os.path.relpath(place, run)
        if where.startswith("checkpoints/") and not folders and not files:
            yield f"{where}/"
        needed: set[str] = set()
        if where.startswith("checkpoints/") and "manifest.json" in files:
            manifest = json.loads(Path(place, "manifest.json").read_bytes())
            needed = {"manifest.json", *(file["name"] for file in (*manifest["shards"], manifest["rest"]))}
        for name in files:
            path = name if where == "." else f"{where}/{name}"
            if name not in needed and not _RECORD.fullmatch(path):
                yield path
