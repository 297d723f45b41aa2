"""The training loop of a latent diffusion language model, one process per GPU (or CPU rank).

Started by `trainer.node` through torchrun; everything it is told comes from the environment names of
`trainer.contract.Env`. Reads top to bottom: restore, loop, finish.
"""

import os
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors import torch as safetensors
from torch import distributed as dist

from trainer.config import TrainConfig, grad_accum_steps
from trainer.contract import Env, ExitCode, LdlmError, Name, Outcome, RankEnd
from trainer.data import batch_indices
from trainer.diffusion import encoder_gate
from trainer.evaluate import evaluate
from trainer.job import Job, build_job
from trainer.manifest import EMA_FILE
from trainer.model import draw_noise
from trainer.preemption import StopSignal, Verdict, agree, over_limit
from trainer.ranks import init_process_group
from trainer.run_folder import RunOutcome
from trainer.token_encoder import measure_statistics

# One failed save may be the store's bad minute; after two in a row, training on would risk paid work.
_MAX_FAILED_SAVES = 2


class DivergedError(LdlmError):
    """The loss is not a number any more."""

    node_exit_code = ExitCode.BROKEN


def train(job: Job) -> RankEnd:
    """Run the loop until the last step, a limit or a stop. The same end on every rank."""
    restore_or_start(job)
    config, progress, verdict = job.config, job.progress, Verdict.CONTINUE
    window_from, window_step = time.monotonic(), progress.step
    job.clock.enter("train_s")
    if job.recorder is not None:
        job.recorder.write_soon()
    while progress.step < config.steps:
        verdict = agree(own_verdict(job))
        if verdict is not Verdict.CONTINUE:
            break
        job.losses = train_step(job, progress.step)
        progress.step += 1
        if progress.step % config.log_every_steps == 0 or progress.step == config.steps:
            done = (progress.step - window_step) * config.tokens_per_step
            progress.tokens_per_s = done / (time.monotonic() - window_from)
            log_losses(job)
        if progress.step % config.evaluate_every_steps == 0 or progress.step == config.steps:
            run_evaluation(job)
        if progress.step < config.steps and save_due(job):
            save(job)
        if progress.step % config.log_every_steps == 0:
            window_from, window_step = time.monotonic(), progress.step
    return finish(job, verdict)


def restore_or_start(job: Job) -> None:
    """Continue from the newest complete checkpoint; without one, measure the statistics of h."""
    state = job.checkpoints.restore(job.say)
    if state:
        job.progress.step = job.progress.resumed_from_step = job.progress.durable_step = state["step"]
        job.timesteps.load_state_dict(state["timesteps"])
        if job.ema is not None:
            job.ema.load_state_dict(safetensors.load(state["files"][EMA_FILE]))
        job.say(f"resumed from step {state['step']} of {job.config.steps}")
    else:
        num_tokens = job.config.token_encoder.statistics_tokens
        mean_D, std_D = measure_statistics(job.encoder, job.corpus.train_NL, num_tokens)
        dist.broadcast(mean_D, src=0)
        dist.broadcast(std_D, src=0)
        job.model.set_statistics(mean_D, std_D)
        if job.ema is not None:
            job.ema.set_statistics(mean_D, std_D)
        job.say(f"starting at step 0 of {job.config.steps}")
    job.saved_at_s = time.monotonic()


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


def train_step(job: Job, step: int) -> dict[str, torch.Tensor]:
    """One optimizer step over this rank's share of the global batch. Returns this rank's mean losses."""
    config = job.config
    accumulate = grad_accum_steps(config, dist.get_world_size())
    batch = batch_indices(len(job.corpus.train_NL), config.global_batch_size, config.seed, step)
    first = dist.get_rank() * accumulate * config.micro_batch_size
    gate = encoder_gate(step, config.diffusion.encoder_warmup_steps, config.diffusion.encoder_warmup_floor)
    set_learning_rate(job, step)
    sums: dict[str, torch.Tensor] = {}
    bins = torch.zeros(2, config.diffusion.time_bins)
    for micro in range(accumulate):
        begin = first + micro * config.micro_batch_size
        positions = list(range(begin, begin + config.micro_batch_size))
        tokens_BL = torch.from_numpy(job.corpus.train_NL[batch[positions]].astype("int64")).to(job.device)
        noise = draw_noise(config, config.seed, step, positions, job.device)
        u_B = job.timesteps.sample(noise.uniform_B)
        losses = job.engine(tokens_BL, job.encoder.hidden_states(tokens_BL), noise, gate, u_B)
        job.engine.backward(losses.total)
        job.engine.step()
        bins += torch.stack(job.timesteps.bin_sums(u_B, losses.diffusion_B)).cpu()
        for name in ("total", "hidden", "token", "diffusion"):
            sums[name] = sums.get(name, 0) + getattr(losses, name).detach() / accumulate
    dist.all_reduce(bins)
    job.timesteps.update(bins[0], bins[1], step)
    update_average(job, step)
    return sums


def set_learning_rate(job: Job, step: int) -> None:
    """Linear warm-up, constant, linear decay over the last `decay_steps`."""
    optimizer = job.config.optimizer
    factor = min(1.0, (step + 1) / max(1, optimizer.warmup_steps))
    if optimizer.decay_steps:
        factor *= min(1.0, (job.config.steps - step) / optimizer.decay_steps)
    for group in job.engine.optimizer.param_groups:
        group["lr"] = optimizer.learning_rate * factor


@torch.no_grad()
def update_average(job: Job, step: int) -> None:
    """Average all four trained parts together: they are only ever evaluated with each other."""
    if job.ema is None:
        return
    # Early averages would be dominated by the random start: the usual (1 + s) / (10 + s) ramp.
    decay = min(job.config.optimizer.ema_decay, (1 + step) / (10 + step))
    current = [parameter.float() for parameter in job.model.parameters()]
    torch._foreach_lerp_(list(job.ema.parameters()), current, 1 - decay)


def finite_losses(job: Job) -> dict[str, float]:
    """Losses of the newest step, means over all ranks. Raises DivergedError, on every rank alike."""
    means = torch.stack([loss.float().cpu() for loss in job.losses.values()])
    dist.all_reduce(means)
    values = dict(zip(job.losses, (means / dist.get_world_size()).tolist(), strict=True))
    if not torch.isfinite(means).all():
        raise DivergedError(f"the loss is not finite at step {job.progress.step}: {values}",
                            fix="lower train.optimizer.learning_rate and launch again")
    return values


def log_losses(job: Job) -> None:
    """Print one line and keep one row. Raises DivergedError."""
    values, step, config = finite_losses(job), job.progress.step, job.config
    if job.recorder is None:
        return
    rate = job.progress.tokens_per_s
    job.recorder.log(step, {"tokens_per_s": rate} | {f"loss/{name}": value for name, value in values.items()})
    left_s = (config.steps - step) * config.tokens_per_step / rate
    job.say(f"step {step}/{config.steps}  L_h {values['hidden']:.3f}  L_w {values['token']:.3f}  "
            f"L_diff {values['diffusion']:.3f}  {rate:,.0f} tok/s  "
            f"${job.recorder.spent_usd(datetime.now(UTC)):.4f}  {left_s:.0f} s left")


def run_evaluation(job: Job) -> None:
    """Held-out scores of the averaged weights, on rank 0. The others wait at the next collective."""
    if job.ema is None or job.recorder is None:
        return
    with job.clock.during("evaluate_s"):
        scores = evaluate(job.ema, job.encoder, job.corpus.heldout_NL[: job.config.evaluate_sequences],
                          seed=job.config.seed, batch_size=job.config.micro_batch_size)
    job.recorder.log(job.progress.step, {f"eval/{name}": value for name, value in scores.items()})
    job.say(f"step {job.progress.step}  held-out reconstruction {scores['reconstruction_accuracy']:.1%} "
            f"({scores['reconstruction_accuracy_noisy']:.1%} under noise)  "
            f"L_diff {scores['diffusion_loss']:.3f} (trivial {scores['diffusion_loss_trivial']:.3f})")


def save_due(job: Job) -> bool:
    """True at the same step on every rank: by count, or by rank 0's clock."""
    every = job.config.checkpoint
    if every.every_steps:
        return job.progress.step % every.every_steps == 0
    due = torch.tensor(int(time.monotonic() - job.saved_at_s >= (every.every_minutes or 0) * 60))
    dist.broadcast(due, src=0)
    return bool(due)


def save(job: Job) -> None:
    """Start a checkpoint of the current step. Training goes on while it is uploaded.

    Raises:
        DivergedError: What diverged must not replace good checkpoints.
    """
    finite_losses(job)
    with job.clock.during("checkpoint_s"):
        job.checkpoints.wait()
        note_finished_save(job)
        extra = {EMA_FILE: safetensors.save(job.ema.state_dict())} if job.ema is not None else {}
        job.checkpoints.save(job.progress.step, {"timesteps": job.timesteps.state_dict()}, extra)
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
    if verdict is not Verdict.FAIL and is_ahead_of_durable(job):
        save(job)
    with job.clock.during("checkpoint_s"):
        job.checkpoints.wait()
    note_finished_save(job)
    failed = agree(Verdict.FAIL if job.failed_saves else Verdict.CONTINUE) is Verdict.FAIL
    if failed:
        return RankEnd(1, f"the state of step {job.progress.step} could not be saved; "
                          f"step {job.progress.durable_step} is durable (see the warnings above)")
    if verdict is Verdict.RECOVER:
        return RankEnd(ExitCode.RECOVER, f"asked to stop; step {job.progress.step} is durable")
    outcome = Outcome.LIMIT if verdict is Verdict.LIMIT else Outcome.FINISHED
    reason = job.stop_reason if verdict is Verdict.LIMIT else f"{job.progress.step} steps"
    if dist.get_rank() == 0:
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
    RankEnd.listen(ends, os.getpid())
    config = TrainConfig.model_validate_json(os.environ[Env.TRAIN_CONFIG])
    init_process_group()
    job, known = None, True
    try:
        job = build_job(config, stop)
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
