"""Our strategy among SkyPilot's own classes: the task as the jobs controller loads it, the policy in its
process, a real record, and the fake of Vast behind Vast's SDK. Machines do not start: time is the test's.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from launch_examples import example_task
from test_vast_market import Lab
from vast_sdk_lab import KEY, reached_by_skypilot

pytest.importorskip("vastai")
from sky.backends import cloud_vm_ray_backend  # noqa: E402
from sky.catalog import vast_catalog  # noqa: E402
from sky.jobs import recovery_strategy  # noqa: E402
from sky.server import plugins  # noqa: E402
from sky.utils import dag_utils  # noqa: E402

from launcher import rental_log, sky_strategy  # noqa: E402
from launcher.course_record import CourseRecord  # noqa: E402
from launcher.policies_known import UNIFORM_PROGRESS  # noqa: E402
from launcher.sky_plugin import LdlmPlugin, launch_through  # noqa: E402
from launcher.vast_search import not_again  # noqa: E402
from tests.lab.fake_vast import VastServer  # noqa: E402
from trainer.contract import Document, Env, Name, attempt_file  # noqa: E402
from trainer.run_folder import Heartbeat, Phases, RunFolder, StopWish  # noqa: E402
from trainer.store import open_store  # noqa: E402

ROOT = Path(__file__).parents[1]
CARDS = (5101, 5102)  # machines of the fake with one RTX 5090: from $0.23 and $0.25, on demand $0.51, $0.55
BID = "{infra: vast, gpu: 'RTX5090:1', bid_usd_per_hour: 0.40}"
RENT = "{infra: vast, gpu: 'RTX5090:1', price_usd_per_hour: 0.70}"


class World(Lab):
    """The fake of Vast, a store with a run, and the strategy that supervises it."""

    def __init__(self, folder: Path, strategy: type) -> None:
        super().__init__()
        self.http, self.strategy = VastServer(self.market, KEY, 0), strategy
        self.store = f"file://{folder}/store"
        self.run = RunFolder(open_store(self.store), "example-1")
        self.run.add_event("submitted", datetime.now(UTC) - timedelta(hours=1))
        self.rented: list[tuple[bool, str, str]] = []  # with a bid, price, offer, as the node is told

    def withdraw_spot(self) -> None:
        for machine_id in CARDS:
            self.market.price(machine_id, {"min_bid": "9"})

    def spot_is_back(self) -> None:
        self.market.price(CARDS[1], {"min_bid": "0.25"})

    def make(self, *, elapsed_h: float = 0.0, course: str | None = None, deadline: str = "10") -> Any:
        """What the controller makes of the task of a run of 10 hours, 4 of them work, asked every second."""
        sets = (f"hardware.train=[{BID}, {RENT}]", f"hardware.bench=[{BID}]", "limits.max_cost_usd=9",
                f"limits.deadline_hours={deadline}", f"store={self.store}", "limits.policy=uniform-progress")
        document = example_task(None, *sets).document(Document.TRAIN)
        document["workdir"] = str(ROOT)
        if deadline == "10":
            begins_at = datetime.now(UTC) - timedelta(hours=elapsed_h)
            found = json.loads(document["envs"][Env.COURSE]) | {
                "begins_at": begins_at.isoformat(), "ends_at": (begins_at + timedelta(hours=10)).isoformat(),
                "work_h": 4.0, "overhead_h": 0.5, "tick_s": 1.0}
            document["envs"][Env.COURSE] = json.dumps(found) if course is None else course
        (task,) = dag_utils.load_chain_dag_from_yaml_str(
            yaml.safe_dump_all([{"name": "example-1"}, document])).tasks
        made = recovery_strategy.StrategyExecutor.make(
            "train-1-abc", cloud_vm_ray_backend.CloudVmRayBackend(), task, 1, 0, None, set(), asyncio.Lock(),
            asyncio.Condition())
        made.world = self
        return made

    def rent_for(self, task: Any) -> float | None:
        """As SkyPilot's provisioner rents for a task, which then runs at once."""
        (machine,) = task.resources
        wishes = dict(machine.cluster_config_overrides["vast"]["create_instance_kwargs"])
        self.rented.append((bool(wishes.get("bid_price")), task.envs[Env.PRICE], task.envs[Env.OFFER]))
        from sky.adaptors import vast

        try:
            launch_through(lambda *_, **__: "", vast.vast)(
                name="train-1-head", instance_type="1x-RTX_5090-32-65536", region="Spain, ES, EU",
                disk_size=100, image_name="an/image:1", create_instance_kwargs=wishes, ssh_public_key="key")
        except RuntimeError:
            return None
        return time.time()

    def decided(self) -> list[str]:
        return [move.action for move in CourseRecord(self.run).moves()]

    def trains(self, step: int) -> None:
        """The machine that is held has come to a step, at 36 seconds each."""
        now = datetime.now(UTC)
        attempt = self.run.claim_attempt(Document.TRAIN, billed_from=now, offer="", host="",
                                         price_usd_per_hour=Decimal(1))
        self.run.write(attempt_file(attempt.number, "heartbeat.json"), Heartbeat(
            at=now, step=step, total_steps=400, resumed_from_step=0, durable_step=step, durable_train_s=1,
            durable_evaluate_s=0, phases=Phases(train_s=36.0 * step), tokens_per_s=1, spent_usd=Decimal(0)))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    LdlmPlugin().install(plugins.ExtensionContext(context=plugins.PluginContext.CONTROLLER))

    class OnFake(sky_strategy.CourseStrategy):
        world: World

        async def _launch(self, max_retry: int | None = 3, raise_on_failure: bool = True,
                          recovery: bool = False) -> float | None:
            return self.world.rent_for(self.dag.tasks[0])

        def _cleanup_cluster(self) -> None:
            for row in self.world.market.rows():
                self.world.market.destroy(row["id"])

        async def _has_ended(self) -> bool:
            return False

    from sky.utils import registry

    monkeypatch.setitem(registry.JOBS_RECOVERY_STRATEGY_REGISTRY, "ldlm", OnFake)
    subprocess.run([sys.executable, "-m", "tests.lab.vast_catalog", str(tmp_path)], cwd=ROOT, check=True)
    monkeypatch.setattr(vast_catalog, "_df", pandas.read_csv(tmp_path / "vast/vms.csv"))
    world = World(tmp_path, OnFake)
    with reached_by_skypilot(world.http, tmp_path, monkeypatch):
        yield world


async def until(condition: Any) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.2)


def test_spot_that_is_there_is_rented_by_bid_and_the_node_is_told_its_price(world: World) -> None:
    async def launch() -> None:
        strategy = world.make()
        await strategy.launch()
        assert strategy.dag.tasks[0].envs[Env.OFFERS] == ""
        strategy._watching.cancel()

    asyncio.run(launch())
    assert world.rented == [(True, "0.4", "RTX5090:1 on vast (interruptible)")]
    assert [row["bid_price"] for row in world.market.rows()] == [0.4]
    assert world.decided() == ["spot"]


def test_it_waits_and_takes_spot_when_it_is_back(world: World) -> None:
    async def launch() -> None:
        strategy = world.make()
        world.trains(40)  # ahead of the line to the deadline
        world.withdraw_spot()
        launching = asyncio.create_task(strategy.recover())
        await until(lambda: world.decided().count("wait") >= 2)
        world.spot_is_back()
        await launching
        strategy._watching.cancel()

    asyncio.run(launch())
    decided = world.decided()
    assert decided[:2] == ["wait", "wait"] and decided[-1] == "spot" and "on_demand" not in decided
    assert [bid for bid, *_ in world.rented] == [True] and len(world.market.rows()) == 1


def test_spot_that_cannot_be_seen_is_tried_once_a_tick(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sky_strategy, "is_offered", lambda machine, place: None)

    async def launch() -> None:
        strategy = world.make()
        world.trains(40)
        world.withdraw_spot()
        launching = asyncio.create_task(strategy.recover())
        await until(lambda: world.decided().count("wait") >= 2)
        launching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(launching, 30)

    asyncio.run(launch())
    assert world.decided()[:4] == ["spot", "wait", "spot", "wait"]
    assert {bid for bid, *_ in world.rented} == {True} and world.market.rows() == []


def test_on_demand_is_rented_without_a_bid_and_left_when_spot_is_back(world: World) -> None:
    """Half of the time is over and nothing is done: on demand. With more than half done it may go back."""
    async def way() -> None:
        strategy = world.make(elapsed_h=5)
        world.withdraw_spot()
        await strategy.recover()
        assert [row["is_bid"] for row in world.market.rows()] == [False]
        world.trains(190)
        await until(lambda: world.decided().count("on_demand") >= 2)
        assert world.run.find(Name.MOVE, StopWish) is None
        world.spot_is_back()
        world.trains(250)
        await until(lambda: world.run.find(Name.MOVE, StopWish))
        await until(lambda: [one.left_by_choice for one in rental_log.read().values()] == [True])
        await strategy.recover()  # the node has saved and exited with 75
        strategy._watching.cancel()

    asyncio.run(way())
    assert not_again(rental_log.read().values(), "example-1", datetime.now(UTC)) == {
        row["machine_id"] for row in world.market.rows()}  # that it has now; what it has left may come again
    assert [told for told in world.rented if told[0] is False] == [
        (False, "0.7", "RTX5090:1 on vast (on-demand)")]
    assert world.rented[-1][0] and [row["is_bid"] for row in world.market.rows()] == [True]
    moves = CourseRecord(world.run).moves()
    assert moves[0].action == "on_demand" and moves[-1].action == "spot"
    for move in moves:
        again = move.replayed(UNIFORM_PROGRESS)
        assert (again.action.name.lower(), again.reason) == (move.action, move.reason)


@pytest.mark.parametrize("fault", ["torn", "no store", "no program"])
def test_where_a_part_of_ours_fails_skypilot_s_own_strategy_takes_the_task_as_it_was(
        world: World, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    if fault == "no program":
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
    strategy = world.make(course="{" if fault == "torn" else None)
    if fault == "no store":
        strategy.dag.tasks[0].update_envs({Env.STORE: "file:///proc/nowhere"})
    asyncio.run(strategy.recover())
    assert world.rented == [(True, "0.4", "RTX5090:1 on vast (interruptible)")]
    assert "EAGER_NEXT_REGION goes on" in caplog.text
    assert world.decided() == []


def test_without_a_course_nothing_of_ours_is_asked(world: World) -> None:
    strategy = world.make(deadline="null")
    assert type(strategy) is recovery_strategy.EagerFailoverStrategyExecutor
