"""Which engine is asked about a run: one that has moved is stopped where it is, not where it was."""

from pathlib import Path

import pytest
from run_stories import RUNNING, Story, at

from launcher.engine import EnginePhase, EngineState
from launcher.engine_folder import EngineFolder, engine_home
from launcher.errors import RunRecordError
from launcher.local_engine import LocalEngine
from launcher.runs import find_engine
from launcher.sky_engine import SkyEngine

ENDED = EngineState(EnginePhase.ENDED, detail="stopped")


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run that was trained here, and has ended here."""
    story = Story(f"file://{tmp_path}/store", "moved")
    here = EngineFolder(engine_home() / "moved")
    here.path.mkdir(parents=True)
    here.write_state(ENDED)
    return story


def test_a_run_that_went_from_home_to_a_cloud_is_stopped_there(story: Story) -> None:
    store = story.folder.store.address
    assert isinstance(find_engine("moved", store), LocalEngine)
    story.folder.add_event("resumed", at(60), infra="slurm/ldlm")
    assert isinstance(find_engine("moved", store), SkyEngine)
    story.folder.add_event("resumed", at(120), infra="local")
    assert isinstance(find_engine("moved", store), LocalEngine)


def test_a_run_that_lives_here_can_be_stopped_whatever_its_record_says(
        story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    story.folder.add_event("resumed", at(60), infra="slurm/ldlm")
    monkeypatch.setattr(LocalEngine, "state", lambda self, run_id: RUNNING)
    assert isinstance(find_engine("moved", story.folder.store.address), LocalEngine)


def test_without_a_record_only_what_ran_here_is_found(story: Story, tmp_path: Path) -> None:
    empty = f"file://{tmp_path}/empty"
    assert isinstance(find_engine("moved", empty), LocalEngine)
    with pytest.raises(RunRecordError):
        find_engine("another", empty)
