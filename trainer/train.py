"""The training loop of a latent diffusion language model, one process per GPU (or CPU rank).

Started by `trainer.node` through torchrun; everything it is told comes from the environment names of
`trainer.contract.Env`. Reads top to bottom: restore, loop, finish.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import distributed as dist

from trainer.batches import Batches
from trainer.config import TrainConfig
from trainer.contract import Env, ExitCode, LdlmError, Name, Outcome, RankEnd, evaluation_file
from trainer.divergence import diverged_error
from trainer.evaluate import Evaluation, evaluate, reconstruct, write_samples
from trainer.generate import Generator
from trainer.hidden_statistics import measure_statistics
from trainer.job import Job, build_job
from trainer.metrics import Phase, TrainingSpeed
from trainer.model import LatentDiffusionLM
from trainer.node_watch import end_with_node
from trainer.preemption import StopSignal, Verdict, agree, over_limit
from trainer.ranks import init_process_group, meet
from trainer.run_folder import RunOutcome
from trainer.sign_of_life import SignOfLife, answer_with_stacks
from trainer.step import encoder_pulls, train_step
from trainer.step_metrics import peak_memory, settings_at, time_density

# One failed save may be the store's bad minute; after two in a row, training on would risk paid work.
_MAX_FAILED_SAVES = 2
_NUM_RECONSTRUCTIONS = 3


def train(job: Job) -> RankEnd:
    """Run the loop until the last step, a limit or a stop. The same end on every rank."""
    restore_or_start(job)
    config, progress, verdict = job.config, job.progress, Verdict.CONTINUE
    enter_together(job, "train_s")
    speed = TrainingSpeed(job.clock, progress.step)
    if job.recorder is not None:
        job.recorder.write_soon()
    while progress.step < config.steps:
        verdict = agree(own_verdict(job))
        if verdict is not Verdict.CONTINUE:
            break
        job.state.round(progress.step)
        train_step(job, progress.step)
        progress.step += 1
        job.life.at_step(progress.step)
        if progress.step % config.log_every_steps == 0 or progress.step == config.steps:
            log_step(job, speed)
        if progress.step % config.evaluate_every_steps == 0 or progress.step == config.steps:
            run_evaluation(job)
        if progress.step < config.steps and save_due(job):
            save(job)
    return finish(job, verdict)


def enter_together(job: Job, phase: Phase) -> None:
    """Begin a phase on all ranks at once: one that waits for a slow peer must not look as if it hung."""
    meet()
    job.clock.enter(phase)


@contextmanager
def together(job: Job, phase: Phase) -> Iterator[None]:
    """Book the block on `phase`; all ranks enter and leave it at once."""
    meet()
    with job.clock.during(phase):
        yield
        meet()


def restore_or_start(job: Job) -> None:
    """Continue from the newest complete checkpoint; without one, measure the statistics of h."""
    found = job.checkpoints.restore(job.say)
    if found:
        step, timesteps = found
        job.progress.step = job.progress.resumed_from_step = job.progress.durable_step = step
        job.timesteps.load_state_dict(timesteps)
        job.say(f"resumed from step {step} of {job.config.steps}")
    else:
        measure_hidden_states(job)
        job.say(f"starting at step 0 of {job.config.steps}")
    job.batches = Batches(job.corpus, job.config, dist.get_rank(), dist.get_world_size(), job.progress.step)
    job.saved_at_s = time.monotonic()


def measure_hidden_states(job: Job) -> None:
    """Fix mean and standard deviation of the hidden states, and report how far they go beyond."""
    config = job.config.token_encoder
    num_rows = -(-config.statistics_tokens // job.config.data.sequence_length)
    rows_NL = job.corpus.sample(num_rows)
    found = measure_statistics(job.encoder, rows_NL, config.statistics, config.clip,
                               job.config.micro_batch_size)
    for values_D in (found.mean_D, found.std_D):
        dist.broadcast(values_D, src=0)  # processors of several kinds may round differently
    job.model.set_statistics(found.mean_D, found.std_D)
    job.say(f"hidden states: {config.statistics} mean and deviation over {rows_NL.size:,} tokens; at most "
            f"{found.largest:.1f} deviations from the mean, {found.clipped:.2%} cut at {config.clip:g}")
    if job.recorder is not None:
        job.recorder.log(0, {"hidden/largest": found.largest, "hidden/clipped": found.clipped})


def own_verdict(job: Job) -> Verdict:
    """What this rank would do before the next step."""
    note_finished_save(job)
    if job.failed_saves >= _MAX_FAILED_SAVES:
        return Verdict.FAIL
    if job.stop.received:
        return Verdict.RECOVER
    if job.recorder is not None:
        now = datetime.now(UTC)
        limits = job.limits
        job.stop_reason = over_limit(
            now, job.recorder.spent_usd(now), deadline=limits.deadline, max_cost_usd=limits.max_cost_usd,
            reserve_usd=limits.bench_reserve_usd) or ""
    return Verdict.LIMIT if job.stop_reason else Verdict.CONTINUE


def log_step(job: Job, speed: TrainingSpeed) -> None:
    """Print one line and keep one row for the steps since the last one. Raises DivergedError."""
    stop_if_diverged(job)  # waits for the device: what is timed has happened
    num_steps, seconds = speed.since_last(job.progress.step)
    step, config = job.progress.step, job.config
    names = [*(f"loss/{name}" for name in job.losses), "data_wait_s"]
    means = torch.tensor([*torch.stack(list(job.losses.values())).tolist(), job.data_wait_s / num_steps])
    job.data_wait_s = 0.0
    dist.all_reduce(means)
    if job.recorder is None:
        return
    row = dict(zip(names, (means / dist.get_world_size()).tolist(), strict=True))
    rate = job.progress.tokens_per_s = num_steps * config.tokens_per_step / seconds
    row |= {f"grad_norm/{part}": float(norm) for part, norm in job.grad_norms.items()}
    row |= job.recorder.accounts() | settings_at(job, rate) | peak_memory(job)
    job.recorder.log(step, {"tokens_per_s": rate} | row)
    left_s = (config.steps - step) * config.tokens_per_step / rate
    job.say(f"step {step}/{config.steps}  L_h {row['loss/hidden']:.3f}  L_w {row['loss/token']:.3f}  "
            f"L_diff {row['loss/diffusion']:.3f}  {rate:,.0f} tok/s  "
            f"${job.recorder.spent_usd(datetime.now(UTC)):.4f}  {left_s:.0f} s left")


def stop_if_diverged(job: Job) -> None:
    """Raise DivergedError, on every rank alike, when a number of an earlier step was not finite."""
    found = job.watch.found()
    if found is None:
        return
    job.clock.enter("checkpoint_s")
    job.checkpoints.wait()  # what it uploads is from before that step
    note_finished_save(job)
    raise diverged_error(*found, job.progress.durable_step, job.config.precision)


def run_evaluation(job: Job) -> None:
    """Held-out scores of the averaged weights, all ranks sharing the work; pulls on the current ones."""
    heldout_NL = job.corpus.heldout_NL[: job.config.evaluate_sequences]
    job.wait_for_device()  # steps that are still queued are not evaluation
    job.checkpoints.settle()
    with together(job, "evaluate_s"):
        pulls = encoder_pulls(job, heldout_NL[: job.config.micro_batch_size])
        with job.average.applied() as model:
            scores = evaluate(model, job.encoder, heldout_NL, job.config.seed, job.config.micro_batch_size)
            texts = reconstruct(model, job.encoder, heldout_NL[:_NUM_RECONSTRUCTIONS])
            samples, repetition = samples_of(job, model)
    scores |= pulls | repetition
    step, job.evaluation = job.progress.step, Evaluation(step=job.progress.step, scores=scores,
                                                         reconstructions=texts, samples=samples)
    if job.recorder is not None:
        job.recorder.keep(evaluation_file(step), job.evaluation)
        job.recorder.log(step, {f"eval/{name}": value for name, value in scores.items()} | time_density(job)
                         | peak_memory(job))
    job.say(f"step {job.progress.step}  held-out reconstruction {scores['reconstruction_accuracy']:.1%} "
            f"({scores['reconstruction_accuracy_noisy']:.1%} under noise)  "
            f"L_diff {scores['diffusion_loss']:.3f} (linear filter {scores['diffusion_loss_linear']:.3f}, "
            f"trivial {scores['diffusion_loss_trivial']:.3f})")


def samples_of(job: Job, model: LatentDiffusionLM) -> tuple[list[str], dict[str, float]]:
    """What the model writes, see `write_samples`; on rank 0, for which the others wait."""
    if job.recorder is None:
        return [], {}
    encoder = job.encoder
    generator = Generator(job.config, model, job.timesteps, encoder.num_tokens, encoder.end_of_text_id,
                          encoder.tokenizer)
    return write_samples(generator, job.config.seed, job.corpus.heldout_NL)


def save_due(job: Job) -> bool:
    """True at the same step on every rank: by count, or by rank 0's clock where the state is rounded."""
    every = job.config.checkpoint
    if every.every_steps:
        return job.progress.step % every.every_steps == 0
    if job.progress.step % job.config.optimizer.round_steps:
        return False
    due = torch.tensor(int(time.monotonic() - job.saved_at_s >= (every.every_minutes or 0) * 60))
    dist.broadcast(due, src=0)
    return bool(due)


def save(job: Job) -> None:
    """Start a checkpoint of the current step. Training goes on while it is uploaded.

    Raises:
        DivergedError: What diverged must not replace good checkpoints.
    """
    stop_if_diverged(job)
    with together(job, "checkpoint_s"):
        job.checkpoints.wait()
        note_finished_save(job)
        job.checkpoints.save(job.progress.step, job.timesteps.state_dict())
    phases = job.clock.phases()
    job.kept_by_step[job.progress.step] = (phases.train_s, phases.evaluate_s)
    job.saved_at_s = time.monotonic()


def note_finished_save(job: Job) -> None:
    """Take over what the background save has come to: a newer durable step, or a failure to count."""
    durable = job.checkpoints.durable_step
    if durable in job.kept_by_step:
        job.progress.durable_train_s, job.progress.durable_evaluate_s = job.kept_by_step[durable]
        job.progress.durable_step = durable
        job.kept_by_step = {step: kept for step, kept in job.kept_by_step.items() if step > durable}
        job.failed_saves = 0
        job.say(f"checkpoint of step {durable} is durable")
        if job.recorder is not None:
            job.recorder.write_soon()
    error = job.checkpoints.pop_error()
    if error:
        # Rank 0 hears of every rank's failure, and only it hears of success.
        job.failed_saves += dist.get_rank() == 0
        print(f"warning: rank {dist.get_rank()}: checkpoint not saved: {error}", flush=True)


def finish(job: Job, verdict: Verdict) -> RankEnd:
    """Commit the last state, write the outcome, and say how the node should exit."""
    enter_together(job, "checkpoint_s")
    if verdict is not Verdict.FAIL and is_ahead_of_durable(job):
        save(job)
    job.checkpoints.wait()
    note_finished_save(job)
    failed = agree(Verdict.FAIL if job.failed_saves else Verdict.CONTINUE) is Verdict.FAIL
    if failed:
        return RankEnd(1, f"the state of step {job.progress.step} could not be saved; "
                          f"step {job.progress.durable_step} is durable (see the warnings above)")
    if verdict is Verdict.RECOVER:
        return RankEnd(ExitCode.RECOVER, f"asked to stop; step {job.progress.step} is durable")
    if job.progress.step and (job.evaluation is None or job.evaluation.step < job.progress.step):
        run_evaluation(job)
    outcome = Outcome.LIMIT if verdict is Verdict.LIMIT else Outcome.FINISHED
    reason = job.stop_reason if verdict is Verdict.LIMIT else f"{job.progress.step} steps"
    if dist.get_rank() == 0:
        if job.evaluation is not None:
            job.folder.write(Name.EVALUATION, job.evaluation)
        job.folder.write(Name.OUTCOME, RunOutcome(outcome=outcome, at=datetime.now(UTC),
                                                  step=job.progress.step, reason=reason))
    return RankEnd(ExitCode.FINISHED, f"{outcome}: {reason}")


def is_ahead_of_durable(job: Job) -> bool:
    """True when the newest step is not durable: rank 0 knows, and all ranks must save or none."""
    ahead = torch.tensor(int(job.progress.step > job.progress.durable_step))
    dist.broadcast(ahead, src=0)
    return bool(ahead)


def main() -> None:
    """One rank: build, train, write how it ended. The node reads that, not our exit status."""
    stop, ends = StopSignal(), Path(os.environ[Env.END_FOLDER])
    end_with_node(ends)
    RankEnd.listen(ends, os.getpid())
    answer_with_stacks(ends, rank := int(os.environ["RANK"]))
    life = SignOfLife(ends, rank)
    config = TrainConfig.model_validate_json(os.environ[Env.TRAIN_CONFIG])
    init_process_group()
    job, known = None, True
    try:
        job = build_job(config, stop, life)
        end = train(job)
    except LdlmError as error:
        end = RankEnd(error.node_exit_code, str(error))
    except Exception as error:
        traceback.print_exc()
        end, known = RankEnd(1, f"{type(error).__name__}: {error}"), False
    finally:
        if job is not None and job.recorder is not None:
            job.recorder.close()
    end.write(ends, dist.get_rank())
    sys.stdout.flush()
    # A rank that waits for a lost peer in a collective cannot be unwound: leave without clean-up.
    os._exit(0 if known else 1)


if __name__ == "__main__":
    main()
