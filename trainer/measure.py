"""`python -m trainer.measure`, behind `ldlm evaluate`: what a run's newest weights are worth.

Exit codes: those of the `ldlm` command.
"""

import json
import sys
from argparse import Namespace
from typing import Any

import numpy as np
import torch

from trainer.autoregressive import Autoregressive, load_autoregressive, written
from trainer.bench_autoregressive import parameters_read, speeds
from trainer.bench_device import device_name
from trainer.command import carry_out, talk
from trainer.completions import Beginnings, beginnings, check_length, sample_completions
from trainer.data import Corpus, open_corpus
from trainer.evaluate import evaluate
from trainer.fast.generator import fast_generator
from trainer.frontier import judged, sample_frontier
from trainer.generate import Generator
from trainer.judge_rows import RowJudge
from trainer.local_cache import cache_folder
from trainer.measure_options import read_measure_options
from trainer.measure_screen import screen
from trainer.panel import reconstruction_panel
from trainer.quality import Judge, load_judge, require_evaluation_tools
from trainer.quality_plot import plot
from trainer.run_folder import RunFolder
from trainer.sample import adjusted
from trainer.sample_options import WAYS
from trainer.saved_run import SavedRun, load_run
from trainer.store import named_store
from trainer.token_encoder import load_token_encoder


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says. Returns the exit code."""
    options = read_measure_options(argv)

    def answer() -> str:
        result = measure(options)
        return json.dumps(result, indent=1) if options.json else screen(result, options.out)

    return carry_out(answer, out=options.out)


def measure(options: Namespace) -> dict[str, Any]:
    """Measure everything and write it. Raises LdlmError; what is quick to refuse comes first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require_evaluation_tools(has_mauve=options.mauve)
    options.out.mkdir(parents=True, exist_ok=True)
    judge = load_judge(options.judge, device, revision=options.judge_revision)
    run = load_run(RunFolder(named_store(options.store), options.run), talk)
    if options.prompt_tokens:
        check_length(run.config, options.prompt_tokens)
    generator = adjusted(run.generator(device), options, WAYS)
    other = _other(generator, options, device)
    rows_NL = _heldout(run, generator, options.num)
    told = beginnings(generator, rows_NL, options.prompt_tokens) if options.prompt_tokens else None
    on_heldout, completions = _with_encoder(run, generator, rows_NL, told, options, device)
    quick = fast_generator(generator, talk)
    generations = sample_frontier(quick, options.steps, options.temperatures, options.num, options.batch,
                                  options.seed, talk)
    samples = {"model": "ldlm", "seed": options.seed, "source": options.run, "step": run.manifest.step,
               "heldout_tokens": rows_NL.tolist(), "heldout_texts": generator.to_texts(rows_NL.tolist()),
               "generations": generations}
    if told:
        samples |= {"prompts": told.prompts, "continuations": told.continuations, "completions": completions}
    # Before what may run out of memory: it must not cost what was sampled.
    (options.out / "samples.json").write_text(json.dumps(samples))
    if other:
        samples["autoregressive"] = written(other, options.num, options.seed)
        (options.out / "samples.json").write_text(json.dumps(samples))
    talk(f"judged by {judge.name}")
    row_judge = RowJudge(judge, generator.tokenizer, generator.end_of_text_id)
    result = {"source": options.run, "step": run.manifest.step, "seed": options.seed,
              "device": device_name(device), "dtype": str(next(generator.model.parameters()).dtype),
              "parameters": parameters_read(generator), "judge": _about(judge), **on_heldout,
              **_judged(row_judge, rows_NL.tolist(), generations, has_mauve=options.mauve)}
    if told:
        result["completions"] = {"prompt_tokens": options.prompt_tokens, **_judged(
            row_judge, told.tokens_NL.tolist(), completions, options.prompt_tokens, has_mauve=options.mauve)}
    if other:
        # As text: its ids may be another tokenizer's.
        own_judge = RowJudge(judge, other.tokenizer, other.end_of_text_id)
        reference = row_judge.rows(rows_NL.tolist()[:options.num])
        result["autoregressive"] = judged(samples["autoregressive"], own_judge, reference,
                                          has_mauve=options.mauve)
    elif options.autoregressive is not None:
        talk("a transformer of as many parameters, token after token")
        speed = speeds(generator, dict.fromkeys((1, generations[0]["batch"])))
        result["autoregressive"] = {"name": None, "random_weights": True, **speed}
    (options.out / "evaluation.json").write_text(json.dumps(result, indent=1))
    plot(result, judge, options.out / "evaluation.png")
    return result


def _other(generator: Generator, options: Namespace, device: torch.device) -> Autoregressive | None:
    """The model with trained weights that is to stand beside ours, if one was named."""
    if not options.autoregressive:
        return None
    length = generator.config.data.sequence_length
    return load_autoregressive(options.autoregressive, device, length, options.batch, talk)


def _heldout(run: SavedRun, generator: Generator, num: int) -> np.ndarray:
    """At most so many sequences that no step was trained on, uint32 (N, L)."""
    config = run.config.model_copy(update={"evaluate_sequences": num})
    corpus: Corpus = open_corpus(config, generator.tokenizer, run.folder.store, cache_folder(), talk)
    return corpus.heldout_NL


def _with_encoder(run: SavedRun, generator: Generator, rows_NL: np.ndarray, told: Beginnings | None,
                  options: Namespace, device: torch.device) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What only the token encoder lets us see: losses, reconstructions, and completions of what is told."""
    encoder = load_token_encoder(run.config.token_encoder, device, run.config.data.sequence_length,
                                 store=run.folder.store, say=talk)
    talk(f"held-out text: {len(rows_NL)} sequences")
    scores = {"heldout_sequences": len(rows_NL),
              "heldout": evaluate(generator.model, encoder, rows_NL, options.seed, options.batch),
              "panel": reconstruction_panel(generator.model, encoder, rows_NL, options.seed, options.batch)}
    if told is None:
        return scores, []
    return scores, sample_completions(generator, encoder, told, options.steps, options.temperatures,
                                      options.batch, options.seed, talk)


def _judged(row_judge: RowJudge, real_NL: list[list[int]], generations: list[dict[str, Any]],
            num_prompt: int = 0, *, has_mauve: bool) -> dict[str, Any]:
    """Every sampling beside real rows, as many of either as there are of both."""
    real_NL = real_NL[:len(generations[0]["tokens"])]
    read = row_judge.rows(real_NL, num_prompt)
    return {"reference": row_judge.scores(real_NL, num_prompt=num_prompt),
            "frontier": [judged(one, row_judge, read, num_prompt, has_mauve=has_mauve)
                         for one in generations]}


def _about(judge: Judge) -> dict[str, Any]:
    return {"name": judge.name, "revision": judge.revision, "is_the_fields": judge.is_the_fields,
            "max_tokens": judge.max_tokens, "ids": len(judge.tokenizer)}


if __name__ == "__main__":
    sys.exit(main())
