"""Sample a finished run and measure it on held-out text, as a record for tests/baselines/compare.py.

    python tests/learning/samples.py STORE RUN OUT [--steps 16,64] [--temperatures 0.7,1] [--samples 512]

Scores on held-out text are taken under the decoder noise of the recipe for every arm, whatever noise it was
trained with: only so they can be compared.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]
from trainer.bench_device import device_name  # noqa: E402
from trainer.data import open_corpus  # noqa: E402
from trainer.evaluate import evaluate  # noqa: E402
from trainer.fast.generator import fast_generator  # noqa: E402
from trainer.frontier import sample_frontier  # noqa: E402
from trainer.local_cache import cache_folder  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.saved_run import SavedRun, load_run  # noqa: E402
from trainer.store import local_store_url, open_store  # noqa: E402
from trainer.token_encoder import load_token_encoder  # noqa: E402

RECIPE = ROOT / "recipes" / "manual-and-bible.yaml"


def under_noise(run: SavedRun, noise_std: float) -> SavedRun:
    """The same weights, measured under another decoder noise."""
    diffusion = run.config.diffusion.model_copy(update={"decoder_noise_std": noise_std})
    return run._replace(config=run.config.model_copy(update={"diffusion": diffusion}))


def heldout_scores(run: SavedRun, device: torch.device) -> dict[str, float]:
    """Scores of training's evaluations, on all held-out text."""
    config = run.config.model_copy(update={"evaluate_sequences": 10**6})
    generator = run.generator(device)
    corpus = open_corpus(config, generator.tokenizer, run.folder.store, cache_folder())
    encoder = load_token_encoder(config.token_encoder, device, store=run.folder.store)
    return evaluate(generator.model, encoder, corpus.heldout_NL, seed=0, batch_size=128)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", default="16,64")
    parser.add_argument("--temperatures", default="0.7,0.8,0.9,1,1.1")
    parser.add_argument("--samples", type=int, default=512)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = load_run(RunFolder(open_store(local_store_url(options.store)), options.run), print)
    noise_std = yaml.safe_load(RECIPE.read_text())["train"]["diffusion"]["decoder_noise_std"]
    arm, _, seed = options.run.rpartition("-seed-")
    beat = run.folder.attempts()[-1].heartbeat
    record: dict[str, Any] = {
        "model": f"ldlm {arm}", "seed": int(seed), "step": run.manifest.step, "device": device_name(device),
        "train_seconds": beat.phases.train_s if beat else None,
        "heldout": heldout_scores(under_noise(run, noise_std), device), "heldout_noise_std": noise_std,
        "generations": sample_frontier(
            fast_generator(run.generator(device), print), [int(word) for word in options.steps.split(",")],
            [float(word) for word in options.temperatures.split(",")], options.samples, options.samples,
            int(seed), print)}
    (options.out / f"{options.run}.json").write_text(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
