"""Units of a source -> token shards, in this process or in several. No torch.

A worker talks through a pipe of its own: when this process dies, even by SIGKILL, the worker's next
word finds nobody, and it ends too.
"""

import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from trainer.claims import check_claim
from trainer.contract import LdlmError
from trainer.file_rows import Row
from trainer.interrupts import postponed
from trainer.shard_writer import ShardWriter
from trainer.shards import (
    NUM_EXAMPLES,
    SPLITS,
    BadRow,
    Part,
    Preparation,
    RowCounts,
    Split,
    part_key,
    write_record,
)
from trainer.store import Store, open_store
from trainer.text_sources import Source
from trainer.text_tokenizer import TextTokenizer

# Texts that are tokenised in one call: enough to keep threads busy (guess).
_TEXTS_AT_A_TIME = 512
_CHARACTERS_AT_A_TIME = 2**20

Tell = Callable[[int, int, int], None]  # unit, characters, tokens since the last time


class WorkerDiedError(LdlmError):
    """A process that prepared a unit ended without a word."""


@dataclass(frozen=True)
class Work:
    """What every process that prepares units knows."""

    source: Source
    tokenizer: TextTokenizer
    preparation: Preparation
    address: str


@dataclass
class _Unit:
    """A unit on its way: counts, hash and what has been seen."""

    lines: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0
    num_documents: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    examples: list[BadRow] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    digest: Any = field(default_factory=hashlib.sha256)

    def documents(self, rows: Iterator[tuple[str, Row]],
                  heldout_fraction: float) -> Iterator[tuple[Split, str]]:
        """Good rows, each with its split."""
        for file, row in rows:
            self.num_rows += 1
            if row.text is None:
                self._count_bad(file, row)
                continue
            content = hashlib.sha256(row.text.encode()).digest()
            self.digest.update(content)
            self.num_documents += 1
            yield "heldout" if is_heldout(content, heldout_fraction) else "train", row.text

    def _count_bad(self, file: str, row: Row) -> None:
        self.bad[row.problem] += 1
        self.keys.update(row.keys)
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(BadRow(file=file, line=row.line, problem=row.detail or row.problem))

    def counts(self) -> RowCounts:
        """For the record."""
        return RowCounts(num_rows=self.num_rows, num_documents=self.num_documents,
                         bad=dict(sorted(self.bad.items())), examples=tuple(self.examples),
                         keys=tuple(sorted(self.keys)[:NUM_EXAMPLES]))


def is_heldout(content: bytes, fraction: float) -> bool:
    """Whether the document with this SHA-256 is held out: by content, so adding documents moves no other."""
    return int.from_bytes(content[:8], "big") < fraction * 2**64


def prepare_unit(work: Work, store: Store, number: int, tell: Tell) -> Part:
    """Tokenise one unit, store its shards and then its record.

    Repeated documents are kept, as corpora that are compared with others need it. They fall into the same
    split, being the same text.

    Raises:
        ConfigError: Another preparation has the place by now.
        StoreError: The source cannot be read, or the shards not be written.
    """
    def put(key: str, content: bytes) -> None:
        check_claim(store, work.preparation)
        store.put(key, content)

    end = work.preparation.tokenizer.end_of_text_id
    writers = {split: ShardWriter(put, split, number, end) for split in SPLITS}
    state = _Unit()
    rows = _rows(work.source, number, state.lines)
    for batch in _batches(state.documents(rows, work.preparation.heldout_fraction)):
        encoded = work.tokenizer.encode([text for _, text in batch])
        for (split, _), ids in zip(batch, encoded, strict=True):
            writers[split].add(ids)
        tell(number, sum(len(text) for _, text in batch), sum(map(len, encoded)) + len(encoded))
    for writer in writers.values():
        writer.flush()
    part = Part(preparation=work.preparation.digest, unit=number, source_sha256=state.digest.hexdigest(),
                shards=tuple(shard for split in SPLITS for shard in writers[split].shards),
                lines=tuple(state.lines.items()), rows=state.counts())
    check_claim(store, work.preparation)
    write_record(store, part_key(number), part)
    return part


def _rows(source: Source, unit: int, lines: dict[str, int]) -> Iterator[tuple[str, Row]]:
    for piece in source.units[unit].pieces:
        for row in source.rows(piece, lines):
            yield piece.file, row


def _batches(documents: Iterator[tuple[Split, str]]) -> Iterator[list[tuple[Split, str]]]:
    held: list[tuple[Split, str]] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document[1])
        if len(held) >= _TEXTS_AT_A_TIME or size >= _CHARACTERS_AT_A_TIME:
            yield held
            held, size = [], 0
    if held:
        yield held


def prepare_all(work: Work, units: Sequence[int], num_processes: int, tell: Tell,
                done: Callable[[Part], None]) -> None:
    """Prepare units in the order given.

    Args:
        work: The same for all.
        units: Numbers.
        num_processes: 1: in this process, where `tokenizers` takes a thread per core by itself.
        tell: Called often.
        done: Called with each record, in any order.

    Raises:
        LdlmError: What the first unit that failed raised; the others are stopped.
        WorkerDiedError: A process was killed.
    """
    if min(num_processes, len(units)) <= 1:
        store = open_store(work.address)
        for unit in units:
            done(prepare_unit(work, store, unit, tell))
        return
    workers = _Workers()
    try:
        for _ in range(min(num_processes, len(units))):
            workers.start(work, max(1, len(os.sched_getaffinity(0)) // min(num_processes, len(units))))
        workers.run(list(units), tell, done)
    finally:
        workers.end()


class _Workers:
    """Processes that each prepare one unit after the other."""

    def __init__(self) -> None:
        self._processes: dict[Connection, BaseProcess] = {}
        self._busy: set[Connection] = set()

    def start(self, work: Work, threads: int) -> None:
        """One more."""
        # Spawned: the runtime of the object store has threads, which a fork would lose.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, work, threads), daemon=True)
        resource_tracker.ensure_running()  # the first process would start it, and unmask the signal for that
        with postponed():
            process.start()
            self._processes[ours] = process
            self._busy.add(ours)
        theirs.close()

    def end(self) -> None:
        """Those that have nothing to do end by themselves, when nobody is there to tell them more."""
        for connection, process in self._processes.items():
            connection.close()
            if connection in self._busy:
                process.terminate()
        for process in self._processes.values():
            process.join()

    def run(self, waiting: list[int], tell: Tell, done: Callable[[Part], None]) -> None:
        """Hand out units until all are done."""
        waiting.reverse()
        for connection in self._processes:
            connection.send(waiting.pop())
        while self._busy:
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                if not self._hear(connection, tell, done):
                    continue
                if waiting:
                    connection.send(waiting.pop())
                else:
                    self._busy.discard(connection)

    def _hear(self, connection: Connection, tell: Tell, done: Callable[[Part], None]) -> bool:
        """Take one word of a worker. Returns whether it has finished its unit."""
        try:
            kind, content = connection.recv()
        except (EOFError, ConnectionError):
            raise self._died(connection) from None
        if kind == "told":
            tell(*content)
            return False
        if kind == "error":
            error_type, problem, place, fix = content
            raise error_type(problem, place=place, fix=fix)
        done(content)
        return True

    def _died(self, connection: Connection) -> WorkerDiedError:
        process = self._processes[connection]
        process.join(timeout=5)
        code = process.exitcode
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        return WorkerDiedError(f"a worker process ended, {how}; what is finished is kept",
                               fix="if memory ran out, use fewer of them: "
                                   f"--processes {max(1, len(self._processes) // 2)}; else see what is above")


def _serve(connection: Connection, work: Work, threads: int) -> None:
    """A worker's life: units in, words out, until nobody is there."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"

    def tell(*told: int) -> None:
        connection.send(("told", told))

    try:
        store = open_store(work.address)
        while True:
            part = prepare_unit(work, store, connection.recv(), tell)
            connection.send(("done", part))
    except LdlmError as error:
        connection.send(("error", (type(error), error.problem, error.place, error.fix)))
    except (EOFError, ConnectionError):
        return
