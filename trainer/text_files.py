"""Which files a source means, found by their names alone: kinds, folders, globs. No torch.

The launcher looks through here too, to know how much text there is.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from trainer.contract import ConfigError
from trainer.shards import PLAN
from trainer.store import NotFoundError, Store, local_store_url, open_store, store_url

PYTHON_DOCS = "python-docs"
HUB = "hf://"
# What a folder holds for reading. Of the other endings, most files tell about a corpus and are none of it.
_CORPUS_ENDINGS = (".txt", ".jsonl", ".ndjson", ".parquet")
_KINDS = {".txt": "text", ".text": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl",
          ".json": "jsonl", ".parquet": "parquet"}
KINDS = (".txt, .jsonl or .ndjson (also with .gz or .zst) or .parquet; .md, .text and .json where SOURCE "
         "names the ending, as in 'docs/**/*.md'")
# A `?` is one of a glob, but before what `open_store` understands; a `#` is one of a name.
_URL = re.compile(r"(?P<bucket>.*?://[^/?#]*)(?P<path>.*?)(?P<query>\?(?:endpoint|region)=.*)?")
_MAGIC = re.compile(r"[*?\[]")
# Text that a compressed byte stands for, about: only for cutting and for telling how far it is (guess).
_EXPANSION = 3


class FoundFiles(NamedTuple):
    """Files of a source.

    Attributes:
        address: Of the store they are in.
        names: In it.
        ignored: Names of files that were in the way and are not taken.
    """

    address: str
    names: list[str]
    ignored: list[str]


def file_kind(name: str) -> tuple[str, str] | None:
    """Kind (`text`, `jsonl`, `parquet`) and compression (`gz`, `zst` or none) by a file's name, or None."""
    ending, compression = _endings(name)
    kind = _KINDS.get(ending)
    return (kind, compression) if kind and not (kind == "parquet" and compression) else None


def file_ending(name: str) -> str:
    """`.jsonl.gz` of `a.b.jsonl.gz`; empty where there is none."""
    ending, compression = _endings(name)
    return ending + (f".{compression}" if compression else "")


def _endings(name: str) -> tuple[str, str]:
    path, compression = Path(name.lower()), ""
    if path.suffix in (".gz", ".zst"):
        path, compression = path.with_suffix(""), path.suffix[1:]
    return path.suffix, compression


def is_local(spec: str) -> bool:
    """True when only this machine has the source."""
    return spec != PYTHON_DOCS and ("://" not in spec or spec.startswith(("file://", "hf:///")))


def absolute_source(spec: str) -> str:
    """The same source for a process in another folder."""
    return spec if spec == PYTHON_DOCS or "://" in spec else str(Path(spec).expanduser().absolute())


def text_bytes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of text in files of these sizes, about: more than their own where they are compressed."""
    return {name: size * (_EXPANSION if (file_kind(name) or ("", ""))[1] else 1)
            for name, size in sizes.items()}


def file_sizes(store: Store, names: list[str]) -> dict[str, int]:
    """Bytes of each file. Raises ConfigError when one is not there."""
    if len(names) > 1:
        wanted = set(names)
        return {found.key: found.num_bytes for found in store.objects() if found.key in wanted}
    try:
        return {name: store.size(name) for name in names}
    except NotFoundError as error:
        raise ConfigError("there is no such object", place=error.place,
                          fix="name a file, a folder or a glob that is there") from error


def find_files(spec: str) -> FoundFiles:
    """The files that a path, a URL or a glob of either means.

    A named file is taken whatever it is called. A folder or a glob gives files of the known endings;
    those that seldom are text to train on (.md, .text, .json) only where the glob names the ending.

    Raises:
        ConfigError: There is nothing of that name, or nothing that can be read.
        StoreError: A cloud does not answer.
    """
    address, name, pattern = _split(spec)
    if name:
        return FoundFiles(address, [name], [])
    try:
        found = [item.key for item in open_store(address).objects() if item.num_bytes]
    except NotFoundError:
        found = []
    matching = re.compile(_as_regex(pattern))
    candidates = [name for name in found if matching.fullmatch(name)]
    names = [name for name in candidates if _is_taken(name, pattern)]
    if not names:
        raise ConfigError(f"there is no text: {len(candidates)} files match, none is {KINDS}", place=spec,
                          fix="name a file, a folder or a glob of such files")
    return FoundFiles(address, names, sorted(set(candidates) - set(names)))


def check_apart(spec: str, out: str) -> None:
    """Refuse a place for shards that holds their source, or lies where the source would take them in.

    Args:
        spec: The source.
        out: Address of the store for the shards.

    Raises:
        ConfigError: They are not apart, or there is nothing of that name.
    """
    if spec == PYTHON_DOCS or (spec.startswith(HUB) and not is_local(spec)):
        return
    files = spec.removeprefix(HUB).partition(":")[0] if spec.startswith(HUB) else spec
    address, name, pattern = _split(files)
    source, shards = urlsplit(address), urlsplit(out)
    if (source.scheme, source.netloc, source.query) != (shards.scheme, shards.netloc, shards.query):
        return
    folder, place = (f"{parts.path.rstrip('/')}/" for parts in (source, shards))
    matching, below = re.compile(_as_regex(pattern)), unquote(place.removeprefix(folder))
    if folder.startswith(place):
        problem = "the source lies in the place for its shards"
    elif place.startswith(folder) and not name and matching.fullmatch(f"{below}{PLAN}"):
        problem = "the place for the shards lies in their source"
    else:
        return
    raise ConfigError(problem, place=f"--out {out.partition('?')[0]}",
                      fix="name a folder of its own for the shards, outside of the source")


def _is_taken(name: str, pattern: str) -> bool:
    return file_kind(name) is not None and (
        _endings(name)[0] in _CORPUS_ENDINGS or pattern.lower().endswith(file_ending(name)))


def _split(spec: str) -> tuple[str, str | None, str]:
    """Address of a folder, and the file in it or a pattern of files."""
    if "://" in spec and not spec.startswith("file://"):
        return _split_url(spec)
    return _split_path(Path(unquote(spec.removeprefix("file://")) if "://" in spec else spec))


def _split_path(path: Path) -> tuple[str, str | None, str]:
    """As `_split`, of a path."""
    path = path.expanduser().absolute()
    if path.is_dir():
        return local_store_url(path), None, "**"
    if path.is_file():
        return local_store_url(path.parent), path.name, ""
    if not _MAGIC.search(str(path)):
        raise _not_there(path)
    fixed = next(index for index, part in enumerate(path.parts) if _MAGIC.search(part))
    base = Path(*path.parts[:fixed])
    if not base.is_dir():
        raise _not_there(base)
    return local_store_url(base), None, "/".join(path.parts[fixed:])


def _not_there(path: Path) -> ConfigError:
    return ConfigError("the source cannot be read: No such file or directory", place=str(path),
                       fix=f"name text that is there, or `{PYTHON_DOCS}`")


def _split_url(spec: str) -> tuple[str, str | None, str]:
    """As `_split`, of a URL: what ends like a file is one, what does not is a folder."""
    parts = _URL.fullmatch(spec)
    assert parts, spec  # whatever holds :// does
    segments = parts["path"].split("/")
    fixed = next((index for index, part in enumerate(segments) if _MAGIC.search(part)), len(segments))
    name = unquote(segments[-1]) if fixed == len(segments) and file_kind(segments[-1]) else None
    pattern = "" if name else unquote("/".join(segments[fixed:])) or "**"
    folder = "/".join(segments[:-1] if name else segments[:fixed])
    return store_url(f"{parts['bucket']}{folder}{parts['query'] or ''}"), name, pattern


def _as_regex(pattern: str) -> str:
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(words.get(part) or (part if part.startswith("[") else re.escape(part))
                   for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern))
