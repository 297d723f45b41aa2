"""SkyPilot's API server loses connections, or answers what nobody understands: what is said, and kept."""

from collections.abc import Iterator
from pathlib import Path

import pytest

common = pytest.importorskip("sky.server.common")

from fake_sky_server import LAUNCH, QUEUE, FakeSkyServer, fake_sky_server  # noqa: E402

from launcher.engine import EnginePhase  # noqa: E402
from launcher.errors import EngineError  # noqa: E402
from launcher.market import MARKET, Wish  # noqa: E402
from launcher.rentals import RENTALS  # noqa: E402
from launcher.sky_engine import SkyEngine  # noqa: E402
from launcher.sweep import CLUSTERS, MACHINES  # noqa: E402
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
