"""What each command shows: from records to lines and tables of 80 columns. Decides nothing."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from launcher import console
from launcher.commands import resume_command
from launcher.engine import EnginePhase
from launcher.engines import cannot_tell, is_hidden
from launcher.errors import LdlmError
from launcher.follow import describe
from launcher.learning import Learned
from launcher.learning_screen import show_learning
from launcher.model_screen import pace_words
from launcher.recipe import RecipeSummary
from launcher.recorded import Scores, Throughput
from launcher.run_record import RunRecord, RunView, Status, ending_words
from launcher.vast_credit import credit_words
from trainer.contract import Document, Outcome
from trainer.run_folder import IdleGpu

_FAILED = {Outcome.LOST: "failed: crashed", Outcome.DIVERGED: "failed: diverged",
           Outcome.BAD_CONFIG: "failed: bad recipe", Outcome.NO_CAPACITY: "failed: no machine"}


def show_recipes(recipes: Sequence[RecipeSummary]) -> None:
    """One line per recipe; a broken one says where."""
    console.answer_table(["recipe", "what it trains"],
                         [[recipe.name, recipe.summary or f"broken: {recipe.problem}"] for recipe in recipes])


def show_runs(views: Sequence[RunView], url: str, as_json: bool) -> None:
    """One line per run of the store at a URL, or what to do where there are none."""
    if as_json:
        console.answer_json([status_json(view) for view in views])
    elif views:
        _show_table(views)
    else:
        console.answer(f"no runs in {url} yet; start one: ldlm launch smoke")


def _show_table(views: Sequence[RunView]) -> None:
    rows = [[view.record.run_id, status_word(view), *_steps(view.record), console.dollars(view.spent_usd),
             str(view.record.num_preemptions)] for view in views]
    console.answer_table(["run", "status", "step", "durable", "spent", "preempted"], rows, right=[2, 3, 4, 5],
                         spare=[5, 3])


def status_word(view: RunView) -> str:
    """Where a run is, or how it ended, in a word or two."""
    record = view.record
    if view.status is not Status.ENDED or record.outcome is None:
        return view.status.value
    ended = _FAILED.get(record.outcome.outcome, record.outcome.outcome.value)
    if record.bench_end is None:
        return ended
    return f"{'trained' if record.outcome.outcome is Outcome.FINISHED else ended}; no benchmark"


def show_damaged(views: Sequence[RunView], problems: Sequence[LdlmError]) -> None:
    """Runs of which something, or nothing, can be read, as talk."""
    torn = (f"{name} of {view.record.run_id} cannot be read: {view.record.run_id} is shown without it"
            for view in views for name in view.record.torn_names)
    for problem in (*torn, *problems):
        console.talk(f"damaged: {problem}", "note")


def show_status(view: RunView, found: Learned | None, beside: Sequence[tuple[str, str]]) -> None:
    """Where one run is: step, what is durable, dollars, whether it learns, what comes next.

    Args:
        beside: What else there is to say of it: its course, what it keeps.
    """
    record, status = view.record, view.status
    detail = f": {view.engine.detail}" if view.engine.detail and status is not Status.ENDED else ""
    beat = record.training.heartbeat if record.training else None
    step, durable = _steps(record)
    facts = [("status", f"{status}{detail}")]
    if status is Status.ENDED and record.outcome:
        facts.append(("outcome", ending_words(record)))
    facts += [("step", f"{step} (durable: {durable})"), *beside]
    if beat and status is Status.RUNNING:
        facts.append(("now", describe(beat)))
        facts += [("saves", pace_words(beat.pace))] if beat.pace else []
        facts += [("idle", _idle_words(beat.idle_gpus))] if beat.idle_gpus else []
    facts += [("damaged", f"{name} cannot be read") for name in record.torn_names]
    if record.last_seen and status is Status.UNKNOWN:
        facts.append(("last seen", f"{record.last_seen:%Y-%m-%d %H:%M:%S} UTC"))
    if record.lacks_credit and status is not Status.ENDED:
        facts.append(("credit", f"{credit_words()}; then it goes on by itself"))
    facts += [("attempts", f"{len(record.attempts)}, of which preempted: {record.num_preemptions}"),
              ("spent", console.dollars(view.spent_usd)), ("store", record.url)]
    console.answer(f"Run {record.run_id}", "title")
    console.answer_facts(facts)
    show_learning(found, with_samples=record.bench is None)
    if status is Status.UNKNOWN:
        console.answer()
        console.answer_notes([_nobody_supervises(view)])


def _idle_words(gpus: Sequence[IdleGpu]) -> str:
    """Cards that cost money and do nothing, the longest first."""
    longest = sorted(gpus, key=lambda gpu: -gpu.idle_s)
    each = (f"GPU {gpu.number} for {console.rough_duration(gpu.idle_s)}" for gpu in longest)
    return f"{', '.join(each)}: does nothing, and is paid for"


def _nobody_supervises(view: RunView) -> str:
    """Why a run stands still, and what starts it again."""
    if is_hidden(view.record, view.engine):
        error = cannot_tell(view.record, view.engine)
        return f"{error.problem}; {error.fix}"
    resume = f"continue it: {resume_command(view.record)}"
    if view.engine.phase is EnginePhase.NONE and view.record.attempts:
        return f"it did not run on this machine, and nothing has been heard of it for long; {resume}"
    if view.engine.phase is EnginePhase.NONE:
        return f"it was recorded and never started; {resume}"
    return f"nobody supervises this run any more; {resume}"


def status_json(view: RunView) -> dict[str, Any]:
    """Stable form of `status --json`."""
    record = view.record
    beat = record.training.heartbeat if record.training else None
    return {
        "run_id": record.run_id, "status": view.status.value, "store": record.url,
        "outcome": record.outcome.outcome.value if record.outcome else None,
        "reason": record.outcome.reason if record.outcome else None,
        "bench_outcome": record.bench_end.outcome.value if record.bench_end else None,
        "step": beat.step if beat else 0, "total_steps": beat.total_steps if beat else None,
        "durable_step": beat.durable_step if beat else 0, "attempts": len(record.attempts),
        "preemptions": record.num_preemptions,
        "resumed_from_steps": [files.heartbeat.resumed_from_step for files in record.attempts
                               if files.heartbeat and files.attempt.document is Document.TRAIN],
        "spent_usd": f"{view.spent_usd:.6f}", "metrics": _finite(beat.metrics) if beat else {},
        "idle_gpus": [gpu.model_dump() for gpu in beat.idle_gpus] if beat else [],
        "saves": beat.pace.model_dump() if beat and beat.pace else None,
        "bench": record.bench, "damaged": record.torn_names,
    }


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: null stands for it."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _score(value: float | None, form: str) -> str:
    return "(no number)" if value is None else format(value, form)


def show_bench(record: RunRecord) -> None:
    """Reconstructions first, then samples, then the speed, each with what it is not."""
    bench = record.bench
    if bench is None:
        return
    scores = Scores.model_validate(bench["scores"])
    console.answer()
    console.answer(f"What it learned by step {bench['step']} (held-out text)", "title")
    console.answer(f"  reconstruction: {_score(scores.reconstruction_accuracy, '.1%')} of tokens, "
                   f"{_score(scores.reconstruction_accuracy_noisy, '.1%')} under noise")
    console.answer(f"  L_diff {_score(scores.diffusion_loss, '.3f')}, "
                   f"of a trivial predictor {_score(scores.diffusion_loss_trivial, '.3f')}, "
                   f"of a linear filter {_score(scores.diffusion_loss_linear, '.3f')}")
    for truth, guess in bench["reconstructions"]:
        console.answer(f"  text   {console.one_line(truth)}", "quiet")
        console.answer(f"  model  {console.one_line(guess)}")
    console.answer()
    console.answer("Generated from noise, unselected", "title")
    for sample in bench["samples"]:
        console.answer(f"  > {console.one_line(sample)}")
    console.answer()
    _show_speed(Throughput.model_validate(bench["throughput"]))


def _show_speed(speed: Throughput) -> None:
    """Tokens per second, how sure they are, what they stand beside, what they are not."""
    console.answer("Benchmark", "title")
    console.answer(f"  {speed.tokens_per_s:,.0f} tokens/s on {speed.device}")
    console.answer(f"  {speed.denoiser_steps} steps, batch 1, {speed.tokens} tokens, {speed.dtype}; "
                   f"median of {speed.num_generations}: {speed.seconds_p10 * 1e3:.{_digits(speed)}f} to "
                   f"{speed.seconds_p90 * 1e3:.{_digits(speed)}f} ms")
    if speed.reference_tokens_per_s:
        ratio = f"  {speed.tokens_per_s / speed.reference_tokens_per_s:.1f} times the float32 reference"
        # Above 1 something else ran while limits were measured: that says nothing.
        share = speed.fraction_of_limit if speed.fraction_of_limit and speed.fraction_of_limit <= 1 else None
        console.answer(ratio if share is None else f"{ratio}, {share:.0%} of what this device allows")
    if speed.latents_error is not None and speed.same_tokens is not None:
        console.answer(f"  beside the reference: latents {speed.latents_error:.4f} off, "
                       f"{speed.same_tokens:.1%} of tokens the same")
    if speed.usd_per_million_tokens is not None:
        console.answer(f"  ${speed.usd_per_million_tokens:.4f} per million tokens at this machine's price")
    if speed.prompted_tokens_per_s:
        console.answer(f"  {speed.prompted_tokens_per_s:,.0f} tokens/s after a prompt of "
                       f"{speed.prompt_tokens} tokens")
    if notes := list(_bench_notes(speed)):
        console.answer_notes(notes)


def _digits(speed: Throughput) -> int:
    """Of milliseconds: a fast GPU takes one or two of them."""
    return 0 if speed.seconds_p10 >= 0.01 else 2


def _bench_notes(speed: Throughput) -> Iterator[str]:
    if speed.device.startswith("CPU"):
        yield "a few CPU minutes do not make language: the samples show that the path works, no more"
    if not speed.is_rtx5090:
        yield "this is not an RTX 5090 figure"
    yield from speed.warnings


def _steps(record: RunRecord) -> tuple[str, str]:
    beat = record.training.heartbeat if record.training else None
    return (f"{beat.step}/{beat.total_steps}", str(beat.durable_step)) if beat else ("-", "-")
