"""Real runs of seconds, most of them broken on purpose, for the tests of the verdict.

    python tests/broken_runs.py FOLDER NAME...

trains each in turn, in one process: the start of a process would take longer than its training. Without a
NAME it prints all there are. Each leaves a run of its name in FOLDER/store, for

    ldlm status NAME --store file://FOLDER/store

The text is a walk over thirteen letters, of which each narrows the next down to two; a tiny random BERT
reads it. It needs the trainer's Python.
"""

import os
import random
import socket
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[1])]

from random_encoders import WORDS, save_model  # noqa: E402

import trainer.job  # noqa: E402
from launcher.recipe import load_recipe  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.contract import Document, Env, Name  # noqa: E402
from trainer.job import build_model  # noqa: E402
from trainer.model import LatentDiffusionLM  # noqa: E402
from trainer.preemption import StopSignal  # noqa: E402
from trainer.profiles import merged  # noqa: E402
from trainer.ranks import init_process_group  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.store import local_store_url, open_store  # noqa: E402
from trainer.train import train  # noqa: E402

_LETTERS = WORDS[3:]
HEALTHY: dict[str, Any] = {
    "steps": 200, "global_batch_size": 32, "micro_batch_size": 32, "precision": "fp32", "log_every_steps": 20,
    "evaluate_every_steps": 100, "evaluate_sequences": 128, "token_loss_fraction": 1.0,
    "data": {"sequence_length": 8},
    "token_encoder": {"statistics_tokens": 4096, "layer": -3},
    "model": {"latent_width": 16, "width": 32, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1,
              "denoiser_layers": 2, "token_decoder_layers": 1, "token_decoder_width": 32,
              "token_decoder_heads": 2},
    "diffusion": {"decoder_noise_std": 1.0, "tan_d": 1.0, "encoder_warmup_steps": 800,
                  "time_refresh_steps": 100},
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 20, "ema_decay": 0.98},
    "checkpoint": {"every_steps": 10_000},
    "sampling": {"steps": 8, "num_samples": 4},
}
# What each run changes, and so what is wrong with it.
CHANGES: dict[str, dict[str, Any]] = {
    "healthy": {},
    "short-warmup": {"diffusion": {"encoder_warmup_steps": 100}},
    "warmup-ends": {"steps": 400, "diffusion": {"encoder_warmup_steps": 400}},
    "no-noise": {"diffusion": {"decoder_noise_std": 0.0}},
    "drowned": {"diffusion": {"decoder_noise_std": 100.0}},
    "tiny-rate": {"optimizer": {"learning_rate": 1e-9}},
    "no-diffusion": {"diffusion": {"diffusion_weight": 0.0}},
    "no-words": {"diffusion": {"token_weight": 0.0}},
    "no-reconstruction": {"diffusion": {"hidden_weight": 0.0}},
    "one-direction": {},
    "noise-forgotten": {},
    "unscaled": {"model": {"latent_norm": "none"}},
    "unscaled-short": {"model": {"latent_norm": "none"}, "diffusion": {"encoder_warmup_steps": 100}},
    "by-token": {"diffusion": {"decoder_loss": "token"}},
    "cold": {"sampling": {"temperature": 1e-6}},
    "huge-rate": {"optimizer": {"learning_rate": 1.0}},
}


def config_of(name: str, folder: Path) -> TrainConfig:
    """What a run trains, with text and encoder in a folder."""
    where = {"data": {"source": str(folder / "text.txt")}, "token_encoder": {"name": str(folder / "encoder")}}
    return TrainConfig.model_validate(merged(merged(HEALTHY, where), CHANGES[name]))


def write_inputs(folder: Path) -> None:
    """Text and token encoder of every run."""
    chance, documents = random.Random(0), []
    for _ in range(400):
        place = chance.randrange(13)
        walk = [place := (place + chance.choice((1, 3))) % 13 for _ in range(40)]
        documents.append(" ".join(_LETTERS[step] for step in walk))
    (folder / "text.txt").write_text("\n\n".join(documents))
    save_model(folder / "encoder", "bert")


def broken(name: str, model: LatentDiffusionLM) -> LatentDiffusionLM:
    """Break what no setting breaks."""
    if name == "one-direction":
        perceiver = model.encoder.perceiver
        narrow = nn.Linear(perceiver.output.in_features, 1, bias=False)
        perceiver.output = nn.Sequential(narrow, nn.Linear(1, perceiver.output.out_features, bias=False))
    elif name == "noise-forgotten":
        model.reconstruction = lambda z_BKD, noise: model.decoder(z_BKD)
    return model


def run(name: str, folder: Path) -> None:
    """Train one, by the trainer's own loop, in a run folder as a launch begins it."""
    store, config = local_store_url(folder / "store"), config_of(name, folder)
    run_folder = RunFolder(open_store(store), name)
    run_folder.write(Name.RECIPE, load_recipe("smoke").model_copy(update={"name": name, "train": config}))
    run_folder.add_event("submitted", datetime.now(UTC))
    attempt = run_folder.claim_attempt(
        Document.TRAIN, billed_from=datetime.now(UTC), price_usd_per_hour=Decimal(0), offer="", host="")
    os.environ |= {Env.STORE: store, Env.RUN_ID: name, Env.ATTEMPT: str(attempt.number)}
    with patch.object(trainer.job, "build_model", lambda *args: broken(name, build_model(*args))):
        job = trainer.job.build_job(config, StopSignal())
    train(job)
    assert job.recorder is not None
    job.recorder.close()


def main(folder: Path, names: list[str]) -> None:
    if not (folder / "encoder" / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_inputs(folder)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "XDG_CACHE_HOME": str(folder / "cache")}
    torch.set_num_threads(1)
    init_process_group()
    for name in names:
        run(name, folder)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: python tests/broken_runs.py FOLDER NAME...\nnames: {', '.join(CHANGES)}")
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
