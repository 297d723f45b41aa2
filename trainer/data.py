"""Text -> token blocks -> the batch of a step. Numpy only; the position in the data is one integer.

Shapes: N sequences, L tokens of a sequence.
"""

import ast
import functools
import hashlib
import json
import os
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import TrainConfig
from trainer.contract import ConfigError

PYTHON_DOCS = "python-docs"
_MIN_DOCUMENT_CHARS = 80
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}
_DOCUMENTS_AT_A_TIME = 1_000


@dataclass(frozen=True)
class Corpus:
    """Text as blocks of token ids, held by memory map.

    Attributes:
        train_NL: uint32 training blocks.
        heldout_NL: uint32 blocks of documents that no training block holds.
        seen_ids: Sorted ids that occur in `train_NL`, int64.
        fingerprint: Names text, tokenizer, length and split: equal fingerprints are equal blocks.
    """

    train_NL: np.ndarray
    heldout_NL: np.ndarray
    seen_ids: np.ndarray
    fingerprint: str


def load_documents(source: str) -> list[str]:
    """The documents of a source, in an order that is the same on every call, without repeats.

    Args:
        source: `python-docs` (the language reference's topics and the standard library's docstrings,
            about 2 MB), or the path of a UTF-8 text file whose documents are separated by blank lines.

    Raises:
        ConfigError: The file is missing, is not UTF-8 or holds no text.
    """
    if source == PYTHON_DOCS:
        documents = list(_python_docs())
    else:
        documents = [part.strip() for part in _read_text(Path(source)).replace("\r\n", "\n").split("\n\n")]
    documents = list(dict.fromkeys(filter(None, documents)))
    if not documents:
        raise ConfigError("data.source holds no text", place=source, fix="name a file with text in it")
    return documents


def prepare(config: TrainConfig, tokenizer: Any, cache: Path) -> Corpus:
    """Token blocks of the configured text, from `cache` when it has them, else made and stored there.

    A document belongs to the held-out part by the hash of its content, so that adding or moving
    documents moves no other. Several processes may call this at once with the same cache.

    Args:
        config: `data` says what to read; `global_batch_size` how much there must be.
        tokenizer: A Hugging Face tokenizer.
        cache: Folder, made when missing.

    Raises:
        ConfigError: As `load_documents`, or too little text.
    """
    fingerprint = _fingerprint(config, tokenizer)
    paths = [cache / f"{fingerprint}-{part}.npy" for part in ("train", "heldout", "seen")]
    if not all(path.exists() for path in paths):
        train_NL, heldout_NL = _tokenised(config, tokenizer)
        cache.mkdir(parents=True, exist_ok=True)
        arrays = (train_NL, heldout_NL, np.unique(train_NL).astype(np.int64))
        for path, array in zip(paths, arrays, strict=True):
            _write(path, array)
    train_NL, heldout_NL, seen_ids = (np.load(path, mmap_mode="r") for path in paths)
    _check_enough(config, len(train_NL), len(heldout_NL))
    return Corpus(train_NL, heldout_NL, np.array(seen_ids), fingerprint)


def batch_indices(num_sequences: int, global_batch_size: int, seed: int, step: int) -> np.ndarray:
    """Which sequences the global batch of one step holds: a pure function, whatever the world size.

    Every epoch is a permutation of its own; a batch may begin in one epoch and end in the next.

    Args:
        num_sequences: N.
        global_batch_size: Sequences of one step.
        seed: Of the run.
        step: From 0.

    Returns:
        int64 of shape (global_batch_size,), each in [0, N).
    """
    positions = np.arange(step * global_batch_size, (step + 1) * global_batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(positions, num_sequences)
    batch = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        batch[here] = _permutation(num_sequences, seed, int(epoch))[offsets[here]]
    return batch


def end_of_text_id(tokenizer: Any) -> int:
    """Id that ends a document: the end-of-text token, else the separator.

    Raises:
        ConfigError: The tokenizer has neither.
    """
    for token_id in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token_id is not None:
            return int(token_id)
    raise ConfigError("the tokenizer has neither an end-of-text nor a separator token",
                      place="token_encoder.name", fix="set eos_token in the model's tokenizer_config.json")


@functools.lru_cache(maxsize=2)  # the epoch that ends in a batch and the one that begins
def _permutation(num_sequences: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_sequences)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"data.source cannot be read: {error.strerror}", place=str(path),
                          fix=f"name a text file that is there, or `{PYTHON_DOCS}`") from error


def _read_text(path: Path) -> str:
    content = _read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.source is not UTF-8: byte {error.start} is {content[error.start]:#04x}",
                          place=str(path), fix=f"convert it: iconv -f latin1 -t utf-8 {path}") from error


def _python_files() -> list[Path]:
    """Files whose prose `python-docs` is made of, sorted by their path inside the library."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders
                         if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _python_docs() -> Iterator[str]:
    from pydoc_data.topics import topics

    documents = [topics[name] for name in sorted(topics)]
    for path in _python_files():
        documents += _docstrings(path)
    return (text.strip() for text in documents if len(text.strip()) > _MIN_DOCUMENT_CHARS)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # some distributions add files of other Python versions
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _source_digest(source: str) -> str:
    # Of the library's files, not of the documents in them: parsing takes seconds, hashing does not.
    paths = _python_files() if source == PYTHON_DOCS else [Path(source)]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(_read_bytes(path)).digest())
    return digest.hexdigest()


def _tokenizer_identity(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = json.loads(backend.to_str()) if backend else tokenizer.get_vocab()
    for changed_by_use in ("padding", "truncation"):
        described.pop(changed_by_use, None)
    return json.dumps([type(tokenizer).__name__, described], sort_keys=True)


def _fingerprint(config: TrainConfig, tokenizer: Any) -> str:
    parts = [_source_digest(config.data.source), _tokenizer_identity(tokenizer), end_of_text_id(tokenizer),
             config.data.sequence_length, config.data.heldout_fraction]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _is_heldout(document: str, fraction: float) -> bool:
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _tokenised(config: TrainConfig, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out blocks of the configured text."""
    documents = load_documents(config.data.source)
    heldout = [_is_heldout(document, config.data.heldout_fraction) for document in documents]
    train_NL, heldout_NL = (
        _blocks([document for document, held in zip(documents, heldout, strict=True) if held is part],
                tokenizer, config.data.sequence_length)
        for part in (False, True))
    _check_enough(config, len(train_NL), len(heldout_NL))
    return train_NL, heldout_NL


def _blocks(documents: Sequence[str], tokenizer: Any, sequence_length: int) -> np.ndarray:
    """uint32 blocks of shape (N, L): documents end to end, each closed by end of text; the tail goes."""
    end = end_of_text_id(tokenizer)
    parts = [np.empty(0, dtype=np.uint32)]
    for first in range(0, len(documents), _DOCUMENTS_AT_A_TIME):
        encoded = tokenizer(list(documents[first:first + _DOCUMENTS_AT_A_TIME]), add_special_tokens=False,
                            return_attention_mask=False, verbose=False)["input_ids"]
        parts.append(np.array([token for ids in encoded for token in (*ids, end)], dtype=np.uint32))
    stream = np.concatenate(parts)
    num_blocks = len(stream) // sequence_length
    return stream[:num_blocks * sequence_length].reshape(num_blocks, sequence_length)


def _check_enough(config: TrainConfig, num_train: int, num_heldout: int) -> None:
    if num_train >= config.global_batch_size and num_heldout >= 1:
        return
    raise ConfigError(
        f"too little text: {num_train} training and {num_heldout} held-out sequences of "
        f"{config.data.sequence_length} tokens, but one step needs {config.global_batch_size} "
        "and evaluation needs 1",
        place=config.data.source,
        fix="give more documents (separated by blank lines), or lower data.sequence_length "
            "or global_batch_size, or raise data.heldout_fraction")


def _write(path: Path, array: np.ndarray) -> None:
    # Under its name only when whole: another rank may look at any time.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".part", delete=False) as file:
        np.save(file, array)
    os.replace(file.name, path)
