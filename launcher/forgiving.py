"""Reads what is whole of a run's folder, and keeps what is wrong with the rest."""

import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from launcher.mended import is_unheard
from launcher.recorded import Bench, Recorded
from launcher.stand_ins import Remains
from trainer.contract import Name, attempt_file
from trainer.run_folder import Attempt, AttemptEnd, AttemptFiles, Heartbeat, RunFolder
from trainer.store import DamagedError, NotFoundError

_AnyRecord = TypeVar("_AnyRecord", bound=BaseModel)
_AnyPart = TypeVar("_AnyPart", bound=Recorded)


class ForgivingFolder(RunFolder):
    """Passes over what cannot be read.

    Attributes:
        torn: What is wrong with each of those.
        remains: Of attempts whose own record is among them.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.store, folder.run_id)
        self.torn: list[DamagedError] = []
        self.remains: list[Remains] = []

    def find(self, name: str, kind: type[_AnyRecord]) -> _AnyRecord | None:
        """One record; None: it is not there, or torn."""
        try:
            return super().find(name, kind)
        except DamagedError as error:
            self.torn.append(error)
            return None

    def attempt(self, number: int) -> AttemptFiles:
        """What is known of one attempt. Raises NotFoundError where its own record is not there, or torn."""
        name, num_torn = attempt_file(number, "attempt.json"), len(self.torn)
        attempt = self._own(number, self.find(name, Attempt))
        beat = self.find(attempt_file(number, "heartbeat.json"), Heartbeat)
        end = self.find(attempt_file(number, "end.json"), AttemptEnd)
        if attempt:
            return AttemptFiles(attempt=attempt, heartbeat=beat, end=end)
        if beat or end or len(self.torn) > num_torn:  # else a claim is under way, or has failed
            self.remains.append(Remains(number, beat, end))
            if name not in (str(error.place).removeprefix(f"{self.url}/") for error in self.torn):
                self.torn.append(self._damaged(name, "is gone: its attempt has left other records"))
        raise NotFoundError("no such attempt", place=f"{self.url}/{name}")

    def _own(self, number: int, found: Attempt | None) -> Attempt | None:
        if found is None or found.number == number:
            return found
        self.torn.append(self._damaged(attempt_file(number, "attempt.json"),
                                       f"is none of attempt {number}: it names attempt {found.number}"))
        return None

    def written(self, attempts: Iterable[AttemptFiles]) -> dict[int, datetime]:
        """When ends that nothing else bears out were written: by the store's clock, by attempts' numbers."""
        found = {}
        for files in filter(is_unheard, attempts):
            # Who found a machine gone has written the moment of its last heartbeat, at any time.
            by_beat = files.heartbeat and files.end and files.end.at <= files.heartbeat.at
            name = attempt_file(files.attempt.number, "heartbeat.json" if by_beat else "end.json")
            with suppress(NotFoundError):
                found[files.attempt.number] = self.store.written_at(self.key(name))
        return found

    def find_part(self, name: str, kind: type[_AnyPart]) -> _AnyPart | None:
        """The part of a record that reports need; None: it is not there, or torn."""
        try:
            return kind.model_validate_json(self.read_bytes(name))
        except NotFoundError:
            return None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            self.torn.append(DamagedError(
                f"cannot be understood: {where + ': ' if where else ''}{first['msg']}",
                place=f"{self.url}/{name}",
                fix=f"restore it from a backup, or delete the run: ldlm rm {self.run_id} --all"))
            return None

    def find_bench(self) -> dict[str, Any] | None:
        """`bench/result.json`, checked to hold a `Bench`; None: it is not there, or torn."""
        if self.find_part(Name.BENCH, Bench) is None:
            return None
        with suppress(NotFoundError):
            value: dict[str, Any] = json.loads(self.read_bytes(Name.BENCH))
            return value
        return None
