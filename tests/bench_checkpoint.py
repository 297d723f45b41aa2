"""What a save costs: ours beside DeepSpeed's own and torch's asynchronous one, same weights, same run.

    python -m tests.bench_checkpoint [--profile seed-35b-a3b] [--batch 128] [--accumulate 4] [--folder DIR]

The trained part of a recipe takes real steps on random hidden states. Every tenth step is followed by a save,
unless one is under way. All of a step but "step", "wall" and "load" is in ms beyond the median step without a
save: "stall" and "worst" of the steps that follow one, "later" of the steps while it is still under way;
"call" is what the host spends in the save itself. Prints one table; deletes what it saves.
"""

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed as dist

from trainer.average import WeightAverage
from trainer.checkpoint import Checkpointer
from trainer.config import TrainConfig
from trainer.gradients import clip_by_part, flat_groups
from trainer.identity import Identity
from trainer.job import build_engine
from trainer.model import LatentDiffusionLM, draw_noise
from trainer.ranks import init_process_group
from trainer.retention import Keep
from trainer.run_folder import RunFolder
from trainer.store import local_store_url, open_store
from trainer.train_state import TrainState

HIDDEN = {"seed-35b-a3b": (2048, 248_320), "qwen3.6-35b-a3b": (2048, 248_320), "paper-gpt2": (768, 50_257),
          "smoke": (384, 30_522)}
EVERY = 10
GIB = 2**30


class Trainee:
    """The trained part of a recipe, its engine and its state, on one rank."""

    def __init__(self, profile: str, batch: int, accumulate: int, device: torch.device) -> None:
        self.config = TrainConfig.model_validate({
            "profile": profile, "steps": 1000, "global_batch_size": batch * accumulate,
            "micro_batch_size": batch,
            "checkpoint": {"every_steps": EVERY}, "data": {"source": "python-docs"}})
        hidden, vocabulary = HIDDEN[profile]
        torch.manual_seed(0)
        with device:
            model = LatentDiffusionLM(self.config, hidden, None, vocabulary)
        self.engine = build_engine(self.config, model)
        self.average = WeightAverage(self.engine, 0.9999)
        self.groups = flat_groups(model, model.parts())
        sizes = [sum(map(_count, group.values())) for group in self.groups]
        self.num_parameters = sum(sizes)
        self.state = TrainState(self.engine, self.average, sizes, EVERY)
        length = self.config.data.sequence_length
        self.tokens_BL = torch.randint(0, vocabulary, (batch, length), device=device)
        self.h_BLD = torch.randn(batch, length, hidden, device=device)
        self.device, self.batch, self.accumulate = device, batch, accumulate

    def step(self, step: int, before_update: Callable[[], None]) -> None:
        """One optimizer step."""
        for micro in range(self.accumulate):
            noise = draw_noise(self.config, 0, step, range(self.batch), self.device)
            losses = self.engine(self.tokens_BL, self.h_BLD, noise, 1.0, noise.uniform_B)
            self.engine.backward(losses.total)
            if micro == self.accumulate - 1:
                clip_by_part(self.engine, 1.0)
                before_update()
            self.engine.step()
        self.engine.module.end_step()
        self.average.update(step)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a run goes on from, as tensors: what the peers save."""
        found = {f"weight/{name}": value.data for name, value in self.engine.module.state_dict().items()}
        for index, group in enumerate(self.engine.optimizer.param_groups):
            (master,) = group["params"]
            found |= {f"master/{index}": master.data, f"average/{index}": self.average.values[index]}
            found |= {f"{name}/{index}": self.engine.optimizer.optimizer.state[master][name]
                      for name in ("exp_avg", "exp_avg_sq")}
        return found


def _count(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())


class Ours:
    """The trainer's own."""

    name = "ours"

    def __init__(self, trainee: Trainee, folder: Path) -> None:
        self._trainee, self._folder = trainee, RunFolder(open_store(local_store_url(folder)), "run")
        identity = Identity(data_fingerprint="", model={}, precision=trainee.config.precision, encoder=None)
        self._checkpointer = Checkpointer(
            self._folder, 1, trainee.state, trainee.engine.module, trainee.groups, trainee.device,
            keep=Keep(1),
            identity=identity, before_commit=lambda: None)

    def before_step(self, step: int) -> None:
        """As the training loop does."""
        self._trainee.state.round(step)

    def save(self, step: int) -> None:
        """Begin a save."""
        self._checkpointer.save(step, {"probabilities": torch.ones(10)})

    def before_update(self) -> None:
        """Weights are about to change."""
        self._checkpointer.settle()

    def is_done(self) -> bool:
        """Nothing is under way."""
        return not self._checkpointer.is_saving

    def wait(self) -> None:
        """Until it is stored."""
        self._checkpointer.wait()
        if error := self._checkpointer.pop_error():
            raise error

    def load(self) -> None:
        """Bring the newest back."""
        assert self._checkpointer.restore(print)


class DeepSpeeds:
    """`engine.save_checkpoint`, with the average beside it."""

    name = "DeepSpeed"

    def __init__(self, trainee: Trainee, folder: Path) -> None:
        self._trainee, self._folder = trainee, folder

    def before_step(self, step: int) -> None:
        """Nothing."""

    def save(self, step: int) -> None:
        """It returns when all is on the disk."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._trainee.engine.save_checkpoint(str(self._folder), tag="it", save_latest=False,
                                             client_state={"average": self._trainee.average.values})

    def before_update(self) -> None:
        """Nothing."""

    def is_done(self) -> bool:
        """Always."""
        return True

    def wait(self) -> None:
        """Nothing."""

    def load(self) -> None:
        """Bring the newest back."""
        self._trainee.engine.load_checkpoint(str(self._folder), tag="it")


class TorchsAsync:
    """`dcp.async_save` with the stager that keeps pinned memory."""

    name = "DCP async"

    def __init__(self, trainee: Trainee, folder: Path) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self._trainee, self._folder, self._under_way = trainee, folder, None
        is_cuda = trainee.device.type == "cuda"
        self._stager = DefaultStager(StagingOptions(
            use_pinned_memory=is_cuda, use_shared_memory=True, use_async_staging=is_cuda,
            use_non_blocking_copy=is_cuda))
        # torch 2.11 closes it after one save, and with it its memory, which is what is to be used again.
        self._stager.close = self._stager._state_dict_stager.close = lambda: None

    def before_step(self, step: int) -> None:
        """Nothing."""

    def save(self, step: int) -> None:
        """Begin a save."""
        from torch.distributed import checkpoint as dcp

        self.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._under_way = dcp.async_save(self._trainee.tensors(), checkpoint_id=str(self._folder),
                                         async_stager=self._stager)

    def before_update(self) -> None:
        """Weights are about to change."""
        if hasattr(self._under_way, "staging_completion"):
            self._under_way.staging_completion.result()

    def is_done(self) -> bool:
        """Nothing is under way."""
        return self._under_way is None or self._upload().done()

    def wait(self) -> None:
        """Until it is stored."""
        if self._under_way is not None:
            self._upload().result()
            self._under_way = None

    def load(self) -> None:
        """Bring the newest back, and in the same tensors."""
        from torch.distributed import checkpoint as dcp

        dcp.load(self._trainee.tensors(), checkpoint_id=str(self._folder))

    def _upload(self) -> Future[object]:
        return getattr(self._under_way, "upload_completion", self._under_way)


Method = Ours | DeepSpeeds | TorchsAsync


def measure(trainee: Trainee, method: Method, folder: Path, first: int, num_saves: int) -> dict[str, float]:
    """Seconds of steps and saves, and bytes of one save. Steps go on while a save is under way."""
    plain, after_save, later, calls, walls = [], [], [], [], []
    step, began = first + 1, 0.0
    while len(walls) < num_saves:
        begin = time.perf_counter()
        saves = step % EVERY == 0 and not began
        if saves:
            began = begin
            method.save(step)
            calls.append(time.perf_counter() - begin)
        method.before_step(step)
        trainee.step(step, method.before_update)
        _synchronize(trainee.device)
        passed = time.perf_counter() - begin
        (after_save if saves else later if began else plain).append(passed)
        if began and method.is_done():
            method.wait()
            walls.append(time.perf_counter() - began)
            began = 0.0
        step += 1
    # The first save makes the memory that the others use again.
    usual = statistics.median(plain[2:])
    stalls = sorted(passed - usual for passed in after_save[1:])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"step_s": usual, "stall_s": statistics.median(stalls), "worst_s": stalls[-1],
            "call_s": statistics.median(calls[1:]), "first_s": after_save[0] - usual,
            "later_s": statistics.median(later) - usual if later else 0.0,
            "wall_s": statistics.median(walls[1:]), "bytes": size / max(1, _kept(folder)),
            "load_s": _seconds(trainee.device, method.load), "last": step}


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - begin


def _kept(folder: Path) -> int:
    """Checkpoints that lie there: ours keeps the newest, and may not yet have deleted the one before."""
    return len(list(folder.glob("run/checkpoints/*/manifest.json"))) or 1


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def one_rank() -> Iterator[torch.device]:
    """A process group of this process."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": "29511"}
    init_process_group()
    yield torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dist.destroy_process_group()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=sorted(HIDDEN), default="smoke")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/ldlm-bench-checkpoint"))
    options = parser.parse_args()
    with one_rank() as device:
        trainee = Trainee(options.profile, options.batch, options.accumulate, device)
        for step in range(3):
            trainee.step(step, lambda: None)
        card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        print(f"{options.profile}: {trainee.num_parameters / 1e6:,.1f} M trained, batch {options.batch} x "
              f"{options.accumulate}, "
              f"torch {torch.__version__}, {card}")
        print("           step ms  stall  worst  call  first  later  wall s  B/param  GiB/s  load s")
        first = 0
        for kind in (Ours,) if options.alone else (Ours, DeepSpeeds, TorchsAsync):
            folder = options.folder / kind.name.replace(" ", "-")
            method = kind(trainee, folder)
            try:
                row = measure(trainee, method, folder, first, options.saves)
                print(_line(kind.name, row, trainee.num_parameters), flush=True)
                first = int(row["last"])
            except Exception as error:  # of a peer: the others are measured all the same
                print(f"{kind.name:<10} failed: {type(error).__name__}: {error}", flush=True)
            del method
            shutil.rmtree(folder, ignore_errors=True)


def _line(name: str, row: dict[str, float], num_parameters: int) -> str:
    def ms(key: str) -> str:
        return f"{1e3 * row[key]:5.0f}"

    return (f"{name:<10} {1e3 * row['step_s']:7.0f}  {ms('stall_s')}  {ms('worst_s')} {ms('call_s')}  "
            f"{ms('first_s')}  {ms('later_s')}  {row['wall_s']:6.2f}  {row['bytes'] / num_parameters:7.2f}  "
            f"{row['bytes'] / GIB / row['wall_s']:5.2f}  {row['load_s']:6.2f}")


if __name__ == "__main__":
    main()
