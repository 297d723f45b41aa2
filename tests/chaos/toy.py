"""A rank without torch: vectors trained by arithmetic, saved and restored by the trainer's own protocol.

As `trainer/train.py` and `trainer/saving.py` do it, in small. Every step's loss is a link of a chain of
hashes over the whole state, so one wrong bit anywhere changes all that follow.
"""

import hashlib
import json
import os
import pickle
import struct
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tests.chaos.machine import Ranks
from tests.chaos.plan import INTERVAL
from trainer import commit, piece_codec, store
from trainer.commit import Committer, Content
from trainer.config import TrainConfig
from trainer.contract import Env, ExitCode, LdlmError, Name, Outcome, RankEnd
from trainer.identity import Identity
from trainer.manifest import Manifest, read_rest
from trainer.metrics import OwnAttempt, PhaseClock, Progress, Recorder
from trainer.node_watch import end_with_node
from trainer.piece_codec import Copied
from trainer.piece_reader import read_pieces
from trainer.pieces import Kind, Stretch
from trainer.retention import Keep
from trainer.run_folder import RunFolder, RunOutcome
from trainer.store import open_store

_T = TypeVar("_T")
Floats = np.ndarray[tuple[int], np.dtype[np.float32]]
SIZES = (3001, 1200)  # elements of the groups; one does not divide by the ranks
KINDS: tuple[Kind, ...] = ("master", "momentum")
_STEP_S = 0.004
_IDENTITY = Identity(data_fingerprint="toy", model={}, precision="fp32", encoder=None)
_GROUPS = [{f"vector{index}": [size]} for index, size in enumerate(SIZES)]


def start_values(group: int) -> tuple[Floats, Floats]:
    """Weights and momentum before the first step."""
    return np.linspace(-1, 1 + group, SIZES[group], dtype=np.float32), np.zeros(SIZES[group], np.float32)


def update(weights: Floats, momentum: Floats, step: int) -> None:
    """One step, in place; each element by itself."""
    gradient = weights * np.float32(0.37) + np.float32(1 / (step + 3))
    momentum *= np.float32(0.9)
    momentum += gradient * np.float32(0.1)
    weights -= momentum * np.float32(0.05)


def next_link(chain: str, weights: list[bytes]) -> str:
    """Of the chain of hashes."""
    return hashlib.sha256(chain.encode() + b"".join(weights)).hexdigest()


def loss_of(chain: str) -> float:
    """A number for a row of metrics."""
    return int(chain[:12], 16) / 2**48


class _Peers:
    """Peers over a socket each; failures are told through files."""

    def __init__(self, rank: int, ranks: Ranks, folder: Path) -> None:
        self.rank, self.world_size = rank, ranks.num_ranks
        self._lines, self._folder = ranks.lines, folder

    def gather(self, own: _T) -> list[_T]:
        """What every rank has said, by rank. A collective."""
        if self.rank == 0:
            seen = [own, *map(_receive, self._lines)]
            for line in self._lines:
                _send(line, seen)
            return seen
        _send(self._lines[0], own)
        found: list[_T] = _receive(self._lines[0])
        return found

    def tell_failure(self, key: str) -> None:
        """Let the others find a failure under its name."""
        (self._folder / key.replace("/", ".")).mkdir(exist_ok=True)  # a full disk still takes a folder

    def has_failed(self, key: str) -> bool:
        """Whether somebody has told of it."""
        return (self._folder / key.replace("/", ".")).exists()


def _send(line: Any, what: object) -> None:
    data = pickle.dumps(what)
    line.sendall(struct.pack("q", len(data)) + data)


def _receive(line: Any) -> Any:
    return pickle.loads(_exactly(line, struct.unpack("q", _exactly(line, 8))[0]))


def _exactly(line: Any, count: int) -> bytes:
    data = b""
    while len(data) < count:
        got = line.recv(count - len(data))
        if not got:
            raise ConnectionError("a peer is gone")
        data += got
    return data


class Trainee:
    """One rank."""

    def __init__(self, rank: int, ranks: Ranks) -> None:
        self.config = TrainConfig.model_validate_json(os.environ[Env.TRAIN_CONFIG])
        self.folder = RunFolder(open_store(os.environ[Env.STORE]), os.environ[Env.RUN_ID])
        self.ranks, self.progress = ranks, Progress(total_steps=self.config.steps)
        self.peers = _Peers(rank, ranks, Path(os.environ[Env.END_FOLDER]))
        own = OwnAttempt.find(self.folder, int(os.environ[Env.ATTEMPT]))
        self.recorder: Recorder | None = None
        if rank == 0:
            self.recorder = own.recorder(self.folder, self.config.heartbeat_s,
                                         PhaseClock(own.attempt.billed_from), self.progress)
        self.saves = Committer(self.folder, own.attempt.number, self.peers, groups=_GROUPS,
                               keep=Keep(self.config.checkpoint.keep), identity=_IDENTITY,
                               before_commit=self.recorder.write if self.recorder else lambda: None,
                               told_step=own.durable_step)
        self.chain, self.failed, self.shares, self.begins = "", 0, [], []
        for group, size in enumerate(SIZES):
            share = -(-size // ranks.num_ranks)
            begin = min(rank * share, size)
            self.begins.append(begin)
            self.shares.append([whole[begin:begin + share].copy() for whole in start_values(group)])

    def train(self) -> RankEnd:
        """From the newest checkpoint to the end."""
        found = self.saves.restore_newest(self.read, print)
        if found:
            self.progress.step, self.chain = found
        self.progress.resumed_from_step = self.progress.durable_step = self.progress.step
        board, config, progress = self.ranks.board, self.config, self.progress
        board.resumed_from = board.step = progress.step
        while progress.step < config.steps:
            self.note_finished_save()
            if any(self.peers.gather(self.is_superseded())):
                return self.superseded_end()
            self.step()
            board.first_step_at = board.first_step_at or time.monotonic()
            board.step = progress.step
            self.ranks.faults.at("step", "", "before")
            if progress.step % INTERVAL == 0 and progress.step < config.steps:
                self.save()
        if any(self.peers.gather(progress.durable_step < progress.step and self.peers.rank == 0)):
            self.save()
        self.saves.wait()
        self.note_finished_save()
        if any(self.peers.gather(self.is_superseded())):
            return self.superseded_end()
        if any(self.peers.gather(self.failed)):
            return RankEnd(1, "the last state could not be saved")
        if self.peers.rank == 0:
            self.folder.write(Name.OUTCOME, RunOutcome(outcome=Outcome.FINISHED, at=datetime.now(UTC),
                                                       step=progress.step, reason="done"))
        return RankEnd(ExitCode.FINISHED, "done")

    def is_superseded(self) -> bool:
        """Another attempt owns the run; known to rank 0."""
        return self.recorder is not None and self.recorder.superseded is not None

    def superseded_end(self) -> RankEnd:
        """How such an attempt ends."""
        self.saves.wait()
        self.peers.gather(None)  # all have
        if self.peers.rank == 0:
            self.saves.withdraw()
        return RankEnd(ExitCode.SUPERSEDED, "a later attempt owns the run")

    def step(self) -> None:
        """Train one."""
        for weights, momentum in self.shares:
            update(weights, momentum, self.progress.step)
        seen = self.peers.gather([weights.tobytes() for weights, _ in self.shares])
        self.chain = next_link(self.chain, [part for group in zip(*seen, strict=True) for part in group])
        self.progress.step += 1
        if self.recorder is not None:
            self.recorder.log(self.progress.step, {"loss/chain": loss_of(self.chain)})
        time.sleep(_STEP_S)

    def save(self) -> None:
        """As the trainer does."""
        self.saves.wait()
        self.note_finished_save()
        faults, copied, began_s = self.ranks.faults, [], time.monotonic()
        faults.at("snapshot", "", "before")
        for group, share in enumerate(self.shares):
            for kind, values in zip(KINDS, share, strict=True):
                stretch = Stretch(kind, "float32", group, self.begins[group], len(values))
                copied.append(Copied(stretch, values.copy().view(np.uint8)))
            if group == 0 and faults.at("snapshot", "", "during"):
                faults.act()
        rest = json.dumps(self.chain).encode()
        self.saves.begin(self.progress.step, lambda: Content(copied, rest), began_s)
        faults.at("snapshot", "", "after")

    def note_finished_save(self) -> None:
        """Newly durable, or failed."""
        if self.saves.durable_step > self.progress.durable_step:
            self.progress.durable_step, self.failed = self.saves.durable_step, 0
        error = self.saves.pop_error()
        if error:
            self.failed += self.peers.rank == 0
            print(f"warning: rank {self.peers.rank}: checkpoint not saved: {error}", flush=True)

    def read(self, manifest: Manifest) -> str:
        """One checkpoint into this rank's shares."""
        _IDENTITY.check(Identity.of(manifest), manifest.step)
        chain: str = json.loads(read_rest(self.folder, manifest))
        own = [Stretch("master", "float32", group, begin, len(share[0]))
               for group, (begin, share) in enumerate(zip(self.begins, self.shares, strict=True))]
        wanted = [piece for piece in manifest.pieces if any(map(piece.common, own))]
        for piece, raw in read_pieces(self.folder, manifest, wanted):
            first, last = piece.common(own[piece.group]) or (0, 0)
            values = self.shares[piece.group][KINDS.index(piece.kind)]
            offset = self.begins[piece.group]
            found = raw.view(np.float32)[first - piece.begin:last - piece.begin]
            values[first - offset:last - offset] = found
        return chain


def run_rank(number: int, ranks: Ranks) -> None:
    """One rank: train, write how it ended. Does not return."""
    # So that a state of some kilobytes has many parts and pieces.
    store._PART_BYTES, piece_codec.PIECE_ELEMENTS, commit._LOOK_EVERY_S = 2048, 512, 0.01
    commit._ASK_EVERY_S, commit._LISTING_LAGS_S = 0.1, 0.02
    ends, trainee = Path(os.environ[Env.END_FOLDER]), None
    end_with_node(ends)
    RankEnd.listen(ends, os.getpid())
    try:
        trainee = Trainee(number, ranks)
        end = trainee.train()
    except LdlmError as error:
        end = RankEnd(error.node_exit_code, str(error))
    except ConnectionError as error:
        end = RankEnd(1, str(error))
    except Exception as error:
        traceback.print_exc()
        end = RankEnd(1, f"{type(error).__name__}: {error}")
    finally:
        if trainee is not None and trainee.recorder is not None:
            trainee.recorder.close()
    end.write(ends, number)
    os._exit(0)
