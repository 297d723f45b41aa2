"""A mirror is fetched whole or not at all, and what is here is not fetched again."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from mirror_lab import NAME, config, elsewhere, places, remote_store, silent, states  # noqa: E402, F401
from obstore.store import MemoryStore  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.random_encoders import save_model  # noqa: E402
from tests.random_mirrors import write_random_mirror  # noqa: E402
from tests.s3_server import KEYS  # noqa: E402
from trainer import node_watch  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.contract import ConfigError, Env, LdlmError, StoreError  # noqa: E402
from trainer.encoder_fetch import fetch_ahead  # noqa: E402
from trainer.mirror import main, write_mirror  # noqa: E402
from trainer.mirror_format import fetch_mirror, find_mirror  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.store import DamagedError, Store, local_store_url, open_store  # noqa: E402
from trainer.token_encoder import (  # noqa: E402
    load_token_encoder,
    load_tokenizer,
    open_token_encoder,
    open_tokenizer,
)
from trainer.weight_sources import EncoderSource  # noqa: E402

pytestmark = pytest.mark.usefixtures("places")

KEY = "weights/tiny--model/3-blocks-bf16"


class CountingStore(Store):
    """Counts bytes that are read by range; can break after some."""

    _counting = threading.Lock()
    read_bytes = num_listed = 0
    breaks_after: int | None = None
    garbles: str | None = None  # a byte of the next range of a file whose name ends so

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        with self._counting:
            self.read_bytes += end - start
        if self.breaks_after is not None and self.read_bytes > self.breaks_after:
            raise StoreError("the line is dead", place=key)
        data = super().get_range(key, start, end)
        if self.garbles and key.endswith(self.garbles):
            self.garbles = None
            return memoryview(bytes([data[0] ^ 1]) + data[1:])
        return data

    def folders(self, prefix: str) -> list[str]:
        self.num_listed += 1
        return super().folders(prefix)


@pytest.fixture
def mirrored(elsewhere: Callable[[], None]) -> Iterator[CountingStore]:
    save_model(Path(NAME), "qwen")
    store = CountingStore("memory://remote", "memory://remote", MemoryStore())
    write_mirror(config(), store, silent)
    elsewhere()
    yield store


def fetched(store: Store) -> Path:
    key, manifest = find_mirror(store, config()) or pytest.fail("no mirror")
    return fetch_mirror(store, key, manifest, silent)


def test_what_is_here_is_not_fetched_again_but_a_torn_file_is(mirrored: CountingStore) -> None:
    folder, num_bytes = fetched(mirrored), (find_mirror(mirrored, config()) or pytest.fail())[1].num_bytes
    assert mirrored.read_bytes == num_bytes
    fetched(mirrored)
    assert mirrored.read_bytes == num_bytes
    block = folder / "block-001.safetensors"
    whole = block.read_bytes()
    block.write_bytes(whole[:-7])
    fetched(mirrored)
    assert (mirrored.read_bytes, block.read_bytes()) == (num_bytes + len(whole), whole)


def test_a_broken_fetch_leaves_no_file_that_looks_whole_and_goes_on(mirrored: CountingStore) -> None:
    num_bytes = (find_mirror(mirrored, config()) or pytest.fail())[1].num_bytes
    mirrored.breaks_after = num_bytes // 2
    with pytest.raises(StoreError, match="the line is dead"):
        fetched(mirrored)
    mirrored.breaks_after, mirrored.read_bytes = None, 0
    assert states(config(), mirrored).shape == (2, 9, 32)
    assert 0 < mirrored.read_bytes < num_bytes


def test_a_damaged_mirror_is_refused_and_named(mirrored: CountingStore) -> None:
    key = f"{KEY}/block-001.safetensors"
    content = bytearray(mirrored.get(key))
    content[-5] ^= 1
    mirrored.put(key, bytes(content))
    with pytest.raises(DamagedError, match=r"block-001.safetensors: .*SHA-256") as caught:
        fetched(mirrored)
    assert "weights mirror" in (caught.value.fix or "")
    assert caught.value.node_exit_code == 78  # a retry would fetch it, and be billed, once more
    mirrored.put(f"{KEY}/manifest.json", b"{")
    with pytest.raises(LdlmError, match="manifest of this mirror is damaged"):
        fetched(mirrored)


def test_what_a_transfer_has_garbled_is_fetched_once_more(mirrored: CountingStore) -> None:
    num_bytes = (find_mirror(mirrored, config()) or pytest.fail())[1].num_bytes
    mirrored.garbles = "block-001.safetensors"
    folder = fetched(mirrored)
    block = (folder / "block-001.safetensors").read_bytes()
    assert block == mirrored.get(f"{KEY}/block-001.safetensors")
    assert mirrored.read_bytes == num_bytes + len(block)


def test_a_mirror_of_random_weights_at_real_size_is_taken_for_the_model_itself(tmp_path: Path) -> None:
    gpt2 = config(name="openai-community/gpt2", prefix_token=False)
    write_random_mirror(gpt2, tmp_path / "store", device="cpu")
    store = open_store(local_store_url(tmp_path / "store"))
    encoder = load_token_encoder(gpt2, "cpu", store=store, say=silent)
    assert (encoder.hidden_size, encoder.vocab_size, encoder.num_tokens) == (768, 50257, 50257)
    ids = encoder.tokenizer("The assert statement")["input_ids"]
    assert len(set(ids)) > 3 and encoder.tokenizer.decode(ids) == "The assert statement"
    assert encoder.hidden_states(torch.tensor([ids])).isfinite().all()


def test_a_cache_that_cannot_be_written_is_named(mirrored: CountingStore, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    with pytest.raises(StoreError, match="a file.*: cannot be kept on this disk") as caught:
        fetched(mirrored)
    assert "XDG_CACHE_HOME" in (caught.value.fix or "")


def test_a_mirror_with_other_names_than_this_transformers_uses_is_refused(
        mirrored: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    block = fetched(mirrored) / "block-001.safetensors"
    tensors = load_file(block)
    tensors["mlp.other_name"] = tensors.pop("mlp.up_proj.weight")
    save_file(tensors, block)
    monkeypatch.setattr("trainer.mirror_format.unsound", lambda _folder, _files: [])
    with pytest.raises(ConfigError, match="block 1 lacks mlp.up_proj.weight") as caught:
        states(config(), mirrored)
    assert "weights mirror" in (caught.value.fix or "")


def test_of_two_at_once_one_fetches_and_the_other_waits(mirrored: CountingStore) -> None:
    num_bytes = (find_mirror(mirrored, config()) or pytest.fail())[1].num_bytes
    both = [threading.Thread(target=fetched, args=(mirrored,)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert mirrored.read_bytes == num_bytes


def test_the_tokenizer_alone_is_fetched_without_weights(mirrored: CountingStore) -> None:
    assert load_tokenizer(config(), mirrored)("b a")["input_ids"] == [4, 3]
    assert mirrored.read_bytes < 40_000 < (find_mirror(mirrored, config()) or pytest.fail())[1].num_bytes


def test_whoever_needs_tokenizer_and_weights_looks_for_the_mirror_once(mirrored: CountingStore) -> None:
    source = EncoderSource(config(), mirrored, silent)
    assert open_tokenizer(source.tokenizer())("b a")["input_ids"] == [4, 3]
    encoder = open_token_encoder(config(), source, "cpu")
    assert (encoder.num_tokens, mirrored.num_listed) == (16, 1)


def test_what_an_encoder_is_is_known_before_its_weights_are_fetched(mirrored: CountingStore) -> None:
    opened = open_token_encoder(config(), EncoderSource(config(), mirrored, silent), "cpu")
    assert mirrored.read_bytes < 40_000
    loaded = load_token_encoder(config(), "cpu", store=mirrored, say=silent)
    assert (opened.identity, opened.vocab_size) == (loaded.identity, loaded.vocab_size)
    opened.load()
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(opened.hidden_states(tokens), loaded.hidden_states(tokens))


def identity(store: Store | None = None, **settings: object) -> str:
    return load_token_encoder(config(**settings), "cpu", store=store, say=silent).identity.key


def test_an_encoder_is_the_same_wherever_its_weights_come_from_and_another_with_other_weights(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[[], None]) -> None:
    save_model(Path(NAME), "qwen")
    store, first = remote_store(), identity()
    write_mirror(config(), store, silent)
    write_mirror(config(weights="nf4"), store, silent)
    elsewhere()
    quantised = identity(store, weights="nf4")
    assert identity(store) == identity(store, placement="host") == first != quantised
    assert identity(store, prefix_token=False) != first
    monkeypatch.chdir(tmp_path / "here")
    assert identity(weights="nf4") == quantised
    assert identity(layer=-2) != first
    weights = Path(NAME, "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights)
    assert identity() != first


def test_a_damaged_mirror_on_this_disk_is_refused_and_verify_mends_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[[], None],
        capsys: pytest.CaptureFixture[str]) -> None:
    save_model(Path(NAME), "gpt2")
    arguments = ["--name", NAME, "--store", local_store_url(tmp_path / "store")]
    assert main(arguments) == 0
    elsewhere()
    store = open_store(local_store_url(tmp_path / "store"))
    block, hashed = tmp_path / "store" / KEY / "block-002.safetensors", []
    whole = block.read_bytes()
    fetched(store)
    with monkeypatch.context() as patched:
        patched.setattr("trainer.transfers.sha256_of", hashed.append)
        fetched(store)
    assert hashed == []  # nothing has changed since
    block.write_bytes(whole[:-4000] + bytes(byte ^ 0x5a for byte in whole[-4000:]))
    with pytest.raises(DamagedError, match=r"block-002.safetensors: .*SHA-256") as caught:
        states(config(), store)
    assert caught.value.fix == (f"ldlm weights mirror --name {NAME} --layer -3 --weights bf16 "
                                f"--store {store.address} --verify")
    monkeypatch.chdir(tmp_path / "here")
    capsys.readouterr()
    assert main(arguments) == 0
    assert "sizes compared; --verify reads it all" in capsys.readouterr().out
    assert main([*arguments, "--verify"]) == 0
    assert "wrote 1 of 7 files" in capsys.readouterr().out and block.read_bytes() == whole
    assert main([*arguments, "--verify"]) == 0
    assert "SHA-256 compared" in capsys.readouterr().out


def test_a_store_on_this_disk_is_read_in_place(tmp_path: Path, elsewhere: Callable[[], None]) -> None:
    save_model(Path(NAME), "gpt2")
    store = open_store(local_store_url(tmp_path / "my store"))
    write_mirror(config(), store, silent)
    elsewhere()
    assert fetched(store) == tmp_path / "my store" / KEY
    assert states(config(), store).shape == (2, 9, 32)


def test_what_a_node_has_fetched_ahead_its_ranks_do_not_fetch(mirrored: CountingStore) -> None:
    num_bytes = (find_mirror(mirrored, config()) or pytest.fail())[1].num_bytes
    fetch_ahead(config(), RunFolder(mirrored, "run"), silent)
    assert mirrored.read_bytes == num_bytes
    assert states(config(), mirrored).shape == (2, 9, 32)
    assert mirrored.read_bytes == num_bytes


def test_a_rank_gets_the_tokenizer_while_the_weights_are_fetched(mirrored: CountingStore) -> None:
    told: list[Path] = []

    def is_fetching(_: str) -> None:
        told.append(EncoderSource(config(), mirrored, silent).tokenizer())

    fetch_ahead(config(), RunFolder(mirrored, "run"), is_fetching)  # told while it holds the lock
    assert told and open_tokenizer(told[0]).vocab_size


def test_a_fetch_ends_with_its_node_and_says_nothing_of_what_fails(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_server:  # takes a request and never answers
        address = f"s3://b/runs?endpoint=http://127.0.0.1:{silent_server.getsockname()[1]}&region=us-east-1"
        train = TrainConfig.model_validate(
            {"profile": "smoke", "steps": 1, "data": {"source": "python-docs"}}).model_dump_json()
        environment = os.environ | KEYS | {Env.STORE: address, Env.RUN_ID: "run", Env.TRAIN_CONFIG: train,
                                           Env.END_FOLDER: str(tmp_path)}
        lock = node_watch.hold(tmp_path)
        fetch = subprocess.Popen([sys.executable, "-m", "trainer.encoder_fetch"], env=environment,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 cwd=Path(__file__).parents[1])
        silent_server.settimeout(60)
        silent_server.accept()[0].close()  # refused once: it tries again
        assert fetch.poll() is None
        lock.close()
        assert fetch.communicate(timeout=60)[0] == b"" and fetch.returncode == -signal.SIGKILL
