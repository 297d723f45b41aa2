"""Runs as they stand in a store, at prices that are easy to add up by hand: $0.001 a second."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from launch_examples import example_recipe

from launcher.engine import EnginePhase, EngineState
from trainer.contract import Document, Name, Outcome, attempt_file, checkpoint_folder
from trainer.run_folder import Attempt, AttemptEnd, Heartbeat, Phases, RunFolder, RunOutcome
from trainer.store import open_store

RUN_ID = "story-1"
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
PRICE = Decimal("3.60")  # $0.001 a second
BENCH_PRICE = Decimal("7.20")  # $0.002 a second
PLAN = {
    "tokens_per_step": 512, "usd": {"low": "1.0000", "mid": "2.0000", "high": "4.0000"},
    "offers": {"train": {"price_is_simulated": True, "on_demand_usd_per_hour": "7.20"}, "bench": {}},
}
BENCH = {
    "step": 400,
    "scores": {"reconstruction_accuracy": 0.5, "reconstruction_accuracy_noisy": 0.25, "diffusion_loss": 0.75,
               "diffusion_loss_trivial": 1.0, "diffusion_loss_linear": 0.875},
    "throughput": {"device": "CPU (x86_64, 2 threads)", "is_rtx5090": False, "dtype": "torch.float32",
                   "torch_version": "2.13.0", "denoiser_steps": 16, "tokens": 64, "num_generations": 20,
                   "seconds_p10": 0.08, "seconds_median": 0.1, "seconds_p90": 0.12, "tokens_per_s": 640.0,
                   "prompt_tokens": 32, "prompted_tokens_per_s": 600.0, "reference_tokens_per_s": 160.0,
                   "fraction_of_limit": 0.415, "latents_error": 0.00512, "same_tokens": 0.9984,
                   "usd_per_million_tokens": "0.277778",
                   "warnings": ["2 other processes compute on this GPU"]},
    "reconstructions": [["the cat sat on the mat", "the cat sat on the map"]],
    "samples": ["a sample of some words " * 6],
}
RUNNING = EngineState(EnginePhase.RUNNING, detail="train runs")
ENDED = EngineState(EnginePhase.ENDED)
KILLED = EngineState(EnginePhase.UNKNOWN, detail="its supervisor was killed, or the machine")
ELSEWHERE = EngineState(EnginePhase.NONE)


def at(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


class Story:
    """One run, written piece by piece."""

    def __init__(self, store_url: str, run_id: str = RUN_ID) -> None:
        self.folder = RunFolder(open_store(store_url), run_id)
        self.folder.write(Name.RECIPE, example_recipe())
        self.folder.write_bytes(Name.PLAN, json.dumps(PLAN).encode())
        self.folder.add_event("submitted", NOON)

    def attempt(self, number: int, begins: float, document: Document = Document.TRAIN,
                price: Decimal = PRICE, host: str = "somewhere") -> None:
        """An attempt begins, so many seconds after noon."""
        self.folder.write(attempt_file(number, "attempt.json"), Attempt(
            number=number, document=document, billed_from=at(begins), price_usd_per_hour=price,
            offer="2 CPU cores here", host=host))

    def beat(self, number: int, seen: float, *, step: int, durable: int, resumed: int = 0, setup: float = 0,
             train: float = 0, durable_train: float = 0, checkpoint: float = 0, evaluate: float = 0) -> None:
        """The newest heartbeat of an attempt, its whole evaluation durable, and its newest checkpoint."""
        self.folder.write(attempt_file(number, "heartbeat.json"), Heartbeat(
            at=at(seen), step=step, total_steps=400, resumed_from_step=resumed, durable_step=durable,
            durable_train_s=durable_train, durable_evaluate_s=evaluate,
            phases=Phases(setup_s=setup, train_s=train, checkpoint_s=checkpoint, evaluate_s=evaluate),
            tokens_per_s=1234.0, spent_usd=Decimal("0.5"),
            metrics={"loss/hidden": 0.5, "loss/token": 2.25, "loss/diffusion": 0.75}))
        if durable:
            self.folder.write_bytes(f"{checkpoint_folder(durable)}/{Name.MANIFEST}", b"{}" * 2**9)

    def end(self, number: int, when: float, code: int | None, *, preempted: bool = False,
            hung: bool = False) -> None:
        """An attempt ends."""
        self.folder.write(attempt_file(number, "end.json"), AttemptEnd(
            at=at(when), exit_code=code, preempted=preempted, hung=hung, reason="the machine was taken back"))

    def outcome(self, outcome: Outcome, when: float, step: int, **detail: str) -> None:
        """The run ends; `detail` is of the event."""
        self.folder.write(Name.OUTCOME, RunOutcome(outcome=outcome, at=at(when), step=step,
                                                   reason="all steps done"))
        self.folder.add_event("ended", at(when), **detail)


def preempted_once(store_url: str, run_id: str = RUN_ID) -> Story:
    """600 s, taken away: 100 set-up, 300 useful, 20 saving, 30 evaluating, 150 lost."""
    story = Story(store_url, run_id)
    story.attempt(1, 0)
    story.beat(1, 590, step=150, durable=100, setup=100, train=440, durable_train=300, checkpoint=20,
               evaluate=30)
    story.end(1, 600, None, preempted=True)
    return story


def every_fate(store_url: str, run_id: str = RUN_ID) -> Story:
    """Preempted, vanished without a word, crashed, finished, benchmarked: $2.34 in all."""
    story = preempted_once(store_url, run_id)
    story.attempt(2, 600)  # until the next begins: 50 set-up, 200 useful, 10 saving, 340 lost
    story.beat(2, 900, step=180, durable=170, resumed=100, setup=50, train=230, durable_train=200,
               checkpoint=10)
    story.attempt(3, 1200)  # 60 set-up, 100 useful, 10 saving, 130 lost to the crash
    story.beat(3, 1490, step=230, durable=200, resumed=170, setup=60, train=220, durable_train=100,
               checkpoint=10)
    story.end(3, 1500, 1)
    story.attempt(4, 1500)  # 40 + 10 set-up and shut-down, 500 useful, 20 saving, 30 evaluating
    story.beat(4, 2090, step=400, durable=400, resumed=200, setup=40, train=500, durable_train=500,
               checkpoint=20, evaluate=30)
    story.end(4, 2100, 0)
    story.attempt(5, 2100, Document.BENCH, BENCH_PRICE)
    story.end(5, 2220, 0)
    story.folder.write_bytes(Name.BENCH, json.dumps(BENCH).encode())
    story.outcome(Outcome.FINISHED, 2220, 400)
    return story
