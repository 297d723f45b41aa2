"""`python -m trainer.measure`, behind `ldlm evaluate`: what a run's newest weights are worth.

Exit codes: those of the `ldlm` command.
"""

import json
import os
import sys
from argparse import Namespace
from typing import Any

import numpy as np
import torch

from trainer.bench import device_name
from trainer.completions import Beginnings, beginnings, check_length, sample_completions
from trainer.contract import ConfigError, Env, LdlmError
from trainer.data import Corpus, open_corpus
from trainer.evaluate import evaluate
from trainer.frontier import judged, sample_frontier
from trainer.generate import Generator, to_text
from trainer.measure_options import read_measure_options
from trainer.panel import reconstruction_panel
from trainer.quality import Judge, load_judge, require_evaluation_tools, text_scores
from trainer.quality_plot import plot
from trainer.run_folder import RunFolder
from trainer.saved_run import SavedRun, load_run
from trainer.store import open_store
from trainer.token_encoder import load_token_encoder
from trainer.transfers import cache_folder

_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says. Returns the exit code."""
    options = read_measure_options(argv)
    try:
        result = measure(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        problem = ConfigError(f"cannot be written: {error.strerror or error}", place=str(options.out),
                              fix="name another folder: --out FOLDER")
        print(f"error: {problem}", file=sys.stderr)
        return problem.cli_exit_code
    except LdlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.cli_exit_code
    print(json.dumps(result, indent=1) if options.json else _screen(result, options))
    return 0


def measure(options: Namespace) -> dict[str, Any]:
    """Measure everything and write it. Raises LdlmError; what is quick to refuse comes first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require_evaluation_tools()
    options.out.mkdir(parents=True, exist_ok=True)
    judge = load_judge(options.judge, device, revision=options.judge_revision)
    run = load_run(RunFolder(open_store(options.store or os.environ[Env.STORE]), options.run), _say)
    if options.prompt_tokens:
        check_length(run.config, options.prompt_tokens)
    generator = run.generator(device)
    rows_NL = _heldout(run, generator, options.num)
    reference = to_text(generator.tokenizer, rows_NL.tolist(), generator.end_of_text_id)
    told = beginnings(generator, rows_NL, options.prompt_tokens) if options.prompt_tokens else None
    on_heldout, completions = _with_encoder(run, generator, rows_NL, told, options, device)
    generations = sample_frontier(generator, options.steps, options.temperatures, options.num, options.batch,
                                  options.seed, _say)
    _say(f"judged by {judge.name}")
    result = {"source": options.run, "step": run.manifest.step, "seed": options.seed,
              "device": device_name(device), "dtype": str(next(generator.model.parameters()).dtype),
              "judge": _about(judge), **on_heldout, "reference": text_scores(judge, reference),
              "frontier": [judged(one, judge, reference) for one in generations]}
    samples = {"model": "ldlm", "seed": options.seed, "source": options.run, "step": run.manifest.step,
               "reference_texts": reference, "generations": generations}
    if told:
        result["completions"] = _judged_completions(judge, told, completions)
        samples |= {"heldout_tokens": rows_NL.tolist(), "prompts": told.prompts,
                    "continuations": told.continuations, "completions": completions}
    (options.out / "samples.json").write_text(json.dumps(samples))
    (options.out / "evaluation.json").write_text(json.dumps(result, indent=1))
    plot(result, judge, options.out / "evaluation.png")
    return result


def _heldout(run: SavedRun, generator: Generator, num: int) -> np.ndarray:
    """At most so many sequences that no step was trained on, uint32 (N, L)."""
    config = run.config.model_copy(update={"evaluate_sequences": num})
    corpus: Corpus = open_corpus(config, generator.tokenizer, run.folder.store, cache_folder(), _say)
    return corpus.heldout_NL


def _with_encoder(run: SavedRun, generator: Generator, rows_NL: np.ndarray, told: Beginnings | None,
                  options: Namespace, device: torch.device) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What only the token encoder lets us see: losses, reconstructions, and completions of what is told."""
    encoder = load_token_encoder(run.config.token_encoder, device, run.config.data.sequence_length,
                                 store=run.folder.store, say=_say)
    _say(f"held-out text: {len(rows_NL)} sequences")
    scores = {"heldout_sequences": len(rows_NL),
              "heldout": evaluate(generator.model, encoder, rows_NL, options.seed, options.batch),
              "panel": reconstruction_panel(generator.model, encoder, rows_NL, options.seed, options.batch)}
    if told is None:
        return scores, []
    return scores, sample_completions(generator, encoder, told, options.steps, options.temperatures,
                                      options.batch, options.seed, _say)


def _judged_completions(judge: Judge, told: Beginnings, completions: list[dict[str, Any]]) -> dict[str, Any]:
    """The same panel as of any other text, beside the scores of how the documents really go on."""
    return {"prompt_tokens": told.tokens_NP.shape[1],
            "reference": text_scores(judge, told.continuations, prompts=told.prompts),
            "frontier": [judged(one, judge, told.continuations, told.prompts) for one in completions]}


def _about(judge: Judge) -> dict[str, Any]:
    return {"name": judge.name, "revision": judge.revision, "is_the_fields": judge.is_the_fields,
            "max_tokens": judge.max_tokens, "ids": len(judge.tokenizer)}


def _screen(result: dict[str, Any], options: Namespace) -> str:
    """What a person reads: the panel, a line for each sampling, where the rest is."""
    panel = "  ".join(f"{name.replace('_', ' ')} {scores['accuracy']:.1%}"
                      for name, scores in result["panel"].items())
    lines = ["held-out tokens that come back:", f"  {panel}", f"perplexity by {result['judge']['name']}:",
             *_table(result, "generative_perplexity", "held-out text")]
    told = result.get("completions")
    if told:
        lines += [f"completions of {told['reference']['num_texts']} held-out texts after "
                  f"{told['prompt_tokens']} tokens, perplexity given those:",
                  *_table(told, "perplexity_given_prompt", "the original")]
    lines += [f"wrote evaluation.json, evaluation.png and samples.json to {options.out}"]
    return "\n".join(lines)


def _table(scored: dict[str, Any], perplexity: str, reference: str) -> list[str]:
    """A line for each sampling of a frontier, and one for the reference."""
    lines = [f"  {'steps':>5}  {'temp.':>5}  {'perplexity':>10}  {'entropy':>7}  {'distinct-2':>10}  "
             f"{'MAUVE':>5}  {'tokens/s':>9}"]
    for point in scored["frontier"]:
        speeds = [value for key, value in point.items() if key.startswith("tokens_per_s")]
        lines.append(f"  {point['setting']['steps']:>5}  {point['setting']['temperature']:>5g}  "
                     f"{_cell(point, perplexity, 10, 1)}  {_cell(point, 'entropy', 7, 2)}  "
                     f"{_cell(point, 'distinct_2', 10, 3)}  {_cell(point, 'mauve', 5, 2)}  "
                     + (f"{max(speeds):>9,.0f}" if speeds else f"{'-':>9}"))
    own = scored["reference"]
    return [*lines, f"  {reference:>13}  {_cell(own, perplexity, 9, 1)}  {_cell(own, 'entropy', 7, 2)}  "
                    f"{_cell(own, 'distinct_2', 10, 3)}"]


def _cell(scores: dict[str, Any], metric: str, width: int, digits: int) -> str:
    value = next(value for key, value in scores.items() if key == metric or key.startswith(f"{metric}_by_"))
    return f"{'-':>{width}}" if value is None else f"{value:>{width},.{digits}f}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
