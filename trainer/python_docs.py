"""`python-docs`: prose that every Python carries, about 2 MB: the reference's topics and all docstrings."""

import ast
import hashlib
import itertools
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_MIN_DOCUMENT_CHARS = 80
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}


def python_docs() -> Iterator[str]:
    """The documents, each once, in an order that is the same on every call."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    docstrings = itertools.chain.from_iterable(map(_docstrings, _python_files()))
    for text in itertools.chain((topics[name] for name in sorted(topics)), docstrings):
        text = text.strip()
        if len(text) > _MIN_DOCUMENT_CHARS and text not in seen:
            seen.add(text)
            yield text


def python_docs_digest() -> str:
    """SHA-256 of the files, not of the documents in them: parsing takes seconds, hashing does not."""
    digest = hashlib.sha256()
    for path in _python_files():
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _python_files() -> list[Path]:
    """Sorted by their path inside the library."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders
                         if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # some distributions add files of other Python versions
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
