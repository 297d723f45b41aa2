"""The training loop of a latent diffusion language model, one process per GPU (or CPU rank).

Started by `trainer.node` through torchrun and `trainer.rank`; everything it is told comes from the
environment names of `trainer.contract.Env`. Reads top to bottom: restore, loop, finish.
"""

import gc
import os
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import distributed as dist

from trainer.batches import Batches
from trainer.config import TrainConfig
from trainer.contract import Env, ExitCode, LdlmError, Name, Outcome, RankEnd, evaluation_file
from trainer.evaluate import Evaluation, evaluate, reconstruct, write_samples
from trainer.generate import Generator
from trainer.hidden_statistics import measure_statistics
from trainer.job import Job, build_job
from trainer.last_save import Leaving
from trainer.metrics import TrainingSpeed
from trainer.model import LatentDiffusionLM
from trainer.node_watch import end_with_node
from trainer.preemption import StopSignal, Verdict, agree
from trainer.ranks import init_process_group
from trainer.run_folder import RunOutcome
from trainer.saving import (
    at_risk,
    has_unsaved_step,
    is_store_lost,
    note_finished_save,
    save,
    save_due,
    save_last,
    say_news_of_notices,
    stop_if_diverged,
)
from trainer.sign_of_life import SignOfLife, answer_with_stacks
from trainer.start_parts import StartParts
from trainer.step import encoder_pulls, train_step
from trainer.step_metrics import peak_memory, settings_at, time_density

_NUM_RECONSTRUCTIONS = 3
_MOMENT_S = 0.25  # that a rank waits for its own text before it says that it has none
_LOOK_AGAIN_S = 1.0  # whether text that was missing is there (guess)


def train(job: Job) -> RankEnd:
    """Run the loop until the last step, a limit or a stop. The same end on every rank."""
    restore_or_start(job)
    config, progress, verdict = job.config, job.progress, Verdict.CONTINUE
    job.enter_together("train_s")
    speed = TrainingSpeed(job.clock, progress.step)
    if job.recorder is not None:
        job.recorder.write_soon()
    while progress.step < config.steps:
        verdict = agree(own_verdict(job))
        if verdict is Verdict.WAIT:
            continue
        if verdict is Verdict.AWAY:
            stand_still(job)
            continue
        if verdict is not Verdict.CONTINUE:
            break
        job.state.round(progress.step)
        train_step(job, progress.step)
        progress.step += 1
        job.life.at_step(progress.step)
        if not job.start.is_over:
            tell_start(job)
        if progress.step % config.log_every_steps == 0 or progress.step == config.steps:
            log_step(job, speed)
        if config.num_evaluations(progress.step - 1, progress.step):
            run_evaluation(job)
        if progress.step < config.steps and save_due(job):
            save(job)
    return finish(job, verdict)


def tell_start(job: Job) -> None:
    """The first step of this attempt is done: say where the time before it went, and keep it."""
    job.wait_for_device()
    gc.enable()  # `trainer.rank` starts without
    job.start.end()
    job.gaps.begin(job.progress.step, job.clock.phases())  # the first step takes longer than any other
    job.say(str(job.start))
    job.progress.start_s = {part: round(seconds, 3) for part, seconds in job.start.seconds.items()}
    if job.recorder is not None:
        job.recorder.write_soon()


def restore_or_start(job: Job) -> None:
    """Continue from the newest complete checkpoint; without one, measure the statistics of h.

    The encoder is loaded last, since a mirror of its weights is on its way here from the beginning: all that
    can be done meanwhile has been, and the checkpoint has come beside it.
    """
    with job.clock.during("restore_s"):
        found = job.checkpoints.restore(job.say)
    job.start.done("checkpoint")
    job.encoder.load()
    job.start.done("encoder")
    if found:
        step, timesteps = found
        job.progress.step = job.progress.resumed_from_step = job.progress.durable_step = step
        job.timesteps.load_state_dict(timesteps)
        job.say(f"resumed from step {step} of {job.config.steps}")
    else:
        measure_hidden_states(job)
        job.start.done("statistics")
        job.say(f"starting at step 0 of {job.config.steps}")
    job.batches = Batches(job.corpus, job.config, dist.get_rank(), dist.get_world_size(), job.progress.step)
    job.saves.resumed()
    job.gaps.begin(job.progress.step, job.clock.phases())
    say_news_of_notices(job)


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
    if job.superseded:
        return Verdict.SUPERSEDED
    if is_store_lost(job):
        return Verdict.FAIL
    if job.stop.received:
        return Verdict.RECOVER
    found = job.limits.look() if job.limits is not None else None
    if found and found.is_reached:
        job.stop_reason = found.words
        return Verdict.LIMIT
    assert job.batches is not None, "the attempt has begun"
    # No rank begins a step before all can: one that waits in it for text would keep the others from hearing
    # that the run is to stop, and would look as if it hung.
    if job.batches.await_next(_MOMENT_S):
        return Verdict.CONTINUE
    return Verdict.AWAY if job.batches.is_away else Verdict.WAIT


def stand_still(job: Job) -> None:
    """Wait a moment, all ranks alike: what was fetched ahead is used up. It is no hang."""
    with job.clock.during("waiting_s"):
        time.sleep(_LOOK_AGAIN_S)


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
            f"${job.recorder.spent_usd(datetime.now(UTC)):.4f}  {left_s:.0f} s left"
            + (f"  {at_risk(job)}" if job.saves.is_failing else ""))


def run_evaluation(job: Job) -> None:
    """Held-out scores of the averaged weights, all ranks sharing the work; pulls on the current ones."""
    heldout_NL = job.corpus.heldout_NL[: job.config.evaluate_sequences]
    job.wait_for_device()  # steps that are still queued are not evaluation
    job.checkpoints.settle()
    with job.together("evaluate_s"):
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


def leave_without(job: Job, leaving: Leaving) -> RankEnd:
    """End at once: a last checkpoint would not be durable before the machine is gone."""
    job.checkpoints.wait(leaving.in_flight_s)
    note_finished_save(job)
    return RankEnd(ExitCode.RECOVER, f"{leaving.notice.why}, too soon for a last checkpoint "
                   f"({leaving.last.words}); step {job.progress.durable_step} is durable")


def finish(job: Job, verdict: Verdict) -> RankEnd:
    """Commit the last state, write the outcome, and say how the node should exit."""
    why = "asked to stop"
    job.enter_together("checkpoint_s")
    if verdict is Verdict.RECOVER:
        leaving = job.last_save.leave(Path(os.environ[Env.END_FOLDER]),
                                      job.progress.step if has_unsaved_step(job) else None)
        why = leaving.notice.why
        if not leaving.last.fits:
            return leave_without(job, leaving)
    saved = save_last(job, verdict)
    if saved is Verdict.SUPERSEDED:
        if told := job.superseded:
            job.checkpoints.withdraw()
        return RankEnd(ExitCode.SUPERSEDED, told.problem if told else "a later attempt owns the run")
    if saved is Verdict.FAIL:
        return RankEnd(1, f"the state of step {job.progress.step} could not be saved; "
                          f"step {job.progress.durable_step} is durable (see the warnings above)")
    if verdict is Verdict.RECOVER:
        return RankEnd(ExitCode.RECOVER, f"{why}; step {job.progress.step} is durable")
    # A machine that has found the limit reached before its first step spends nothing on scores.
    is_in_vain = verdict is Verdict.LIMIT and job.progress.step == job.progress.resumed_from_step
    is_scored = job.evaluation is not None and job.evaluation.step == job.progress.step
    if job.progress.step and not (is_scored or is_in_vain):
        run_evaluation(job)
    outcome = Outcome.LIMIT if verdict is Verdict.LIMIT else Outcome.FINISHED
    reason = job.stop_reason if verdict is Verdict.LIMIT else f"{job.progress.step} steps"
    if dist.get_rank() == 0:
        if job.evaluation is not None:
            job.folder.write(Name.EVALUATION, job.evaluation)
        job.folder.write(Name.OUTCOME, RunOutcome(outcome=outcome, at=datetime.now(UTC),
                                                  step=job.progress.step, reason=reason))
    return RankEnd(ExitCode.FINISHED, f"{outcome}: {reason}")


def main() -> None:
    """One rank: build, train, write how it ended. The node reads that, not our exit status."""
    start, stop, ends = StartParts(), StopSignal(), Path(os.environ[Env.END_FOLDER])
    start.done("imports")
    end_with_node(ends)
    RankEnd.listen(ends, os.getpid())
    answer_with_stacks(ends, rank := int(os.environ["RANK"]))
    life = SignOfLife(ends, rank)
    config = TrainConfig.model_validate_json(os.environ[Env.TRAIN_CONFIG])
    init_process_group()
    start.done("rendezvous")
    job, known = None, True
    try:
        job = build_job(config, stop, life, start)
        end = train(job)
    except LdlmError as error:
        end = RankEnd(error.node_exit_code, str(error))
    except Exception as error:
        traceback.print_exc()
        if job is not None and job.micro_batch is not None:
            job.micro_batch.outgrown(error)
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
