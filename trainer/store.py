"""Object storage behind one small interface: `file://`, `s3://`, `gs://`, `az://`, all over obstore.

An object appears whole or not at all; keys are relative to the URL. No torch here: the launcher
reads run folders through this file too.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from trainer import aws
from trainer.contract import ConfigError, Env, ExitCode, StoreError
from trainer.store_words import explained

_MAX_RETRIES = 6
# Of a file that is read by ranges (guess: a request to a cloud takes as long as a few MB).
READ_AHEAD_BYTES = 8 * 2**20
# Of what is streamed: S3 takes 10,000 parts, so 156 GiB of one rank (guess: a part is a second at 1 Gbit/s).
_PART_BYTES = 16 * 2**20
_PARTS_AT_A_TIME = 8
_LITTLE_BYTES = 2**20  # to send
_SCHEMES = ("file", "s3", "gs", "az")


def is_draft(name: str) -> bool:
    """True for a file on a disk that a write has not finished; obstore's, and no listing shows it."""
    return re.search(r"#\d+$", name) is not None


class StoredObject(NamedTuple):
    """One listed object: key relative to the store, size in bytes."""

    key: str
    num_bytes: int


class AlreadyExistsError(StoreError):
    """`put(create=True)` found an object under that key."""


class NotFoundError(StoreError):
    """No object under that key."""


class DamagedError(StoreError):
    """An object could be read, but it is not what was written: no retry can help."""

    node_exit_code = ExitCode.BAD_CONFIG


class _Patience(NamedTuple):
    """How long one request may take with all that it carries, for how long it is tried again, and how long
    the server may be silent."""

    timeout: timedelta
    tried_for: timedelta
    silence: timedelta | None = None


# All of these are guesses, not measured on a real cloud. What carries little fails soon: a heartbeat is worth
# less than obstore's own three minutes.
_ASKING = _Patience(timedelta(seconds=30), timedelta(seconds=60))
# Parts share a slow line with those of other ranks: 1 GiB, of 8 ranks, takes 5 minutes of 30 Mbit/s.
_SENDING = _Patience(timedelta(minutes=5), timedelta(minutes=10))
# Only of what is read can a slow line be told from a dead one: to obstore 0.12.1 a body that is being sent is
# silence (probed).
_READING = _Patience(timedelta(minutes=15), timedelta(minutes=10), silence=timedelta(seconds=30))


class Store:
    """A folder in object storage. Open with `open_store`.

    Attributes:
        url: Where it is, for people and for places in messages.
        address: What `open_store` was given: opens it again, endpoint and region included.
    """

    def __init__(self, url: str, address: str, backend: Any,
                 with_patience: Callable[[_Patience], Any] | None = None) -> None:
        self.url = url
        self.address = address
        self._backend = backend
        self._with_patience = with_patience

    @cached_property
    def _sending(self) -> Any:
        return self._with_patience(_SENDING) if self._with_patience else self._backend

    @cached_property
    def _reading(self) -> Any:
        return self._with_patience(_READING) if self._with_patience else self._backend

    @property
    def local_folder(self) -> Path | None:
        """The folder behind a store on this disk; None for a bucket."""
        return Path(unquote(urlsplit(self.url).path)) if self.url.startswith("file://") else None

    def put(self, key: str, data: bytes | memoryview | Path, *, create: bool = False) -> None:
        """Write one object, atomically.

        Args:
            key: Path below the store's URL.
            data: Whole content, or the file that holds it: large ones are sent part by part.
            create: Refuse to replace an object that is there.

        Raises:
            AlreadyExistsError: `create` and the key exists.
            StoreError: Anything else: no permission, disk full, no network.
        """
        import obstore

        is_little = not isinstance(data, Path) and memoryview(data).nbytes <= _LITTLE_BYTES
        with _as_store_errors(f"{self.url}/{key}", "write"):
            # Conditional puts exist for single requests only; what is created so is small.
            obstore.put(self._backend if is_little else self._sending, key, data,
                        mode="create" if create else "overwrite", use_multipart=False if create else None)

    def stream(self, key: str, buffers: Iterable[bytes | memoryview]) -> None:
        """Write one object, atomically, from what comes bit by bit: parts of it are under way at a time.

        Raises:
            StoreError: As `put`.
        """
        import obstore

        with _as_store_errors(f"{self.url}/{key}", "write"):
            obstore.put(self._sending, key, iter(buffers), use_multipart=True, chunk_size=_PART_BYTES,
                        max_concurrency=_PARTS_AT_A_TIME)

    def get(self, key: str) -> bytes:
        """Read one object whole. Raises NotFoundError when there is none."""
        import obstore

        with _as_store_errors(f"{self.url}/{key}", "read"):
            return bytes(obstore.get(self._reading, key).bytes())

    def size(self, key: str) -> int:
        """Bytes of one object. Raises NotFoundError when there is none."""
        import obstore

        with _as_store_errors(f"{self.url}/{key}", "read"):
            return int(obstore.head(self._backend, key)["size"])

    def written_at(self, key: str) -> datetime:
        """When an object was written, by the store's clock, to the second. Raises NotFoundError."""
        import obstore

        with _as_store_errors(f"{self.url}/{key}", "read"):
            return obstore.head(self._backend, key)["last_modified"]

    def open(self, key: str, read_ahead_bytes: int = READ_AHEAD_BYTES) -> BinaryIO:
        """One object as a file that is read by ranges, so that it need not fit into memory."""
        return io.BufferedReader(_RangeReader(self, key), read_ahead_bytes)

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        """Bytes [start, end) of one object, not copied. Raises NotFoundError when there is none."""
        import obstore

        with _as_store_errors(f"{self.url}/{key}", "read"):
            return memoryview(obstore.get_range(self._reading, key, start=start, end=end))

    def objects(self, prefix: str = "") -> list[StoredObject]:
        """All objects below a folder, in key order. `prefix` names whole path segments."""
        import obstore

        with _as_store_errors(f"{self.url}/{prefix}", "list"):
            found = [StoredObject(meta["path"], meta["size"])
                     for batch in obstore.list(self._backend, prefix or None) for meta in batch]
        return sorted(found)

    def versions(self, prefix: str = "") -> dict[str, str]:
        """What changes when an object is written again, by key: its ETag; on a local disk the second
        of its last change, which copying a folder with its times keeps."""
        import obstore

        local = self.local_folder is not None
        with _as_store_errors(f"{self.url}/{prefix}", "list"):
            found = [meta for batch in obstore.list(self._backend, prefix or None) for meta in batch]
        return {meta["path"]: str(int(meta["last_modified"].timestamp())) if local else meta["e_tag"] or ""
                for meta in found}

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below `prefix`, sorted."""
        import obstore

        with _as_store_errors(f"{self.url}/{prefix}", "list"):
            listing = obstore.list_with_delimiter(self._backend, prefix or None)
        return sorted(path.rsplit("/", 1)[-1] for path in listing["common_prefixes"])

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects one after the other, in the order given. Missing ones are no error."""
        import obstore

        for key in keys:
            with _as_store_errors(f"{self.url}/{key}", "delete"):
                try:
                    obstore.delete(self._backend, key)
                except FileNotFoundError:
                    continue


def check_refuses(store: Store, key: str) -> None:
    """See that nobody else can create the object that is there, as two machines could one attempt.

    Raises:
        StoreError: The store has written over it, or cannot be asked.
    """
    with suppress(AlreadyExistsError):
        store.put(key, store.get(key), create=True)
        raise StoreError("writes over an object that it was told to create (If-None-Match)", place=store.url,
                         fix="use a store that keeps this condition, as S3, GCS, Azure, R2 and MinIO do")


class _RangeReader(io.RawIOBase):
    """The bytes of an object by position; io.BufferedReader makes a file of it."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key, self._size, self._position = store, key, store.size(key), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = offset + origins[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._position + len(buffer))
        if end <= self._position:
            return 0
        data = self._store.get_range(self._key, self._position, end)
        buffer[:len(data)] = data
        self._position += len(data)
        return len(data)


def named_store(option: str | None) -> Store:
    """The store of runs that a command names, else that of the environment.

    Raises:
        ConfigError: Neither names one, or it is no URL of a store.
    """
    url = option or os.environ.get(Env.STORE)
    if not url:
        raise ConfigError("it is not said in which store the run is", place="--store",
                          fix=f"add --store URL, or set {Env.STORE}; `ldlm` finds runs by itself")
    return open_store(url)


def open_store(url: str) -> Store:
    """Open a store by URL, without touching the network.

    Args:
        url: A folder of this machine (`./data`, `/data`, `file:///data`),
            `s3://bucket/prefix?endpoint=…&region=…`, `gs://bucket/prefix` or
            `az://ACCOUNT/CONTAINER/prefix`; of the last two `?region=…` says where they are, for their price.
            Credentials come from where each cloud's own tools look: environment, profile, instance metadata.

    Raises:
        StoreError: The URL is not one of these, or a local folder cannot be made.
    """
    url = store_url(url)
    parts = urlsplit(url)
    has_path = bool(parts.path.strip("/"))
    has_place = {"file": has_path and not parts.netloc, "az": has_path and bool(parts.netloc)}
    if parts.scheme not in _SCHEMES or not has_place.get(parts.scheme, bool(parts.netloc)):
        raise StoreError(f"cannot open a store at {url!r}", place="store",
                         fix="use a folder (./dir, /dir), s3://bucket/prefix, gs://bucket/prefix "
                             "or az://ACCOUNT/CONTAINER/prefix")
    clean = parts._replace(query="").geturl().rstrip("/")
    if parts.scheme == "file" and Path(unquote(parts.path)).is_file():
        raise StoreError("is a file, and a store is a folder", place=clean, fix="name a folder")
    options = dict(parse_qsl(urlsplit(aws.complete_address(url)).query))
    with _as_store_errors(clean, "open"):
        backend = _open_backend(parts.scheme, clean, options, _ASKING)
        if parts.scheme == "file":
            return Store(clean, url, backend)
        return Store(clean, url, backend, partial(_open_backend, parts.scheme, clean, options))


def sub_address(address: str, path: str) -> str:
    """The address of the folder `path` of the store at `address`."""
    parts = urlsplit(address)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{path}").geturl()


def may_exist(address: str) -> bool:
    """False for a folder of this machine that is not there: opening it as a store would make it."""
    return not address.startswith("file://") or Path(unquote(urlsplit(address).path)).exists()


def store_url(text: str) -> str:
    """The URL of a store that may be typed as a path: `data` and `./data` are folders of this machine."""
    # `s3:bucket` and `s3:/bucket` are slips, and no folder of that name is meant.
    if text and not re.match(r"[a-z][a-z0-9+.-]*:", text):
        return local_store_url(Path(text))
    return text.replace("#", "%23")  # of a key: what follows it belongs to the URL


def local_store_url(folder: Path) -> str:
    """`file://` URL of a folder on this machine."""
    return folder.expanduser().resolve().as_uri()


def _open_backend(scheme: str, url: str, options: dict[str, str], patience: _Patience) -> Any:
    from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

    if scheme == "file":
        return LocalStore.from_url(url, mkdir=True)
    client: dict[str, Any] = {"timeout": patience.timeout}
    if patience.silence:
        client["read_timeout"] = patience.silence
    retry: dict[str, Any] = {"max_retries": _MAX_RETRIES, "retry_timeout": patience.tried_for}
    if scheme == "gs":
        return GCSStore.from_url(url, client_options=client, retry_config=retry)
    if scheme == "az":
        # obstore would take the account for the container.
        account, _, path = url.removeprefix("az://").partition("/")
        container, _, prefix = path.partition("/")
        return AzureStore(container, prefix=unquote(prefix) or None, account_name=account,
                          client_options=client, retry_config=retry)
    settings: dict[str, Any] = {key: options[key] for key in ("endpoint", "region") if key in options}
    if settings.get("endpoint", "").startswith("http://"):
        client["allow_http"] = True
    return S3Store.from_url(url, client_options=client, retry_config=retry,
                            credential_provider=aws.AwsCredentials(), **settings)


@contextmanager
def _as_store_errors(place: str, verb: str) -> Iterator[None]:
    """Turn what obstore raises into ours, with its first line and without its debug dump."""
    from obstore import exceptions

    try:
        yield
    except exceptions.AlreadyExistsError as error:
        raise AlreadyExistsError("it exists already", place=place) from error
    except FileNotFoundError as error:
        if verb in ("read", "delete"):
            raise NotFoundError("no such object", place=place) from error
        raise explained(str(error).strip(), place, verb) from error
    except (exceptions.BaseError, OSError) as error:
        raise explained(str(error).strip(), place, verb) from error
