"""The mirror of a truncated trunk: written once, resumed after a kill."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from mirror_lab import NAME, config, elsewhere, places, remote_store, silent, states  # noqa: E402, F401
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.random_encoders import save_model  # noqa: E402
from trainer import encoder_files  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.mirror import main, write_mirror  # noqa: E402
from trainer.mirror_format import find_mirror  # noqa: E402
from trainer.store import local_store_url, open_store  # noqa: E402
from trainer.token_encoder import load_tokenizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("places")

ROOT = Path(__file__).parents[1]
KEY = "weights/tiny--model/3-blocks-bf16"


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


@pytest.mark.parametrize("num_rows", [10, 4000])
def test_a_model_with_the_tokenizer_of_another_is_not_mirrored(num_rows: int) -> None:
    save_model(Path(NAME), "gpt2", num_rows=num_rows)
    store = remote_store()
    with pytest.raises(ConfigError, match=f"ids up to 15, the model has embeddings for {num_rows}"):
        write_mirror(config(), store, silent)
    assert not list(store.objects())


def test_a_mirror_stands_in_for_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(Path("carrier/model"), "bert", dtype=torch.bfloat16)
    Path("carrier/__init__.py").touch()
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setitem(encoder_files.PACKAGED, NAME, ("carrier", "model"))
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
