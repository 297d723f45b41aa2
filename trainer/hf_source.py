"""A Hugging Face dataset as a source, streamed: nothing is downloaded before it is read. No torch."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainer.contract import ConfigError, StoreError
from trainer.file_rows import Piece, Row, object_row
from trainer.text_sources import Unit, digest, folder_listing

_SPEC = re.compile(r"hf://(?P<name>/[^:]+|[^/@:]+/[^/@:]+)(?:@(?P<revision>[^/:]+))?(?:/(?P<config>[^/:]+))?"
                   r"(?::(?P<split>[\w.-]+))?")


class _Dataset(NamedTuple):
    """What `datasets.load_dataset` is told."""

    name: str
    revision: str | None
    config: str | None
    split: str


@dataclass
class HfSource:
    """A split of a dataset: one unit for each file that `datasets` can stream by itself."""

    spec: str
    text_key: str
    listing: str
    units: Sequence[Unit]
    dataset: _Dataset
    ignored: Sequence[str] = ()
    num_files: Mapping[str, int] = field(default_factory=dict)

    def rows(self, piece: Piece, lines: dict[str, int]) -> Iterator[Row]:
        """Rows of one file."""
        number = 0
        with _dataset_errors(self.spec):
            found = _load(self.dataset).shard(num_shards=len(self.units), index=piece.start)
            for number, row in enumerate(found, start=1):
                yield object_row(number, row, self.text_key)
        lines[piece.file] = number


def open_hf_source(spec: str, text_key: str) -> HfSource:
    """Find a dataset. Raises ConfigError when there is none, StoreError when the Hub does not answer."""
    parts = _SPEC.fullmatch(spec)
    if parts is None:
        raise ConfigError(f"{spec!r} names no dataset", place="source",
                          fix="write hf://owner/name, hf://owner/name@revision/config:split or hf:///folder:split")
    with _dataset_errors(spec):
        wanted = _Dataset(parts["name"], parts["revision"], parts["config"], parts["split"] or "train")
        if wanted.name.startswith("/"):
            content = folder_listing(Path(wanted.name))
        else:
            wanted = wanted._replace(revision=_commit(wanted))
            content = str(wanted.revision)
        found = _load(wanted)
        weight = (found.info.dataset_size or 0) // found.num_shards
        units = tuple(Unit((Piece(f"{spec}#{index}", index),), weight) for index in range(found.num_shards))
    return HfSource(spec, text_key, digest(wanted, content, len(units)), units, wanted)


def _commit(wanted: _Dataset) -> str:
    """The commit that a branch or tag means now: it must not change while several nodes read it."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(wanted.name, revision=wanted.revision).sha)


def _load(wanted: _Dataset) -> Any:
    import datasets
    from tqdm import tqdm

    datasets.disable_progress_bars()
    # tqdm's own lock is a semaphore of multiprocessing, which a worker that is ended would leave behind.
    tqdm.set_lock(threading.RLock())
    return datasets.load_dataset(wanted.name, wanted.config, split=wanted.split, revision=wanted.revision,
                                 streaming=True)


@contextmanager
def _dataset_errors(spec: str) -> Iterator[None]:
    """What `datasets` and the Hub raise, as ours."""
    import pyarrow
    from datasets.exceptions import DatasetsError
    from huggingface_hub import errors

    transport_error = errors.HfHubHTTPError.__bases__[0]  # of httpx, under the name it has this year
    try:
        yield
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ConfigError(f"the Hub does not give it: {_first_line(error)}", place=spec,
                          fix="check its name and revision; for a private or gated one, accept its terms on "
                              "its page and set HF_TOKEN") from error
    except (ConnectionError, TimeoutError, transport_error) as error:
        raise StoreError(f"the Hub cannot be reached: {_first_line(error)}", place=spec,
                         fix="try again; what is finished is kept") from error
    except (OSError, ValueError, DatasetsError, pyarrow.ArrowException) as error:
        raise ConfigError(f"the dataset cannot be read: {_first_line(error)}", place=spec,
                          fix="check its name, configuration and split; or read its files themselves: name "
                              "their folder, where a bad row is counted and passed over") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
