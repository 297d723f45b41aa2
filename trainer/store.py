"""Object storage behind one small interface: `file://`, `s3://`, `gs://`, `az://`, all over obstore.

An object appears whole or not at all; keys are relative to the URL. No torch here: the launcher
reads run folders through this file too.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from trainer.contract import StoreError

# obstore's own defaults retry for three minutes. A heartbeat is worth less than that, a checkpoint
# is tried again at its next interval (guess, not measured on a real cloud).
_RETRY: dict[str, Any] = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
_SCHEMES = ("file", "s3", "gs", "az")


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


class Store:
    """A folder in object storage. Open with `open_store`."""

    def __init__(self, url: str, backend: Any) -> None:
        self.url = url
        self._backend = backend

    def put(self, key: str, data: bytes | memoryview, *, create: bool = False) -> None:
        """Write one object, atomically.

        Args:
            key: Path below the store's URL.
            data: Whole content.
            create: Refuse to replace an object that is there.

        Raises:
            AlreadyExistsError: `create` and the key exists.
            StoreError: Anything else: no permission, disk full, no network.
        """
        import obstore

        with _as_store_errors(f"{self.url}/{key}", "write"):
            # Conditional puts exist for single requests only; what is created so is small.
            obstore.put(self._backend, key, data, mode="create" if create else "overwrite",
                        use_multipart=False if create else None)

    def get(self, key: str) -> bytes:
        """Read one object whole. Raises NotFoundError when there is none."""
        import obstore

        with _as_store_errors(f"{self.url}/{key}", "read"):
            return bytes(obstore.get(self._backend, key).bytes())

    def objects(self, prefix: str = "") -> list[StoredObject]:
        """All objects below a folder, in key order. `prefix` names whole path segments."""
        import obstore

        with _as_store_errors(f"{self.url}/{prefix}", "list"):
            found = [StoredObject(meta["path"], meta["size"])
                     for batch in obstore.list(self._backend, prefix or None) for meta in batch]
        return sorted(found)

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


def open_store(url: str) -> Store:
    """Open a store by URL, without touching the network.

    Args:
        url: `file:///dir`, `s3://bucket/prefix?endpoint=…&region=…`, `gs://bucket/prefix` or
            `az://ACCOUNT/CONTAINER/prefix`. Credentials come from where each cloud's own tools
            look: environment, profile, instance metadata.

    Raises:
        StoreError: The URL is not one of these, or a local folder cannot be made.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or (parts.scheme != "file" and not parts.netloc):
        raise StoreError(f"cannot open a store at {url!r}", place="store",
                         fix="use file:///dir, s3://bucket/prefix, gs://bucket/prefix "
                             "or az://ACCOUNT/CONTAINER/prefix")
    clean = parts._replace(query="").geturl().rstrip("/")
    options = dict(parse_qsl(parts.query))
    with _as_store_errors(clean, "open"):
        return Store(clean, _open_backend(parts.scheme, clean, options))


def local_store_url(folder: Path) -> str:
    """`file://` URL of a folder on this machine."""
    return folder.expanduser().resolve().as_uri()


def _open_backend(scheme: str, url: str, options: dict[str, str]) -> Any:
    from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

    if scheme == "file":
        return LocalStore.from_url(url, mkdir=True)
    if scheme == "gs":
        return GCSStore.from_url(url, retry_config=_RETRY)
    if scheme == "az":
        return AzureStore.from_url(url, retry_config=_RETRY)
    settings: dict[str, Any] = {key: options[key] for key in ("endpoint", "region") if key in options}
    client: dict[str, Any] = {}
    if settings.get("endpoint", "").startswith("http://"):
        client["allow_http"] = True
    return S3Store.from_url(url, retry_config=_RETRY, client_options=client,
                            credential_provider=_aws_credentials(), **settings)


def _aws_credentials() -> Any:
    """Profiles, SSO and assumed roles through boto3; None leaves the rest to obstore."""
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    return Boto3CredentialProvider(session) if session.get_credentials() else None


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
        raise StoreError(f"cannot {verb}: {_first_line(error)}", place=place,
                         fix="check that the bucket or folder exists") from error
    except (exceptions.BaseError, OSError) as error:
        raise StoreError(f"cannot {verb}: {_first_line(error)}", place=place,
                         fix=_fix_for(str(error))) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]


def _fix_for(message: str) -> str:
    lowered = message.lower()
    if "no space left" in lowered:
        return "free disk space, or name another store with --store"
    if any(word in lowered for word in ("permission", "denied", "read-only", "forbidden", "403")):
        return "check the folder's permissions or the key's rights, or name another store with --store"
    if any(word in lowered for word in ("credential", "token", "401", "unauthenticated")):
        return "renew the credentials of this store and try again"
    return "check the store's URL, region and endpoint, and that it is reachable from here"
