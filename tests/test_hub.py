"""Models of the Hub, from a server that speaks its protocol: only what is needed, verified, once."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import huggingface_hub  # noqa: E402

from tests.fake_hub import COMMIT, FakeHub, running_hub  # noqa: E402
from tests.random_encoders import save_model  # noqa: E402
from trainer.config import TokenEncoderConfig  # noqa: E402
from trainer.contract import ConfigError, StoreError  # noqa: E402
from trainer.manifest import EncoderIdentity, Manifest, StoredFile, pinned  # noqa: E402
from trainer.mirror import write_mirror  # noqa: E402
from trainer.mirror_format import find_mirror  # noqa: E402
from trainer.store import local_store_url, open_store  # noqa: E402
from trainer.token_encoder import load_token_encoder, load_tokenizer  # noqa: E402

NAME = "tiny/model"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with one sharded model, and a machine that has never seen it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda _s: None)  # between attempts of huggingface_hub
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        running.models[NAME] = save_model(tmp_path / "served", "moe-vl", max_shard_size="30KB")
        yield running


def states(hub: FakeHub, name: str = NAME, **settings: object) -> torch.Tensor:
    config = TokenEncoderConfig.model_validate({"name": name, **settings})
    tokens = torch.randint(3, 16, (2, 9), generator=torch.Generator().manual_seed(0))
    return load_token_encoder(config, "cpu", say=lambda _line: None).hidden_states(tokens)


def weight_files(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("model-")]


def test_only_files_with_kept_tensors_are_fetched_and_only_once(hub: FakeHub) -> None:
    expected = states(hub, str(hub.models[NAME]))
    assert hub.gets == []
    assert torch.equal(states(hub), expected)
    served = weight_files([path.name for path in hub.models[NAME].iterdir()])
    index = json.loads((hub.models[NAME] / INDEX).read_text())["weight_map"]
    needed = {name for key, name in index.items() if "language_model" in key and (
        "embed" in key or any(f".layers.{block}." in key for block in range(3)))}
    assert sorted(weight_files(hub.gets)) == sorted(needed) and len(needed) < len(served) - 2
    asked = len(hub.gets)
    assert torch.equal(states(hub), expected) and len(hub.gets) == asked


def test_what_is_on_this_machine_needs_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = states(hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(states(hub), expected)
    assert load_tokenizer(TokenEncoderConfig(name=NAME))("b a")["input_ids"] == [4, 3]
    with pytest.raises(ConfigError, match="not on this machine, and HF_HUB_OFFLINE is set") as caught:
        states(hub, layer=-2)
    assert "weights mirror" in (caught.value.fix or "")


def test_a_single_file_and_a_revision_are_served_too(hub: FakeHub, tmp_path: Path) -> None:
    hub.models["tiny/bert"] = save_model(tmp_path / "bert", "bert")
    expected = states(hub, str(tmp_path / "bert"))
    assert torch.equal(states(hub, "tiny/bert", revision="v1"), expected)
    assert torch.equal(states(hub, "tiny/bert", revision=COMMIT), expected)
    assert hub.gets.count("model.safetensors") == 1


def test_the_tokenizer_comes_without_weights(hub: FakeHub) -> None:
    assert load_tokenizer(TokenEncoderConfig(name=NAME))("b a")["input_ids"] == [4, 3]
    assert weight_files(hub.gets) == []


def test_a_connection_that_breaks_is_taken_up_where_it_was(hub: FakeHub,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    name = next(path.name for path in hub.models[NAME].glob("model-00001*"))
    hub.cut_after, hub.num_cuts = {name: 500}, 2
    assert torch.equal(states(hub), states(hub, str(hub.models[NAME])))
    assert hub.ranges == ["bytes=500-", "bytes=1000-"]


def test_an_interrupted_download_says_how_to_go_on_and_keeps_whole_files(hub: FakeHub) -> None:
    needed = sorted(path.name for path in hub.models[NAME].glob("model-*"))
    hub.cut_after, hub.num_cuts = {needed[1]: 0}, 10_000
    with pytest.raises(StoreError, match="download was cut off") as caught:
        states(hub)
    assert "run the same command again" in (caught.value.fix or "")
    hub.num_cuts = 0
    hub.gets.clear()
    states(hub)
    assert needed[0] not in hub.gets and needed[1] in hub.gets


def test_a_file_damaged_on_its_way_is_fetched_again(hub: FakeHub) -> None:
    name = next(path.name for path in hub.models[NAME].glob("model-00001*"))
    hub.damaged = [name]
    assert torch.equal(states(hub), states(hub, str(hub.models[NAME])))
    assert hub.gets.count(name) == 2


def test_a_file_that_stays_damaged_is_refused(hub: FakeHub) -> None:
    name = next(path.name for path in hub.models[NAME].glob("model-00001*"))
    hub.damaged = [name] * 2
    with pytest.raises(StoreError, match=f"{name}: it was damaged twice"):
        states(hub)


def test_a_cached_file_that_rots_is_noticed(hub: FakeHub, tmp_path: Path) -> None:
    expected = states(hub)
    path = next((tmp_path / "hf").rglob("model-00001*")).resolve()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert torch.equal(states(hub), expected)
    assert hub.gets.count(next((tmp_path / "hf").rglob("model-00001*")).name) == 2


@pytest.mark.parametrize(("name", "revision", "said", "fix"), [
    ("tiny/nothing", None, "no such model on the Hub, or it is private", "HF_TOKEN"),
    ("tiny/gated", None, "accept its licence", "HF_TOKEN"),
    (NAME, "v9", "no revision v9", "commit or tag"),
    ("tiny/empty", None, "no config.json", "Hugging Face layout"),
    ("tiny/pickled", None, "no weights as .safetensors", "another model"),
    ("tiny--model", None, "no folder with a model", "owner/name"),
])
def test_what_the_hub_does_not_give_is_told_with_what_to_do(
        hub: FakeHub, tmp_path: Path, name: str, revision: str | None, said: str, fix: str) -> None:
    hub.models["tiny/gated"] = hub.models[NAME]
    hub.gated.add("tiny/gated")
    for bare in ("empty", "pickled"):
        hub.models[f"tiny/{bare}"] = tmp_path / bare
        (tmp_path / bare).mkdir()
    (tmp_path / "pickled/config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match=said) as caught:
        states(hub, name, revision=revision)
    assert fix in (caught.value.fix or "")


def test_a_hub_that_cannot_be_reached_may_be_back_later(hub: FakeHub,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="the Hub cannot be reached: .*refused") as caught:
        states(hub)
    assert "\n" not in caught.value.problem and "network" in (caught.value.fix or "")


def test_a_model_that_is_not_here_and_may_not_be_fetched_is_no_cut_download(
        hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        load_tokenizer(TokenEncoderConfig.model_validate({"name": NAME}))


def test_a_layer_that_the_model_lacks_is_refused_before_weights_are_fetched(hub: FakeHub) -> None:
    with pytest.raises(ConfigError, match="has 5 blocks"):
        states(hub, layer=-9)
    assert weight_files(hub.gets) == []


def test_a_model_of_the_hub_goes_into_the_mirror_with_its_commit(hub: FakeHub, tmp_path: Path) -> None:
    store = open_store(local_store_url(tmp_path / "store"))
    config = TokenEncoderConfig(name=NAME)
    written = write_mirror(config, store, lambda _line: None)
    assert written.manifest.commit == COMMIT
    asked = len(hub.gets)
    assert write_mirror(config, store, lambda _line: None).num_written == 0
    assert load_token_encoder(config, "cpu", store=store).hidden_size == 32 and len(hub.gets) == asked


def test_revisions_stand_side_by_side_and_each_run_finds_its_own(hub: FakeHub, tmp_path: Path) -> None:
    """What `revision: null` meant moves on; a run of the older commit keeps it."""
    store = open_store(local_store_url(tmp_path / "store"))
    served, newer = hub.models[NAME], "f" * 40

    def found(revision: str | None) -> str:
        mirror = find_mirror(store, TokenEncoderConfig(name=NAME, revision=revision))
        return "" if mirror is None else str(mirror[1].commit)

    write_mirror(TokenEncoderConfig(name=NAME, revision="v1"), store, lambda _line: None)
    assert (found("v1"), found(COMMIT), found(None)) == (COMMIT, COMMIT, "")
    write_mirror(TokenEncoderConfig(name=NAME), store, lambda _line: None)
    assert (found("v1"), found(None)) == (COMMIT, COMMIT)
    hub.commit = newer
    hub.models[NAME] = save_model(tmp_path / "newer", "moe-vl", max_shard_size="30KB")
    shutil.rmtree(tmp_path / "hf")  # as on another machine
    assert write_mirror(TokenEncoderConfig(name=NAME), store, lambda _line: None).num_written > 0
    assert (found("v1"), found(COMMIT), found(newer), found(None)) == (COMMIT, COMMIT, newer, newer)
    began = load_token_encoder(TokenEncoderConfig(name=NAME, revision=COMMIT), "cpu", store=store)
    alone = load_token_encoder(TokenEncoderConfig(name=str(served)), "cpu")
    assert began.identity.key == alone.identity.key and COMMIT[:12] in str(began.identity)


def test_a_run_without_a_revision_goes_on_with_the_commit_that_it_began_with() -> None:
    began = EncoderIdentity(name=NAME, commit=COMMIT, kept_blocks=3, weights="bf16", prefix_token=True,
                            source="a")
    manifest = Manifest(step=4, attempt=1, world_size=1, shards=[], pieces=[], groups=[],
                        rest=StoredFile(name="", num_bytes=0, sha256=""), data_fingerprint="", model={},
                        encoder=began)
    assert pinned(TokenEncoderConfig(name=NAME), manifest).revision == COMMIT
    for config in (TokenEncoderConfig(name=NAME, revision="v1"), TokenEncoderConfig(name="another/model")):
        assert pinned(config, manifest) == config
    assert pinned(TokenEncoderConfig(name=NAME), None).revision is None
