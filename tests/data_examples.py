"""Tiny tokenizers, texts and prepared shards for the tests of the data path."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from trainer.config import TrainConfig
from trainer.data import Corpus
from trainer.prepare import main as data_prepare
from trainer.preparing import ALL, Quiet, Result, Share, prepare
from trainer.shard_cache import ShardCache
from trainer.shards import find_manifest
from trainer.store import Store, local_store_url, open_store
from trainer.text_sources import open_source
from trainer.text_tokenizer import TextTokenizer, text_tokenizer

END = 256  # end of text of `byte_tokenizer`


def byte_tokenizer(end: str = "<end>", lower: bool = False) -> transformers.PreTrainedTokenizerFast:
    """Ids are bytes, in an order of their own; 256 ends a text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    if lower:
        backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)


def text_bytes(name: str = "bytes", lower: bool = False) -> TextTokenizer:
    """`byte_tokenizer` as the preparation takes it."""
    return text_tokenizer(byte_tokenizer(lower=lower), name)


def documents(number: int, first: int = 0) -> list[str]:
    """Short texts that are all different."""
    return [f"document {i:04}\nhas two lines, of which this is {'x' * (i % 7)} the second"
            for i in range(first, first + number)]


def write_text(path: Path, texts: list[str]) -> Path:
    """A text file with a blank line between documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(texts) + "\n")
    return path


def prepared(source: str | Path, folder: Path, *, share: Share = ALL, heldout: float = 0.2,
             unit_bytes: int = 500, processes: int = 1, text_key: str = "text",
             tokenizer: TextTokenizer | None = None, verify: bool = False) -> tuple[Result, Store]:
    """Prepare into a local folder, in small units."""
    store = open_store(local_store_url(folder))
    opened = open_source(str(source), text_key, unit_bytes)
    return prepare(opened, tokenizer or text_bytes(), store, Quiet(), heldout_fraction=heldout, share=share,
                   num_processes=processes, verify=verify), store


def train_config(source: str | Path, length: int = 8, heldout: float = 0.3, batch: int = 4,
                 **data: object) -> TrainConfig:
    """A config that reads `source`."""
    return TrainConfig.model_validate({
        "steps": 1000, "micro_batch_size": 1, "global_batch_size": batch, "checkpoint": {"every_steps": 1},
        "data": {"source": str(source), "sequence_length": length, "heldout_fraction": heldout, **data},
        "token_encoder": {"name": "bytes"}})


def files_in(folder: Path) -> dict[str, bytes]:
    """Content of every file, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Remote(Store):
    """A local store that passes for one far away; `log` tells what was read, `answer` may change it."""

    def __init__(self, folder: Path, answer: Any = None) -> None:
        near = open_store(local_store_url(folder))
        super().__init__("s3://far/away", near.address, near._backend)
        self.log: list[str] = []
        self._answer = answer or (lambda key, data, reads: data)

    def get(self, key: str) -> bytes:
        self.log.append(key)
        return self._answer(key, super().get(key), self.log.count(key))


def corpus_of(folder: Path, cache: Path, store: Store | None = None, gib: float = 1.0,
              **data: Any) -> Corpus:
    """The corpus of prepared shards, without `open_corpus`."""
    config = train_config("any", **data)
    manifest = find_manifest(open_store(local_store_url(folder)))
    assert manifest
    shards = ShardCache(store or open_store(local_store_url(folder)), cache / "shards", int(gib * 2**30))
    return Corpus(manifest, config, shards, cache)


def command(source: object, tokenizer: Path, *more: str) -> list[str]:
    """Arguments that prepare a source into `out` beside the tokenizer."""
    out = tokenizer.parent / "out"
    return [str(source), "--tokenizer", str(tokenizer), "--out", str(out), "--heldout", "0.2", *more]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `ldlm data prepare`."""
    code = data_prepare(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err
