"""The protocol by itself, and real ranks: what each level starts, and what its runs have to come to."""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.chaos import oracle, toy
from tests.chaos.case import Level
from tests.chaos.machine import Machine
from tests.chaos.oracle import Keep, State, Truth
from tests.chaos.plan import INTERVAL, NUM_STEPS, Case, Life
from tests.trainer_runs import tiny_config
from trainer.config import TrainConfig
from trainer.contract import Env, ExitCode
from trainer.store import local_store_url

_NEWEST = 2  # checkpoints that stay
_HEARTBEAT_S = 0.02
# Real ranks save by the clock at all steps where the state is rounded, and these checkpoints are rolled. One
# that holds all in float32 comes between them and stays.
_EVERY_STEPS = 5
_ROUNDED = {"learning_rate": 1e-3, "warmup_steps": 2, "ema_decay": 0.9, "round_steps": INTERVAL}
_AT_ONCE_MINUTES = 1e-6
_HANG_S = 4.0  # where a rank is stopped; elsewhere a busy machine is no hang


def protocol_level() -> Level:
    """No torch."""
    return Level(rank=toy.run_rank, environment=_toy_environment, truth=lambda _: _toy_truth(),
                 keep=Keep(_NEWEST), deadline_s=60)


def ranks_level(scratch: Path) -> Level:
    """The real trainer, imported once, here. `scratch` takes its text and the runs that nobody interrupts."""
    from tests.chaos import real

    text = real.prepare(scratch)

    def environment(case: Case, store: Path, num_ranks: int,
                    every_steps: int = _EVERY_STEPS) -> Mapping[str, str]:
        return _environment(_ranks_config(text, case, every_steps), store, num_ranks) | {
            "XDG_CACHE_HOME": str(scratch / "cache")}

    @cache
    def uninterrupted(zero_stage: int, precision: str, num_ranks: int) -> Truth:
        case = Case("ranks", -1, "", (Life(num_ranks),), zero_stage=zero_stage, precision=precision)
        store = scratch / f"{zero_stage}-{precision}-{num_ranks}"
        keeping_all = environment(case, store, num_ranks, every_steps=1)
        end = Machine(Life(num_ranks), real.run_rank, keeping_all, 0.0).wait(300)
        assert end is not None and end.code == ExitCode.FINISHED, end
        found = oracle.checkpoints(store / "run")
        assert {step: oracle.is_rounded(folder) for step, folder in found.items()} == {
            step: step % INTERVAL == 0 for step in range(1, NUM_STEPS["ranks"] + 1)}, end
        states = {step: oracle.read_state(folder) for step, folder in found.items()}
        return Truth(dict(oracle.losses(store / "run")),
                     {step: state for step, state in states.items() if state is not None})

    return Level(rank=real.run_rank, environment=environment,
                 truth=lambda case: uninterrupted(case.zero_stage, case.precision, case.num_ranks),
                 keep=Keep(_NEWEST, frozenset(range(_EVERY_STEPS, NUM_STEPS["ranks"] + 1, _EVERY_STEPS))),
                 deadline_s=240)


def _ranks_config(text: Path, case: Case, every_steps: int) -> TrainConfig:
    has_hang = any(life.strike and life.strike.action == "stop" for life in case.lives)
    return tiny_config(text, steps=NUM_STEPS["ranks"], evaluate_every_steps=NUM_STEPS["ranks"],
                       heartbeat_s=_HEARTBEAT_S, zero_stage=case.zero_stage, precision=case.precision,
                       optimizer=_ROUNDED, checkpoint={"every_minutes": _AT_ONCE_MINUTES, "keep": _NEWEST,
                                                       "every_steps": every_steps},
                       **{"hang_s": _HANG_S} if has_hang else {})


def _environment(config: TrainConfig, store: Path, num_ranks: int) -> dict[str, str]:
    return {Env.RUN_ID: "run", Env.STORE: local_store_url(store), Env.RANKS_PER_NODE: str(num_ranks),
            Env.TRAIN_CONFIG: config.model_dump_json(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _toy_environment(case: Case, store: Path, num_ranks: int) -> Mapping[str, str]:
    # A batch that every number of ranks divides: the node looks at it.
    config = tiny_config(Path("unused"), steps=NUM_STEPS["protocol"], global_batch_size=12,
                         heartbeat_s=_HEARTBEAT_S, checkpoint={"keep": _NEWEST})
    return os.environ | _environment(config, store, num_ranks)


@cache
def _toy_truth() -> Truth:
    """One process, whole vectors, no checkpoint."""
    groups, chain = [toy.start_values(group) for group in range(len(toy.SIZES))], ""
    losses: dict[int, dict[str, str]] = {}
    states: dict[int, State] = {}
    for step in range(NUM_STEPS["protocol"]):
        for weights, momentum in groups:
            toy.update(weights, momentum, step)
        chain = toy.next_link(chain, [weights.tobytes() for weights, _ in groups])
        losses[step + 1] = {"loss/chain": toy.loss_of(chain).hex()}
        states[step + 1] = {"rest": json.dumps(chain).encode()} | {
            f"{kind} {index}": values.tobytes() for index, group in enumerate(groups)
            for kind, values in zip(toy.KINDS, group, strict=True)}
    return Truth(losses, states)
