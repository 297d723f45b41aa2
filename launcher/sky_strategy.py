"""The job-recovery strategy `LDLM` of SkyPilot's jobs controller: on its course a run waits, takes spot or on
demand, and goes back. Our plugin registers it; it decides with the laptop off.

It asks `launcher/course_record.py` what to do, and does it with SkyPilot's own means. Where a part of ours
fails, SkyPilot's EAGER_NEXT_REGION takes over with the task as it was rendered, and the log says so.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Collection, Coroutine
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sky.jobs import recovery_strategy, state
from sky.task import get_plaintext_envs_and_secrets

from launcher import rental_log
from launcher.course import Course, Place
from launcher.market import Market, Wish
from launcher.market_search import look_at_market
from launcher.next_move import Move, Seen
from launcher.vast_search import KEY
from trainer.contract import Env

_CHECKOUT = Path(__file__).resolve().parent.parent
_ANSWER_S = 120.0  # of a store that is slow (guess)
_NOTHING_S = 60.0  # between two tries where not even on demand is to be had
_log = logging.getLogger("sky.ldlm")

Stock = Callable[[], Coroutine[Any, Any, float]]


class CourseStrategy(recovery_strategy.EagerFailoverStrategyExecutor):
    """Lives in the event loop of the controller, which many runs share: nothing here blocks it. It remembers
    nothing that a restart of the server may not lose: what was decided stands in the run's record."""

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        task = self.dag.tasks[0]
        self._as_rendered = list(task.resources), dict(task.envs)
        self._watching: asyncio.Task[None] | None = None

    async def launch(self) -> float:
        """A first machine, when the policy takes one."""
        return await self._on_course(super().launch, recovery=False)

    async def recover(self) -> float:
        """The next machine, when the policy takes one."""
        return await self._on_course(super().recover, recovery=True)

    async def on_resume(self, cluster_name: str) -> None:
        """After a restart of the server: the machine that is there is watched again."""
        await super().on_resume(cluster_name)
        try:
            if course := Course.of_task(self._as_rendered[1]):
                self._watch(course, None, datetime.now(UTC))
        except Exception:  # the run goes on where it is
            _log.exception("ldlm's course is not followed after the restart")

    async def _on_course(self, stock: Stock, *, recovery: bool) -> float:
        if self._watching:
            self._watching.cancel()
        try:
            course = Course.of_task(self._as_rendered[1])
            if course is not None:
                return await self._take_way(course, recovery=recovery)
        except Exception:  # whatever is wrong with a part of ours, a run must not be left alone
            _log.exception(f"ldlm's course of job {self.job_id} failed: SkyPilot's EAGER_NEXT_REGION goes on")
            self._restore()
        return await stock()

    def _restore(self) -> None:
        resources, envs = self._as_rendered
        task = self.dag.tasks[0]
        task.set_resources(resources if len(resources) > 1 else set(resources))
        task.update_envs(envs)

    async def _take_way(self, course: Course, *, recovery: bool) -> float:
        """Hold a machine in the end. Spot that cannot be seen is taken to be there: to find out is to try.

        Returns: When the job was submitted to it, in Unix seconds.
        """
        if recovery:
            await asyncio.to_thread(self._cleanup_cluster)
        missing: set[int] = set()
        while True:
            looks = {place: place not in missing and is_there is not False for place, is_there
                     in (await asyncio.to_thread(self._looks, course)).items()}
            asked_at = datetime.now(UTC)
            move = await self._ask(Seen(at=asked_at, looks=looks))
            place = None if move is None else _first(course, move, missing)
            if place is None:
                await asyncio.sleep(_until(move) if move and move.place is None else _NOTHING_S)
                missing.clear()
                continue
            self._go_to(course.places[place])
            submitted_at = await self._launch(max_retry=1, raise_on_failure=False, recovery=recovery)
            if submitted_at is not None:
                self._watch(course, place, asked_at)
                return float(submitted_at)
            missing.add(place)

    def _go_to(self, place: Place) -> None:
        task, (resources, _) = self.dag.tasks[0], self._as_rendered
        task.set_resources({rented_as(resources[place.resource], place)})
        task.update_envs({**place.envs, Env.OFFERS: ""})  # the node need not find out where it is

    def _watch(self, course: Course, place: int | None, since: datetime) -> None:
        self._watching = asyncio.create_task(self._keep_asking(course, place, since))

    async def _keep_asking(self, course: Course, place: int | None, since: datetime) -> None:
        """Ask at every tick whether the machine that is held stays the right one.

        Args:
            place: Where it is; None: as the record says, this server has not seen it begin.
        """
        try:
            if place is None:
                place, since = await self._found_again(course, since)
            move: Move | None = None
            while place is not None:
                await asyncio.sleep(_until(move) if move else course.tick_s)
                if await self._has_ended():
                    return
                looks = {index: is_there for index, is_there
                         in (await asyncio.to_thread(self._looks, course)).items() if is_there is not None}
                if course.places[place].spot:
                    looks[place] = True
                move = await self._ask(Seen(at=datetime.now(UTC), place=place, held_since=since, looks=looks))
                if move is None:
                    return
                if move.leaves:
                    await asyncio.to_thread(rental_log.left_by_choice, self.dag.tasks[0].envs[Env.RUN_ID])
        except Exception:  # the machine that is there goes on
            _log.exception(f"ldlm no longer watches the course of job {self.job_id} on this machine")

    async def _found_again(self, course: Course, since: datetime) -> tuple[int | None, datetime]:
        """Where the machine is that the record says was taken last."""
        text = await self._call("--newest", "")
        move = None if text == "null" else Move.model_validate_json(text)
        if move is None:
            return None, since
        held = move.place if move.seen.place is None else move.seen.place
        return held, move.seen.held_since or move.seen.at

    async def _has_ended(self) -> bool:
        status = await state.get_job_status_with_task_id_async(job_id=self.job_id, task_id=self.task_id)
        return status is None or bool(status.is_terminal())

    def _looks(self, course: Course) -> dict[int, bool | None]:
        """Whether each spot place would give a machine now; None: that cannot be seen without renting."""
        resources = self._as_rendered[0]
        return {index: is_offered(resources[course.places[index].resource], course.places[index])
                for index in course.spot}

    async def _ask(self, seen: Seen) -> Move | None:
        text = await self._call("", seen.model_dump_json())
        move = None if text == "null" else Move.model_validate_json(text)
        _log.info(f"ldlm, job {self.job_id}: {f'{move.action}: {move.reason}' if move else 'over'}")
        return move

    async def _call(self, option: str, text: str) -> str:
        """The answer of a process with the task's variables and keys, in which a store may hang."""
        environment = get_plaintext_envs_and_secrets(self.dag.tasks[0].envs_and_secrets)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "launcher.course_record", *([option] if option else []), cwd=_CHECKOUT,
            env={**os.environ, **environment, "PYTHONPATH": str(_CHECKOUT)}, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(_ANSWER_S):  # wait_for of Python 3.11 can swallow that it is cancelled
                answer, wrong = await process.communicate(text.encode())
        except BaseException:
            process.kill()
            raise
        if process.returncode:
            raise RuntimeError(f"no decision: {wrong.decode(errors='replace').strip()[-500:]}")
        return answer.decode().strip()


def rented_as(machine: Any, place: Place) -> Any:
    """SkyPilot's `Resources` of a place: at Vast a bid makes a machine spot, its absence on demand."""
    found = machine.copy()
    if place.wishes is not None:  # `copy` adds to what is there, and a bid has to go
        found._cluster_config_overrides = {**found.cluster_config_overrides,
                                           "vast": {"create_instance_kwargs": deepcopy(place.wishes)}}
    return found


def is_offered(machine: Any, place: Place) -> bool | None:
    """Whether Vast would rent out a machine of a place now; None where nobody tells."""
    if place.wishes is None:
        return None
    (name, number), = machine.accelerators.items()
    wish = Wish(gpu=f"{name}:{number:g}", settings=place.wishes[KEY], disk_gib=machine.disk_size,
                region=machine.region, bid_usd_per_hour=place.wishes.get("bid_price"))
    try:
        return Market.model_validate(look_at_market(wish)).num_fit > 0
    except Exception as error:  # of any kind: Vast does not answer, or not as it should
        _log.warning(f"Vast does not tell what it offers: {type(error).__name__}")
        return None


def _first(course: Course, move: Move, missing: Collection[int]) -> int | None:
    """Where to try: what was decided; on demand the cheapest that has not just failed."""
    if move.place is None or course.places[move.place].spot:
        return move.place
    return next((index for index in course.on_demand if index not in missing), None)


def _until(move: Move) -> float:
    """Seconds until to ask again."""
    return max(1.0, (move.again_at - datetime.now(UTC)).total_seconds())
