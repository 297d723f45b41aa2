"""A rank of the real trainer in a fork of a process that has imported it; its points are told to `Faults`."""

import gc
import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.chaos.machine import Ranks
from tests.trainer_runs import write_text
from trainer import train
from trainer.checkpoint import Checkpointer
from trainer.job import Job
from trainer.snapshot import Snapshot

# What a rank imports late: three quarters of its time, at this size.
_LATE = ("obstore.store", "deepspeed.ops.op_builder.all_ops", "deepspeed.runtime.zero.muon.original_muon",
         "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
         "transformers.models.bert.modeling_bert", "transformers.models.bert.tokenization_bert",
         "torch._inductor.compile_fx", "torch.distributed.tensor")


def prepare(scratch: Path) -> Path:
    """Import all that ranks will need. Returns the text of all runs."""
    for module in _LATE:
        importlib.import_module(module)
    gc.freeze()  # forks share what is not touched
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not be forked"
    return write_text(scratch / "prose.txt")


def run_rank(number: int, ranks: Ranks) -> None:
    """One rank. Does not return."""
    _tell_points(ranks)
    train.main()


def _tell_points(ranks: Ranks) -> None:
    faults, board = ranks.faults, ranks.board
    restore_or_start, train_step, save_due = train.restore_or_start, train.train_step, train.save_due
    save, copy = Checkpointer.save, Snapshot._copy

    def restore_and_tell(job: Job) -> None:
        restore_or_start(job)
        board.resumed_from = board.step = job.progress.step

    def step_and_tell(job: Job, step: int) -> None:
        train_step(job, step)
        board.first_step_at = board.first_step_at or time.monotonic()
        board.step = step + 1
        faults.at("step", "", "before")

    def save_due_in_time(job: Job) -> bool:
        """Steps are much quicker here than saves: let no step pass at which a save could begin."""
        job.checkpoints.wait()
        while not save_due(job):
            if job.progress.step % job.config.optimizer.round_steps:
                return False
            time.sleep(0.01)
        return True

    def save_or_not(checkpoints: Checkpointer, step: int, timesteps: dict[str, Tensor]) -> None:
        checkpoints.wait()
        faults.at("snapshot", "", "before")
        save(checkpoints, step, timesteps)
        faults.at("snapshot", "", "after")

    def copy_or_not(snapshot: Snapshot, state: Any, stretches: list[Any], rest: Mapping[str, Tensor],
                    slots: Any) -> Any:
        if faults.at("snapshot", "", "during"):
            for stretch in stretches[:len(stretches) // 2]:
                state.read(stretch)  # some are rounded in place, some are not
            faults.act()
        return copy(snapshot, state, stretches, rest, slots)

    train.restore_or_start, train.train_step = restore_and_tell, step_and_tell
    train.save_due = save_due_in_time
    Checkpointer.save, Snapshot._copy = save_or_not, copy_or_not  # type: ignore[method-assign]
