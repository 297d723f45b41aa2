"""`python -m trainer.measure`, behind `ldlm evaluate`: what a run's newest weights are worth.

Exit codes: those of the `ldlm` command.
"""

import json
import sys
import textwrap
from argparse import Namespace
from typing import Any

import numpy as np
import torch

from trainer.bench_autoregressive import speeds
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
from trainer.panel import reconstruction_panel
from trainer.quality import MAUVE_FEW_TEXTS, Judge, load_judge, require_evaluation_tools
from trainer.quality_plot import plot
from trainer.run_folder import RunFolder
from trainer.sample import adjusted
from trainer.sample_options import WAYS
from trainer.saved_run import SavedRun, load_run
from trainer.store import named_store
from trainer.token_encoder import load_token_encoder

_WIDTH = 80


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says. Returns the exit code."""
    options = read_measure_options(argv)

    def answer() -> str:
        result = measure(options)
        return json.dumps(result, indent=1) if options.json else _screen(result, options)

    return carry_out(answer, out=options.out)


def measure(options: Namespace) -> dict[str, Any]:
    """Measure everything and write it. Raises LdlmError; what is quick to refuse comes first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require_evaluation_tools()
    options.out.mkdir(parents=True, exist_ok=True)
    judge = load_judge(options.judge, device, revision=options.judge_revision)
    run = load_run(RunFolder(named_store(options.store), options.run), talk)
    if options.prompt_tokens:
        check_length(run.config, options.prompt_tokens)
    generator = adjusted(run.generator(device), options, WAYS)
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
    # Before they are judged: a judge that runs out of memory must not cost what was sampled.
    (options.out / "samples.json").write_text(json.dumps(samples))
    talk(f"judged by {judge.name}")
    row_judge = RowJudge(judge, generator.tokenizer, generator.end_of_text_id)
    result = {"source": options.run, "step": run.manifest.step, "seed": options.seed,
              "device": device_name(device), "dtype": str(next(generator.model.parameters()).dtype),
              "judge": _about(judge), **on_heldout, **_judged(row_judge, rows_NL.tolist(), generations)}
    if told:
        result["completions"] = {"prompt_tokens": options.prompt_tokens, **_judged(
            row_judge, told.tokens_NL.tolist(), completions, options.prompt_tokens)}
    if options.autoregressive:
        talk("a transformer of as many parameters, token after token")
        result["autoregressive"] = speeds(generator, dict.fromkeys((1, generations[0]["batch"])))
    (options.out / "evaluation.json").write_text(json.dumps(result, indent=1))
    plot(result, judge, options.out / "evaluation.png")
    return result


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
            num_prompt: int = 0) -> dict[str, Any]:
    """Every sampling beside real rows, as many of either as there are of both."""
    real_NL = real_NL[:len(generations[0]["tokens"])]
    read = row_judge.rows(real_NL, num_prompt)
    return {"reference": row_judge.scores(real_NL, num_prompt=num_prompt),
            "frontier": [judged(one, row_judge, read, num_prompt) for one in generations]}


def _about(judge: Judge) -> dict[str, Any]:
    return {"name": judge.name, "revision": judge.revision, "is_the_fields": judge.is_the_fields,
            "max_tokens": judge.max_tokens, "ids": len(judge.tokenizer)}


def _screen(result: dict[str, Any], options: Namespace) -> str:
    """What a person reads: the panel, a line for each sampling, where the rest is."""
    panel = [f"{name.replace('_', ' ')} {scores['accuracy']:.1%}" for name, scores in result["panel"].items()]
    batch = result["frontier"][0]["batch"]
    lines = ["held-out tokens that come back:", *_folded("  ".join(panel), indent="  "),
             *_folded(f"perplexity by {result['judge']['name']}, of {result['reference']['num_texts']} texts "
                      f"each; tokens/s at batch {batch}:"),
             *_table(result, "generative_perplexity", "held-out text")]
    told = result.get("completions")
    if told:
        lines += [*_folded(f"completions of {told['reference']['num_texts']} held-out texts after "
                           f"{told['prompt_tokens']} tokens, perplexity given those:"),
                  *_table(told, "perplexity_given_prompt", "the original")]
    if "autoregressive" in result:
        lines += _folded(_beside(result))
    lines += _folded(f"wrote evaluation.json, evaluation.png and samples.json to {options.out}")
    return "\n".join(lines)


def _beside(result: dict[str, Any]) -> str:
    """Speeds of one text at a time, ours over steps and the autoregressive one."""
    other = result["autoregressive"]
    ours = {point["setting"]["steps"]: point["tokens_per_s_batch_1"] for point in result["frontier"]}
    words = ", ".join(f"{steps} steps {speed:,.0f}" for steps, speed in ours.items())
    return (f"tokens/s at batch 1: {words}; an autoregressive transformer of "
            f"{other['parameters'] / 1e6:,.1f} M parameters (random weights) "
            f"{other['tokens_per_s_batch_1']:,.0f}")


def _folded(text: str, indent: str = "") -> list[str]:
    # A number stays with its name: blanks within an item do not break.
    kept = "  ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in text.split("  ")) if indent else text
    lines = textwrap.wrap(kept, _WIDTH, initial_indent=indent, subsequent_indent=indent or "  ",
                          break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _table(scored: dict[str, Any], perplexity: str, reference: str) -> list[str]:
    """A line for each sampling of a frontier, and one for the reference."""
    lines = [f"  {'steps':>5}  {'temp.':>5}  {'perplexity':>10}  {'entropy':>7}  {'distinct-2':>10}  "
             f"{'ends':>4}  {'MAUVE':>5}  {'tokens/s':>9}"]
    for point in scored["frontier"]:
        # Completions are not timed.
        speed = point.get(f"tokens_per_s_batch_{point.get('batch')}")
        lines.append(f"  {point['setting']['steps']:>5}  {point['setting']['temperature']:>5g}  "
                     f"{_scores(point, perplexity, 10)}  {_cell(point, 'mauve', 5, 2)}  "
                     + (f"{'-':>9}" if speed is None else f"{speed:>9,.0f}"))
    lines.append(f"  {reference:>13}  {_scores(scored['reference'], perplexity, 9)}")
    num = scored["reference"]["num_texts"]
    return lines + ([f"  MAUVE of {num} texts: says little"] if num < MAUVE_FEW_TEXTS else [])


def _scores(scores: dict[str, Any], perplexity: str, width: int) -> str:
    """Cells that samples and reference both have; `ends` are rows that hold an end of text."""
    return (f"{_cell(scores, perplexity, width, 1)}  {_cell(scores, 'entropy', 7, 2)}  "
            f"{_cell(scores, 'distinct_2', 10, 3)}  {100 * scores['rows_with_end']:>3.0f}%")


def _cell(scores: dict[str, Any], metric: str, width: int, digits: int) -> str:
    value = next(value for key, value in scores.items() if key == metric or key.startswith(f"{metric}_by_"))
    return f"{'-':>{width}}" if value is None else f"{value:>{width},.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
