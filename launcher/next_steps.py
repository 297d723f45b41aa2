"""What can be typed after a plan, and what is said instead of launching what this machine cannot run."""

import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime

from launcher.advice import typed
from launcher.errors import LdlmError, NoOfferError, RecipeError
from launcher.offers import Machine, local_offer, probe_machine
from launcher.plan import Plan, make_plan
from launcher.proposal import Proposal
from launcher.recipe import checkout_folder
from trainer.contract import Document, Env
from trainer.encoder_shape import encoder_shape


def after_plan(plan: Plan, words: Sequence[str], *, is_refused: bool) -> tuple[str, str]:
    """The end of a plan's screen: what has not happened, and the command that comes next.

    Args:
        words: Those of the command line behind `ldlm plan`.
        is_refused: A launch would be, for reasons that stand before this.
    """
    train, command = plan.offers[Document.TRAIN], ["ldlm", "launch", *words]
    began = "" if is_refused else "nothing was started; "
    if train.lacks:
        return f"{began}on a machine with {train.accelerators} this would:", shlex.join(command)
    if is_refused:
        return "this prints the task:", shlex.join([*command, "--dry-run"])
    return f"{began}this would:", shlex.join(command)


def check_is_here(proposal: Proposal, *, resuming: bool) -> None:
    """Refuse to run here what was planned for another machine. Raises NoOfferError."""
    train = proposal.plan.offers[Document.TRAIN]
    if train.lacks is None:
        return
    if resuming:
        fix = f"resume it on the machine that has {train.accelerators}"
    else:
        fix = _on_own_gpu(proposal, probe_machine()) or (
            f"add --dry-run to print its task, or launch it on a machine with {train.accelerators}")
    raise NoOfferError(train.lacks, place=proposal.recipe.place("hardware", "train"), fix=fix)


def check_wandb_key(proposal: Proposal) -> None:
    """Refuse a run that is to be shown on W&B while nodes would have no key to send. Raises RecipeError."""
    if proposal.recipe.train.wandb.mode == "online" and not os.environ.get(Env.WANDB_KEY):
        raise RecipeError(f"mode is online, and the environment has no {Env.WANDB_KEY}",
                          place=proposal.recipe.place("train", "wandb", "mode"),
                          fix=f"export {Env.WANDB_KEY}=..., or add --set train.wandb.mode=auto")


def _on_own_gpu(proposal: Proposal, machine: Machine) -> str | None:
    """How to run it on a GPU of this machine, if it fits there; None if it does not."""
    recipe, plan = proposal.recipe, proposal.plan
    index = recipe.candidate_index("local", plan.offers[Document.TRAIN].accelerators)
    if index is None or not machine.gpus:
        return None
    name, now = machine.gpus[0].sky_name, datetime.now(UTC)
    number = min(plan.offers[Document.TRAIN].num_gpus, sum(gpu.sky_name == name for gpu in machine.gpus))
    candidate = recipe.hardware.train[index].model_copy(update={"gpu": f"{name}:{number}"})
    offer = local_offer(candidate, machine, now)
    change = typed({f"hardware.train.{index}.gpu": candidate.gpu})
    shape = encoder_shape(recipe.train.token_encoder.name, checkout_folder())
    try:
        make_plan(recipe, shape, dict.fromkeys(Document, (offer,)), (), now, plan.run_id)
    except LdlmError:
        return None
    return f"add {change} to take what is here"
