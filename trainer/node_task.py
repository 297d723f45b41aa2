"""What a task tells its node in its command line and its environment. No torch."""

import os
import socket
from datetime import datetime, timedelta

from pydantic import ValidationError

from trainer.config import TrainConfig, grad_accum_steps
from trainer.contract import ConfigError, Document, Env
from trainer.lease import START_S, owner_here
from trainer.machine import cluster_info
from trainer.own_bill import billed_from, own_price, terms_of_run
from trainer.run_folder import Attempt, RunFolder


def read_document(argv: list[str]) -> Document:
    """The document that the command line names. Raises ConfigError when it names none."""
    if len(argv) == 1 and argv[0] in list(Document):
        return Document(argv[0])
    raise ConfigError(f"cannot run {' '.join(argv) or 'nothing'}", place="trainer.node",
                      fix=f"name one of: {', '.join(Document)}")


def read_config() -> TrainConfig:
    """The train config of the task, checked against the ranks there are.

    Raises:
        ConfigError: It is missing, invalid, or its batch does not divide.
    """
    try:
        config = TrainConfig.model_validate_json(required(Env.TRAIN_CONFIG))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(wrong["msg"].removeprefix("Value error, "),
                          place=".".join(["train", *map(str, wrong["loc"])]),
                          fix="correct the recipe and launch again") from error
    try:
        # Of `auto` one sequence at a time is always among the choices.
        least = config.model_copy(update={"micro_batch_size": 1}) if config.probe_micro_batch else config
        grad_accum_steps(least, num_nodes() * ranks_per_node())
    except ValueError as error:
        raise ConfigError(f"{error}", place="train.global_batch_size",
                          fix="correct the recipe and launch again") from error
    return config


def own_attempt(folder: RunFolder, document: Document, started_at: datetime) -> Attempt:
    """The attempt that the engine has numbered, or the next free one."""
    number, place = os.environ.get(Env.ATTEMPT), cluster_info(os.environ)
    if number:
        return folder.attempt(int(number)).attempt
    return folder.claim_attempt(document, billed_from=billed_from(folder, started_at),
                                host=socket.gethostname(), began_at=started_at, owner=owner_here(),
                                lease_until=started_at + timedelta(seconds=START_S),
                                price_usd_per_hour=own_price(),
                                offer=os.environ.get(Env.OFFER, ""), terms=terms_of_run(folder),
                                cloud=place.get("cloud", ""), region=place.get("region", ""))


def ranks_per_node() -> int:
    """Processes that train on this node."""
    return int(required(Env.RANKS_PER_NODE))


def num_nodes() -> int:
    """Nodes of this task."""
    return int(os.environ.get("SKYPILOT_NUM_NODES") or 1)


def node_rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("SKYPILOT_NODE_RANK") or 0)


def required(name: str) -> str:
    """A variable that every task sets. Raises ConfigError where it is missing."""
    value = os.environ.get(name)
    if not value:
        raise ConfigError(f"the environment has no {name}", place="trainer.node",
                          fix="start it through `ldlm launch`, which renders the task that sets it")
    return value
