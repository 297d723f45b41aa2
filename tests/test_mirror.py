"""The mirror of a truncated trunk: written once, resumed after a kill, fetched whole or not at all."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from obstore.store import MemoryStore  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.random_encoders import save_model  # noqa: E402
from trainer import encoder_weights, transfers  # noqa: E402
from trainer.config import TokenEncoderConfig  # noqa: E402
from trainer.contract import ConfigError, LdlmError, StoreError  # noqa: E402
from trainer.mirror import main, write_mirror  # noqa: E402
from trainer.mirror_format import fetch_mirror, find_mirror  # noqa: E402
from trainer.store import DamagedError, Store, local_store_url, open_store  # noqa: E402
from trainer.token_encoder import load_token_encoder, load_tokenizer, open_tokenizer  # noqa: E402
from trainer.weight_sources import EncoderSource  # noqa: E402

ROOT = Path(__file__).parents[1]
NAME = "tiny/model"
KEY = "weights/tiny--model/3-blocks-bf16"


def silent(_line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where `tiny/model` is a folder; weights that are fetched land beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transfers, "_RANGE_BYTES", 1000)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Go where no folder has the model's name, as on another machine."""
    (tmp_path / "elsewhere").mkdir()
    return lambda: monkeypatch.chdir(tmp_path / "elsewhere")


def config(**settings: object) -> TokenEncoderConfig:
    return TokenEncoderConfig.model_validate({"name": NAME, **settings})


def remote_store() -> Store:
    """A store that is not on this disk."""
    return Store("memory://remote", "memory://remote", MemoryStore())


def states(encoder_config: TokenEncoderConfig, store: Store | None = None) -> torch.Tensor:
    tokens = torch.randint(3, 16, (2, 9), generator=torch.Generator().manual_seed(0))
    return load_token_encoder(encoder_config, "cpu", store=store, say=silent).hidden_states(tokens)


@pytest.mark.parametrize(("family", "held_as"), [
    ("gpt2", "bf16"), ("bert", "bf16"), ("qwen-vl", "bf16"), ("moe-vl", "bf16"), ("moe-vl", "fp8"),
    ("moe-vl", "nf4"), ("qwen", "nf4"), ("gpt2", "fp8")])
def test_encoder_from_a_mirror_is_the_encoder_from_the_checkpoint(
        family: str, held_as: str, elsewhere: Callable[[], None]) -> None:
    save_model(Path(NAME), family, dtype=torch.bfloat16, max_shard_size="30KB")
    expected, store = states(config(weights=held_as)), remote_store()
    written = write_mirror(config(weights=held_as), store, silent)
    elsewhere()
    assert torch.equal(states(config(weights=held_as), store), expected)
    assert load_tokenizer(config(weights=held_as), store)("b a")["input_ids"] == [4, 3]
    assert written.manifest.num_blocks == 5 and written.manifest.kept_blocks == 3
    names = {file.name for file in written.manifest.files}
    assert names >= {"config.json", "tokenizer.json", "embeddings.safetensors", "block-002.safetensors"}
    assert "block-003.safetensors" not in names


def test_a_mirror_stands_in_for_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(Path("carrier/model"), "bert", dtype=torch.bfloat16)
    Path("carrier/__init__.py").touch()
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setitem(encoder_weights.PACKAGED, NAME, ("carrier", "model"))
    expected, store = states(config()), remote_store()
    write_mirror(config(), store, silent)
    Path("carrier").rename("gone")
    importlib.invalidate_caches()
    assert torch.equal(states(config(), store), expected)
    with pytest.raises(ConfigError, match="not installed, and the store has no mirror of it"):
        states(config(layer=-2), store)


def test_a_mirror_in_bf16_serves_a_quantised_encoder(elsewhere: Callable[[], None]) -> None:
    save_model(Path(NAME), "qwen", dtype=torch.bfloat16)
    expected, store = states(config(weights="nf4")), remote_store()
    write_mirror(config(), store, silent)
    elsewhere()
    assert torch.equal(states(config(weights="nf4"), store), expected)


def test_a_mirror_of_another_layer_or_revision_is_not_used(elsewhere: Callable[[], None]) -> None:
    save_model(Path(NAME), "gpt2")
    store = remote_store()
    write_mirror(config(), store, silent)
    elsewhere()
    assert find_mirror(store, config()) is not None
    assert find_mirror(store, config(layer=-2)) is None
    assert find_mirror(store, config(revision="v2")) is None
    with pytest.raises(ConfigError, match="has 5 blocks"):
        find_mirror(store, config(layer=-9))


# -- writing ------------------------------------------------------------------------------------------


def command(*more: str) -> list[str]:
    return ["--name", NAME, "--store", local_store_url(Path("store")), *more]


def test_the_command_says_what_it_did_and_does_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    save_model(Path(NAME), "gpt2")
    assert main(command()) == 0
    first = capsys.readouterr()
    assert first.out.startswith("wrote 7 of 7 files") and KEY in first.out
    assert "block-002.safetensors is there" in first.err and "s left" in first.err
    assert main(command()) == 0
    assert capsys.readouterr().out.startswith("nothing to do: file://")
    assert main(command("--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_written"], told["kept_blocks"], told["weights"]) == (0, 3, "bf16")


def test_a_mirror_that_lost_part_of_a_file_is_written_anew(tmp_path: Path) -> None:
    save_model(Path(NAME), "gpt2")
    store = open_store(local_store_url(tmp_path / "store"))
    write_mirror(config(), store, silent)
    block = tmp_path / "store" / KEY / "block-001.safetensors"
    before = block.read_bytes()
    block.write_bytes(before[:100])
    assert write_mirror(config(), store, silent).num_written > 0
    assert block.read_bytes() == before


def test_other_weights_under_the_same_name_replace_the_mirror(capsys: pytest.CaptureFixture[str]) -> None:
    save_model(Path(NAME), "gpt2")
    main(command())
    save_model(Path(NAME), "bert")
    capsys.readouterr()
    assert main(command()) == 0
    assert capsys.readouterr().out.startswith("wrote ")


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--layer", "-1"], 3, "--layer: layer -1 is out of range: tiny/model has 5 blocks\n"
                           "  fix: add --layer -3 (-5 to -2 will do)"),
    (["--name", "nothing"], 3, "no folder with a model")])
def test_what_cannot_be_mirrored_is_told_in_one_message(arguments: list[str], code: int, said: str,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    save_model(Path(NAME), "gpt2")
    assert main(command(*arguments)) == code
    captured = capsys.readouterr()
    assert said in captured.err and "fix:" in captured.err and captured.out == ""


def test_a_killed_command_goes_on_where_it_was(tmp_path: Path) -> None:
    save_model(Path(NAME), "moe")
    done = subprocess.run([sys.executable, "-c", _KILLED_AT_BLOCK_1], cwd=os.getcwd(), check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = open_store(local_store_url(Path("store")))
    assert find_mirror(store, config()) is None
    written = write_mirror(config(), store, silent)
    assert written.num_written == 1  # block 2; two blocks, embeddings and the small files were there
    assert not [found.key for found in store.objects(KEY) if "unfinished" in found.key]


_KILLED_AT_BLOCK_1 = f"""
import os, signal
from pathlib import Path
from trainer.config import TokenEncoderConfig
from trainer.mirror import write_mirror
from trainer.store import local_store_url, open_store
def say(line):
    if line.startswith("block-001"):
        os.kill(os.getpid(), signal.SIGKILL)
write_mirror(TokenEncoderConfig(name={NAME!r}), open_store(local_store_url(Path("store"))), say)
"""


def test_what_was_written_from_other_weights_is_written_again(tmp_path: Path) -> None:
    save_model(Path(NAME), "moe")
    subprocess.run([sys.executable, "-c", _KILLED_AT_BLOCK_1], cwd=os.getcwd(), check=False,
                   env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    weights = Path(NAME, "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights)
    written = write_mirror(config(), open_store(local_store_url(Path("store"))), silent)
    assert written.num_written == len(written.manifest.files)


def test_a_full_disk_is_told_with_what_to_do() -> None:
    save_model(Path(NAME), "gpt2")
    program = ("import resource, sys; from trainer.mirror import main\n"
               "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
               f"sys.exit(main({command()!r}))")
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 6 and "Traceback" not in done.stderr
    assert "block-000.safetensors cannot be written" in done.stderr and "TMPDIR" in done.stderr


def test_writing_holds_little_more_than_one_block(tmp_path: Path) -> None:
    """Twenty blocks of 25 MB would be 500 MB; one block and its copies are a fifth of that."""
    done = subprocess.run([sys.executable, "-c", _PEAK], cwd=os.getcwd(), check=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    assert int(done.stdout.split()[-1]) < 150


_PEAK = f"""
import resource
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.random_encoders import tokenizer
from trainer.config import TokenEncoderConfig
from trainer.mirror import write_mirror
from trainer.store import local_store_url, open_store
block = transformers.GPT2Model(transformers.GPT2Config(
    n_embd=1024, n_layer=1, n_head=8, vocab_size=64, n_positions=64)).bfloat16()
from safetensors.torch import save_file
import json
folder = Path({NAME!r}); folder.mkdir(parents=True)
tensors = {{k: v for k, v in block.state_dict().items() if k.startswith("h.0.")}}
names = dict()
for i in range(20):
    file = f"model-{{i}}.safetensors"
    held = {{k.replace("h.0.", f"h.{{i}}."): v for k, v in tensors.items()}}
    if i == 0:
        held |= {{"wte.weight": block.wte.weight.data, "wpe.weight": block.wpe.weight.data}}
    save_file(held, folder / file)
    names |= dict.fromkeys(held, file)
(folder / "model.safetensors.index.json").write_text(json.dumps({{"weight_map": names}}))
block.config.n_layer = 20
block.config.save_pretrained(folder)
tokenizer(cls=False).save_pretrained(folder)
del block, tensors, held
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = open_store(local_store_url(Path("store")))
write_mirror(TokenEncoderConfig(name={NAME!r}, layer=-2), store, lambda line: None)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


# -- fetching -----------------------------------------------------------------------------------------


class CountingStore(Store):
    """Counts bytes that are read by range; can break after some."""

    _counting = threading.Lock()
    read_bytes = num_listed = 0
    breaks_after: int | None = None

    def get_range(self, key: str, start: int, end: int) -> bytes:
        with self._counting:
            self.read_bytes += end - start
        if self.breaks_after is not None and self.read_bytes > self.breaks_after:
            raise StoreError("the line is dead", place=key)
        return super().get_range(key, start, end)

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
    mirrored.put(f"{KEY}/manifest.json", b"{")
    with pytest.raises(LdlmError, match="manifest of this mirror is damaged"):
        fetched(mirrored)


def test_a_cache_that_cannot_be_written_is_named(mirrored: CountingStore, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    with pytest.raises(StoreError, match="a file.*: cannot be written") as caught:
        fetched(mirrored)
    assert "XDG_CACHE_HOME" in (caught.value.fix or "")


def test_a_mirror_with_other_names_than_this_transformers_uses_is_refused(
        mirrored: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    block = fetched(mirrored) / "block-001.safetensors"
    tensors = load_file(block)
    tensors["mlp.other_name"] = tensors.pop("mlp.up_proj.weight")
    save_file(tensors, block)
    monkeypatch.setattr("trainer.mirror_format.is_whole", lambda _path, _num_bytes: True)
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
    assert load_token_encoder(config(), "cpu", source=source).num_tokens == 16
    assert mirrored.num_listed == 1


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
