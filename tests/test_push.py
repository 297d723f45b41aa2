"""Uploads to the Hub, by huggingface_hub itself, to a server that speaks its protocol."""

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import huggingface_hub.constants  # noqa: E402

from tests.fake_hub import FakeHub, running_hub  # noqa: E402
from trainer.contract import ConfigError, StoreError  # noqa: E402
from trainer.push import check_name, push  # noqa: E402

NAME = "me/my-model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # Its own way for large files wants servers of its own; without it they go by git LFS.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("time.sleep", lambda _s: None)
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "hf_writes")
        running.tokens, running.read_only = {"hf_writes"}, {"hf_reads"}
        running.root = tmp_path / "served"
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    (made / "tokenizer").mkdir(parents=True)
    (made / "README.md").write_text("---\nlibrary_name: ldlm\n---\n\n# a model\n")
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 50)
    (made / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return made


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_arrives_in_one_commit_and_a_second_push_replaces_it(hub, folder):
    assert push(folder, NAME, "Step 4") == f"{hub.url}/{NAME}"
    assert _content(hub.models[NAME]) == _content(folder)
    assert hub.commits == ["Step 4"]
    (folder / "config.json").write_text('{"step": 8}')
    push(folder, NAME, "Step 8")
    assert _content(hub.models[NAME]) == _content(folder) and hub.commits == ["Step 4", "Step 8"]


@pytest.mark.parametrize("where", ["preupload", "batch", "put", "commit"])
def test_a_push_that_breaks_off_says_so_and_can_be_done_again(hub, folder, where):
    before, hub.breaks = _content(folder), where
    with pytest.raises(StoreError, match="not uploaded: ") as caught:
        push(folder, NAME, "Step 4")
    assert f"the export is whole at {folder}" in (caught.value.fix or "")
    assert hub.commits == [] and _content(hub.models[NAME]) == {} and _content(folder) == before
    hub.breaks = ""
    push(folder, NAME, "Step 4")
    assert _content(hub.models[NAME]) == before


@pytest.mark.parametrize(("token", "said"), [
    ("hf_unknown", "does not know this token"), ("hf_reads", "may not write there"), (None, "no token")])
def test_a_token_that_will_not_do_is_told_by_what_to_set(hub, folder, monkeypatch, token, said):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(StoreError, match=said) as caught:
        push(folder, NAME, "Step 4")
    assert "HF_TOKEN" in (caught.value.fix or "")


def test_a_hub_that_is_not_there_is_told_as_such(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="not uploaded: ") as caught:
        push(folder, NAME, "Step 4")
    assert "check the network" in (caught.value.fix or "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE is set"):
        push(folder, NAME, "Step 4")


@pytest.mark.parametrize("name", ["my-model", "me/my/model", "me/my model", "", "me/-x"])
def test_a_name_that_no_model_can_have_is_refused_before_any_work(name):
    with pytest.raises(ConfigError, match="cannot be the name") as caught:
        check_name(name)
    assert "owner/name" in (caught.value.fix or "")
