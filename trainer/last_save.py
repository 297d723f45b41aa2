"""The last checkpoint of a machine that is taken back: whether there is time for it.

Where there is none, the run leaves at once: uploading what cannot become durable costs money, and counts for
nothing. All ranks decide the same, since one of them alone cannot save.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import distributed as dist

from trainer.checkpoint import Checkpointer
from trainer.notices import ASKED, SPARE_S, Cloud, FinalSave, Notice, final_save_fits


class Leaving(NamedTuple):
    """What all ranks know when they leave.

    Attributes:
        notice: The first end that any of their machines was told.
        last: Whether a last checkpoint is worth the try.
        in_flight_s: How long the save that is under way is worth waiting for.
    """

    notice: Notice
    last: FinalSave
    in_flight_s: float


class LastSave:
    """Reckons whether a last checkpoint fits a notice.

    Args:
        cloud: Of the first node.
        checkpoints: They measure the store; on rank 0 only.
        saved_bytes: Of a checkpoint of a step, before it is compressed; of None, the most of any step.
    """

    def __init__(self, cloud: Cloud, checkpoints: Checkpointer,
                 saved_bytes: Callable[[int | None], int]) -> None:
        self._cloud, self._checkpoints, self._saved_bytes = cloud, checkpoints, saved_bytes
        self._told: bool | None = None

    def forecast(self) -> FinalSave:
        """Whether one can count on it that notices of this cloud save anything; where they do not, the
        interval alone bounds what is lost. For rank 0."""
        if not self._cloud.notice_s:
            return FinalSave(False, "no machine there gives a notice")
        rate = self._checkpoints.upload_bytes_per_s
        if rate is None:
            return FinalSave(False, "no save of this run was measured")
        return final_save_fits(self._stored_bytes(None), rate, self._cloud.notice_s - self._cloud.ask_every_s)

    def news(self) -> str | None:
        """What a person should know of it, once, and again when it has changed; None: nothing new."""
        found = self.forecast()
        if not self._cloud.name or found.fits == self._told:
            return None
        if not self._cloud.notice_s:
            self._told = False
            return f"{self._cloud.name} gives no notice: what is not durable is lost with a machine"
        if self._checkpoints.upload_bytes_per_s is None:
            return None
        was_told, self._told = self._told, found.fits
        gives = f"{self._cloud.name} gives {self._cloud.notice_s:g} s of notice: a last checkpoint"
        if found.fits:
            return f"{gives} fits ({found.words})" if self._cloud.source or was_told is not None else None
        return f"{gives} does not fit ({found.words}), and on a notice the run leaves without one"

    def leave(self, folder: Path, unsaved_step: int | None) -> Leaving:
        """Agree on how to leave, and tell this node of what another one's machine was told. A collective.

        Args:
            folder: That this rank shares with its node.
            unsaved_step: The newest step; None: a save of it has begun.
        """
        own, node = Notice.find(folder) or ASKED, os.environ["GROUP_RANK"]
        told: list[tuple[float | None, Notice, str] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(told, (own.left_s, own, node))  # the clocks of two machines do not agree
        notice = own
        for left_s, other, where in filter(None, told):
            if where != node and left_s is not None:
                found = Notice(f"node {where}: {other.why}", time.monotonic() + left_s, other.is_taken)
                notice = notice.with_earlier(found)
        if own.ends_at_s is None and notice.ends_at_s is not None:
            notice.write(folder)
        judged = [self._judge(unsaved_step, notice.left_s)]
        dist.broadcast_object_list(judged, src=0)
        return Leaving(notice, *judged[0])

    def _judge(self, unsaved_step: int | None, left_s: float | None) -> tuple[FinalSave, float]:
        """What rank 0 makes of it; the other ranks have measured nothing. It tries what may fit."""
        rate, under_way = self._checkpoints.upload_bytes_per_s, self._checkpoints.in_flight_bytes()
        to_save = 0 if unsaved_step is None else self._stored_bytes(unsaved_step)
        last = final_save_fits(to_save + under_way, rate, left_s)
        worth = final_save_fits(under_way, rate, left_s).fits
        return last, max(0.0, left_s - SPARE_S) if worth and left_s is not None else 0.0

    def _stored_bytes(self, step: int | None) -> int:
        """Of a checkpoint in the store, as rates are measured."""
        return self._saved_bytes(step) - self._checkpoints.spared_bytes
