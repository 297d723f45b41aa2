"""The protocol by itself, and real ranks: what each level starts, and what its runs have to come to."""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.chaos import oracle, toy
from tests.chaos.case import Level
from tests.chaos.machine import Machine
from tests.chaos.oracle import State, Truth
from tests.chaos.plan import Case, Life
from tests.trainer_runs import tiny_config
from trainer.config import TrainConfig
from trainer.contract import Env, ExitCode
from trainer.store import local_store_url

_INTERVAL, _KEEP = 2, 2
_PROTOCOL_STEPS, _RANKS_STEPS = 12, 8
_HEARTBEAT_S = 0.02


def protocol_level() -> Level:
    """No torch."""
    return Level(rank=toy.run_rank, environment=_toy_environment, truth=lambda _: _toy_truth(),
                 num_steps=_PROTOCOL_STEPS, interval=_INTERVAL, keep=_KEEP, deadline_s=60)


def ranks_level(scratch: Path) -> Level:
    """The real trainer, imported once, here. `scratch` takes its text and the runs that nobody interrupts."""
    from tests.chaos import real

    text = real.prepare(scratch)

    def environment(case: Case, store: Path, num_ranks: int) -> Mapping[str, str]:
        config = _config(text, _RANKS_STEPS, case, evaluate_every_steps=_RANKS_STEPS,
                         zero_stage=case.zero_stage, precision=case.precision)
        return _environment(config, store, num_ranks) | {"XDG_CACHE_HOME": str(scratch / "cache")}

    @cache
    def uninterrupted(zero_stage: int, precision: str, num_ranks: int) -> Truth:
        case = Case("ranks", -1, "", (Life(num_ranks),), zero_stage=zero_stage, precision=precision)
        store = scratch / f"{zero_stage}-{precision}-{num_ranks}"
        machine = Machine(Life(num_ranks), real.run_rank, environment(case, store, num_ranks), 0.0)
        end = machine.wait(300)
        assert end is not None and end.code == ExitCode.FINISHED, end
        found = oracle.checkpoints(store / "run").items()
        states = {step: oracle.read_state(folder) for step, folder in found}
        assert len(states) == _RANKS_STEPS // _INTERVAL
        return Truth(dict(oracle.losses(store / "run")),
                     {step: state for step, state in states.items() if state is not None})

    return Level(rank=real.run_rank, environment=environment,
                 truth=lambda case: uninterrupted(case.zero_stage, case.precision, case.num_ranks),
                 num_steps=_RANKS_STEPS, interval=_INTERVAL, keep=_RANKS_STEPS,  # those of every_steps stay
                 deadline_s=240)


def _config(text: Path, steps: int, case: Case, **changes: object) -> TrainConfig:
    return tiny_config(text, steps=steps, heartbeat_s=_HEARTBEAT_S,
                       checkpoint={"every_steps": _INTERVAL, "keep": _KEEP}, **changes)


def _environment(config: TrainConfig, store: Path, num_ranks: int) -> dict[str, str]:
    return {Env.RUN_ID: "run", Env.STORE: local_store_url(store), Env.RANKS_PER_NODE: str(num_ranks),
            Env.TRAIN_CONFIG: config.model_dump_json(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _toy_environment(case: Case, store: Path, num_ranks: int) -> Mapping[str, str]:
    # A batch that every number of ranks divides: the node looks at it.
    config = _config(Path("unused"), _PROTOCOL_STEPS, case, global_batch_size=12)
    return os.environ | _environment(config, store, num_ranks)


@cache
def _toy_truth() -> Truth:
    """One process, whole vectors, no checkpoint."""
    groups, chain = [toy.start_values(group) for group in range(len(toy.SIZES))], ""
    losses: dict[int, dict[str, str]] = {}
    states: dict[int, State] = {}
    for step in range(_PROTOCOL_STEPS):
        for weights, momentum in groups:
            toy.update(weights, momentum, step)
        chain = toy.next_link(chain, [weights.tobytes() for weights, _ in groups])
        losses[step + 1] = {"loss/chain": toy.loss_of(chain).hex()}
        states[step + 1] = {"rest": json.dumps(chain).encode()} | {
            f"{kind} {index}": values.tobytes() for index, group in enumerate(groups)
            for kind, values in zip(toy.KINDS, group, strict=True)}
    return Truth(losses, states)
