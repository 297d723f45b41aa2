"""`python -m trainer.sample`, behind `ldlm sample`: text from the weights of a run or of an export.

Exit codes: those of the `ldlm` command.
"""

import dataclasses
import json
import sys
import textwrap
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from trainer.bench_device import device_name
from trainer.command import carry_out, talk
from trainer.config import TrainConfig
from trainer.contract import ConfigError
from trainer.export import open_export
from trainer.fast.generator import fast_generator
from trainer.generate import Generator, Prompt
from trainer.infilling import infiller
from trainer.prompting import check_reads_prompts, read_prompt
from trainer.run_folder import RunFolder
from trainer.sample_options import SETTINGS, read_sample_options
from trainer.saved_run import load_run
from trainer.store import named_store

_WIDTH = 80
_CAPTURE_BATCHES = 4  # capturing a CUDA graph takes about as long as so many batches without one (guess)
_STEERING = "\N{REPLACEMENT CHARACTER}"  # shown for what would steer a terminal


class Source(NamedTuple):
    """Whom the texts are from: a run or an export, in words, and the optimizer steps behind it."""

    generator: Generator
    name: str
    step: int


class Texts(NamedTuple):
    """What came of it, and how long it took, decoding included, loading not."""

    texts: list[str]
    num_tokens: int
    seconds: float


def main(argv: list[str] | None = None) -> int:
    """Sample as the command line says. Returns the exit code."""
    options = read_sample_options(argv)
    return carry_out(lambda: _answer(options))


def _answer(options: Namespace) -> str:
    source = _open(options)
    source = source._replace(generator=adjusted(source.generator, options))
    generator, prompt = _told(source.generator, options)
    num = options.num or generator.config.sampling.num_samples
    source = source._replace(generator=quickened(generator, num))
    made = generate(source.generator, num, options.seed, prompt)
    if options.json:
        return json.dumps(_summary(source, made, options, prompt), ensure_ascii=False, indent=2)
    return screen(made.texts) + "\n" + _folded(_last_words(source, made, options.seed, prompt))


def adjusted(generator: Generator, options: Namespace, settings: Mapping[str, str] = SETTINGS) -> Generator:
    """With what was asked for in place of the recipe's settings, of those that options stand for.

    Raises:
        ConfigError: The model has not what a guidance weighs.
    """
    changes = {setting: getattr(options, option) for option, setting in settings.items()
               if getattr(options, option) is not None}
    if "prompt_guidance" in changes:
        check_reads_prompts(generator.config, "--prompt-guidance", "leave it out")
    sampling = generator.config.sampling.model_dump() | changes
    try:
        config = TrainConfig.model_validate(
            {**generator.config.model_dump(), "profile": None, "sampling": sampling})
    except ValidationError as error:
        problem = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ConfigError(problem, place="--guidance", fix="leave --guidance out") from error
    return dataclasses.replace(generator, config=config)


def quickened(generator: Generator, num: int) -> Generator:
    """By the fast path where a GPU draws so many texts that it pays; not compiled, which takes a minute."""
    is_cuda = generator.model.hidden_mean.device.type == "cuda"
    if not is_cuda or num <= _CAPTURE_BATCHES * generator.config.sampling.batch_size:
        return generator
    return fast_generator(generator, compile_mode=None)


def generate(generator: Generator, num: int, seed: int, prompt: Prompt | None = None) -> Texts:
    """Draw texts and take the time."""
    began = time.perf_counter()
    # Ids come to the host: nothing of it is still under way when the clock is read.
    tokens = generator.tokens(num, seed, prompt).cpu()
    seconds = time.perf_counter() - began
    return Texts(generator.to_texts(tokens), tokens.numel(), seconds)


def screen(texts: list[str]) -> str:
    """Texts in 80 columns, numbered from 0; what would steer a terminal is shown as U+FFFD."""
    return "\n".join(f"{number}\n{_shown(text)}\n" for number, text in enumerate(texts))


def _shown(text: str) -> str:
    """A text set in by two, its own lines kept."""
    plain = text.replace("\t", " ")
    seen = "".join(sign if sign.isprintable() or sign == "\n" else _STEERING for sign in plain)
    lines = [part for line in seen.splitlines() for part in textwrap.wrap(
        line, _WIDTH - 1, initial_indent="  ", subsequent_indent="  ") or [""]]
    return "\n".join(lines) if seen.strip() else "  (empty: it begins with the end of text)"


def _folded(text: str) -> str:
    return "\n".join(textwrap.wrap(text, _WIDTH - 1, break_long_words=False, break_on_hyphens=False))


def _open(options: Namespace) -> Source:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.export is not None:
        record, generator = open_export(options.export, device, trusts_compiled=options.trust_compiled)
        return Source(generator, str(options.export), record.step)
    run = load_run(RunFolder(named_store(options.store), options.run), talk)
    return Source(run.generator(device), options.run, run.manifest.step)


def _told(generator: Generator, options: Namespace) -> tuple[Generator, Prompt | None]:
    """The generator and its prompt, from the texts that were given to begin and to end with."""
    if options.suffix is not None:
        filler = infiller(generator, options.prompt, options.suffix, named_store(options.store))
        return filler, filler.beginning()
    if options.prompt is None:
        return generator, None
    return generator, read_prompt(generator, options.prompt, named_store(options.store))


def _last_words(source: Source, made: Texts, seed: int, prompt: Prompt | None) -> str:
    sampling, device = source.generator.config.sampling, source.generator.model.hidden_mean.device
    num = len(made.texts)
    passes = f"{sampling.steps} step{'s' * (sampling.steps != 1)}"
    how = [f"{sampling.solver}, {passes}, {sampling.grid} grid", f"seed {seed}"]
    how += [f"{name} {value:g}" for name, value in (("temperature", sampling.temperature),
            ("guidance", sampling.self_conditioning_guidance),
            ("prompt guidance", 1.0 if prompt is None else sampling.prompt_guidance)) if value != 1.0]
    return (f"{num} text{'s' * (num != 1)} of {made.num_tokens // num} tokens from {source.name} at step "
            f"{source.step:,}, unselected: {', '.join(how)}; {made.seconds:.1f} s, "
            f"{made.num_tokens / made.seconds:,.0f} tokens/s on {device_name(device)}"
            + (" in bfloat16" if source.generator.dtype == torch.bfloat16 else ""))


def _summary(source: Source, made: Texts, options: Namespace, prompt: Prompt | None) -> dict[str, Any]:
    generator = source.generator
    sampling = generator.config.sampling.model_dump(exclude={"num_samples", "bench_generations"})
    if prompt is None:  # then it weighs nothing
        sampling["prompt_guidance"] = None
    return {"source": source.name, "step": source.step, "seed": options.seed, "prompt": options.prompt,
            "suffix": options.suffix, **sampling, "texts": made.texts,
            "num_tokens": made.num_tokens, "seconds": round(made.seconds, 4),
            "tokens_per_s": round(made.num_tokens / made.seconds, 1),
            "device": device_name(generator.model.hidden_mean.device),
            "dtype": str(generator.dtype)}


if __name__ == "__main__":
    sys.exit(main())
