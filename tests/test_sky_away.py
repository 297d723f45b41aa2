"""SkyPilot's API server loses connections, or answers what nobody understands: what is said, and kept."""

import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from cli_lab import environment, files_below, ldlm, refused
from launch_examples import example_recipe
from run_stories import NOON, Story, at

common = pytest.importorskip("sky.server.common")

from fake_sky_server import LAUNCH, QUEUE, FakeSkyServer, fake_sky_server  # noqa: E402

from launcher.commands import left_behind  # noqa: E402
from launcher.engine import EnginePhase, EngineState  # noqa: E402
from launcher.engines import check_is_over  # noqa: E402
from launcher.errors import EngineError, RunRecordError  # noqa: E402
from launcher.market import MARKET, Wish  # noqa: E402
from launcher.proposal import Proposal  # noqa: E402
from launcher.rentals import RENTALS  # noqa: E402
from launcher.run_record import load_record  # noqa: E402
from launcher.sky_engine import SkyEngine  # noqa: E402
from launcher.sweep import CLUSTERS, MACHINES  # noqa: E402
from trainer.contract import Name  # noqa: E402
from trainer.store import open_store  # noqa: E402

RUNNING = {"job_id": 3, "task_id": 0, "job_name": "one", "task_name": "train", "status": "RUNNING",
           "recovery_count": 0, "cloud": "Vast"}
TASK = "name: one\n---\nname: train\nrun: exit 0\nenvs: {LDLM_RUN_ID: one}\n"


def forget() -> None:
    """What SkyPilot remembers of a server for as long as a process lives."""
    common.get_server_url.cache_clear()
    common.get_api_server_status_response.cache_clear()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSkyServer]:
    with fake_sky_server() as fake:
        for name, value in (("SKYPILOT_API_SERVER_ENDPOINT", fake.url), ("NO_PROXY", "127.0.0.1"),
                            ("HOME", str(tmp_path)), ("LDLM_HOME", str(tmp_path / ".ldlm"))):
            monkeypatch.setenv(name, value)
        forget()
        yield fake
    forget()


@pytest.fixture
def engine(tmp_path: Path) -> SkyEngine:
    return SkyEngine(open_store(f"file://{tmp_path}/store"))


def test_a_connection_that_breaks_in_the_middle_of_an_answer_is_a_server_that_does_not_answer(
        server: FakeSkyServer, engine: SkyEngine) -> None:
    server.jobs = [RUNNING]
    assert engine.state("one").phase is EnginePhase.RUNNING
    server.drops.add(QUEUE)
    with pytest.raises(EngineError, match="SkyPilot's API server does not answer") as caught:
        engine.take_machines("one")
    assert caught.value.place == server.url
    unseen = engine.state("another")
    assert (unseen.phase, unseen.detail) == (EnginePhase.UNKNOWN, "SkyPilot's API server does not answer")


def test_of_a_run_that_was_alive_a_broken_connection_says_nothing(
        server: FakeSkyServer, engine: SkyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.sky_engine._FRESH_S", 0.0)
    server.jobs = [RUNNING]
    assert engine.state("one").phase is EnginePhase.RUNNING
    server.drops.add(QUEUE)
    assert engine.state("one").phase is EnginePhase.RUNNING


def test_a_task_whose_taking_was_not_confirmed_may_run(server: FakeSkyServer, engine: SkyEngine) -> None:
    server.drops.add(LAUNCH)
    with pytest.raises(EngineError, match="SkyPilot's API server does not answer"):
        engine.submit(TASK)
    assert LAUNCH in server.asked
    assert engine.state("one").phase is EnginePhase.UNKNOWN  # it has no job of this name yet


@pytest.mark.parametrize("page", ["<html>Sign in</html>", '{"machines": [], "of_a_later_ldlm": 1}'])
@pytest.mark.parametrize("path", [f"{RENTALS}/one", MACHINES, CLUSTERS, MARKET, "/api/get"])
def test_an_answer_that_nobody_here_understands_is_refused_with_what_to_do(
        page: str, path: str, server: FakeSkyServer, engine: SkyEngine) -> None:
    server.pages[path] = page
    ask = {f"{RENTALS}/one": lambda: engine.rentals("one"), MACHINES: engine.machines,
           CLUSTERS: engine.clusters, "/api/get": lambda: engine.ask("one"),
           MARKET: lambda: engine.market(Wish.model_construct())}[path]
    with pytest.raises(EngineError, match="API server answers what this ldlm does not understand") as caught:
        ask()
    assert caught.value.place == server.url
    assert "ldlm controller up" in str(caught.value.fix)


NOBODY = {"SKYPILOT_API_SERVER_ENDPOINT": "http://127.0.0.1:1"}


def rented(tmp_path: Path, seconds_ago: float) -> Story:
    """A run at Vast with a checkpoint, heard of so long ago."""
    story = Story(f"file://{tmp_path}/store", "one")
    story.folder.add_event("resumed", at(1), infra="vast")
    story.attempt(1, 2)
    story.beat(1, (datetime.now(UTC) - NOON).total_seconds() - seconds_ago, step=3, durable=2, train=5)
    return story


@pytest.mark.parametrize("seconds_ago", [2, 7200])
def test_a_rented_run_that_cannot_be_asked_about_is_neither_deleted_nor_continued(
        seconds_ago: float, tmp_path: Path) -> None:
    story, env = rented(tmp_path, seconds_ago), environment(HOME=str(tmp_path), **NOBODY)
    store = ("--store", f"file://{tmp_path}/store")
    before = files_below(tmp_path / "store")
    for words in (("rm", "one", "--yes"), ("rm", "one", "--all", "--yes"),
                  ("resume", "one", "--infra", "local", "--yes")):
        said = " ".join(refused(6, *words, *store, env=env).split())
        assert "whether run one is running cannot be told: SkyPilot's API server does not answer" in said
        assert "fix: see that it runs and can be reached from here" in said and "then repeat this" in said
    assert files_below(tmp_path / "store") == before and story.folder.exists()


def test_the_status_of_a_rented_run_that_cannot_be_asked_about_does_not_say_that_nobody_supervises_it(
        tmp_path: Path) -> None:
    rented(tmp_path, 7200)
    said = " ".join(ldlm("status", "one", "--store", f"file://{tmp_path}/store",
                         env=environment(HOME=str(tmp_path), **NOBODY)).stdout.split())
    assert "whether run one is running cannot be told" in said and "ldlm resume" not in said


def test_a_canary_that_may_still_run_is_not_judged(tmp_path: Path) -> None:
    rented(tmp_path, 2).folder.write(Name.RECIPE, example_recipe("canary=true"))
    said = refused(6, "canary", "one", "--store", f"file://{tmp_path}/store",
                   env=environment(HOME=str(tmp_path), **NOBODY))
    assert "whether run one is running cannot be told" in " ".join(said.split())


@pytest.mark.parametrize(("state", "host", "infra", "says"), [
    (EngineState(EnginePhase.ENDED), "elsewhere", "local", "is running on elsewhere"),
    (EngineState(EnginePhase.UNKNOWN), "elsewhere", "local", "is running on elsewhere"),
    (EngineState(EnginePhase.NONE), "elsewhere", "vast", "is running on elsewhere"),
    (EngineState(EnginePhase.ENDED, ended_at=at(40)), "elsewhere", "vast", "is running on elsewhere"),
    (EngineState(EnginePhase.UNKNOWN, word="NEW"), "elsewhere", "vast", "cannot be told"),
    (EngineState(EnginePhase.ENDED, ended_at=at(60)), "elsewhere", "vast", None),
    (EngineState(EnginePhase.ENDED), socket.gethostname(), "local", None),
    (EngineState(EnginePhase.UNKNOWN), socket.gethostname(), "local", None)])
def test_a_sign_of_life_counts_against_an_engine_that_does_not_know_the_machine_that_gave_it(
        state: EngineState, host: str, infra: str, says: str | None, tmp_path: Path) -> None:
    story = Story(f"file://{tmp_path}/store", "one")
    story.folder.add_event("resumed", at(1), infra=infra)
    story.attempt(1, 2, host=host)
    story.beat(1, 50, step=3, durable=2, train=5)
    record = load_record(story.folder.store, "one")
    try:
        check_is_over(record, state, at(70), if_here="", if_elsewhere="")
        assert says is None
    except RunRecordError as error:
        assert says and says in str(error)


@pytest.mark.parametrize("is_local", [True, False])
def test_what_is_left_by_a_launch_that_was_not_taken_is_only_said_where_it_is_known(
        is_local: bool) -> None:
    proposal = cast(Proposal, SimpleNamespace(plan=SimpleNamespace(run_id="one"), is_local=is_local,
                                              recipe=SimpleNamespace(store="s3://bucket/x")))
    which = "one --store s3://bucket/x"
    known = f"the run is recorded but does not run: ldlm resume {which}, or ldlm rm {which} --all"
    not_known = f"whether the run is under way cannot be told now; ask again in a minute: ldlm status {which}"
    assert left_behind(proposal, EnginePhase.NONE) == known
    assert left_behind(proposal, EnginePhase.UNKNOWN) == (known if is_local else not_known)
