"""Models of the Hugging Face Hub: only files that hold wanted tensors, each verified, once per machine.

huggingface_hub moves and caches them, under HF_HOME. It keeps every file that arrived whole and mends
a broken connection itself; what it does not do is compare their hashes.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from trainer.contract import ConfigError, StoreError
from trainer.encoder_files import CONFIG_FILE, TOKENIZER_FILES
from trainer.encoder_weights import INDEX_FILE, SINGLE_FILE, Checkpoint
from trainer.local_cache import LocalDiskError, cache_folder, is_disk_error, is_verified, one_at_a_time
from trainer.trunk import first_line

_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubModel:
    """One model of the Hub at one revision.

    Attributes:
        commit: That the revision names; known once the Hub had to be asked.
    """

    def __init__(self, name: str, revision: str | None, say: Callable[[str], None]) -> None:
        self.commit: str | None = None
        self._name, self._revision, self._say = name, revision, say
        self._lock = cache_folder() / "hub" / f"{name.replace('/', '--')}.lock"

    def checkpoint(self, layer: int) -> Checkpoint:
        """The checkpoint with the files of the kept blocks, taken from this machine or fetched.

        Raises:
            ConfigError: No such model, revision or layer; it is gated; it has no usable weights.
            StoreError: The Hub cannot be reached, or the download was cut off.
        """
        with one_at_a_time(self._lock):
            return self._cached(layer) or self._fetched(layer)

    def tokenizer(self) -> Path:
        """A folder with config and tokenizer. Raises as `checkpoint`."""
        with one_at_a_time(self._lock), _explained(self._name, self._revision):
            for name in TOKENIZER_FILES:
                path = self._on_this_machine(name)
                if path is not None and self._on_this_machine(CONFIG_FILE):
                    return path.parent
            return self._fetch_small()[0]

    def _cached(self, layer: int) -> Checkpoint | None:
        """What an earlier download has left, when that is all that is needed."""
        config, index = self._on_this_machine(CONFIG_FILE), self._on_this_machine(INDEX_FILE)
        if config is None or (index is None and self._on_this_machine(SINGLE_FILE) is None):
            return None
        # The cache names a folder by its commit.
        checkpoint = Checkpoint(config.parent, layer, self._name, config.parent.name)
        paths = [self._on_this_machine(name) for name in checkpoint.needed_files()]
        if not all(path is not None and _is_sound(path) for path in paths):
            return None
        return checkpoint

    def _fetched(self, layer: int) -> Checkpoint:
        with _explained(self._name, self._revision):
            folder, names = self._fetch_small()
            if INDEX_FILE not in names:
                if SINGLE_FILE not in names:
                    raise ConfigError("it has no weights as .safetensors",
                                      place=f"token_encoder.name: {self._name}",
                                      fix="name another model or revision")
                self._fetch_verified(SINGLE_FILE)
            checkpoint = Checkpoint(folder, layer, self._name, self.commit)
            needed = checkpoint.needed_files()
            for number, name in enumerate(needed, 1):
                self._say(f"{self._name}: file {number} of {len(needed)}, {name}")
                self._fetch_verified(name)
        return checkpoint

    def _fetch_small(self) -> tuple[Path, set[str]]:
        """Fetch config, index and tokenizer: their folder, and the names of all files of the model."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            # By the name of the revision, which the cache then knows; all others by the commit behind it.
            folder = self._fetch(CONFIG_FILE, self._revision).parent
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # says that the Hub cannot be reached
                raise
            raise ConfigError("it has no config.json", place=f"token_encoder.name: {self._name}",
                              fix="name a model in Hugging Face layout") from error
        self.commit = folder.name
        info = HfApi(endpoint=_endpoint()).model_info(self._name, revision=self.commit)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        for name in (*TOKENIZER_FILES, INDEX_FILE):
            if name in names:
                self._fetch(name, self.commit)
        return folder, names

    def _fetch_verified(self, name: str) -> None:
        for _ in range(2):
            path = self._fetch(name, self.commit)
            if _is_sound(path):
                return
            self._say(f"{self._name}: {name} is damaged (SHA-256 differs), fetching it again")
            path.resolve().unlink()
            path.unlink()
        raise StoreError("it was damaged twice on its way here", place=f"{self._name}/{name}",
                         fix="try again later, or from another network")

    def _fetch(self, name: str, revision: str | None) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self._name, name, revision=revision, endpoint=_endpoint()))

    def _on_this_machine(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self._name, name, revision=self._revision)
        return Path(found) if isinstance(found, str) else None


def _endpoint() -> str | None:
    # huggingface_hub reads it once, at import.
    return os.environ.get("HF_ENDPOINT")


def _is_sound(path: Path) -> bool:
    """True if the content has the hash that the Hub names it by."""
    blob = path.resolve()
    # Small files are not named by a hash of their bytes alone.
    return not _SHA256.fullmatch(blob.name) or is_verified(blob, blob.name)


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into ours."""
    from huggingface_hub import errors

    place = f"token_encoder.name: {name}"
    try:
        yield
    except (ConfigError, StoreError):
        raise
    except errors.GatedRepoError as error:
        raise ConfigError("this model asks to accept its licence first", place=place,
                          fix=f"accept it at https://huggingface.co/{name}, then set HF_TOKEN to a token of "
                              "that account (on rented machines too)") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"it has no revision {revision}", place="token_encoder.revision",
                          fix="name a commit or tag of this model, or leave it out for the newest") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ConfigError("there is no such model on the Hub, or it is private", place=place,
                          fix="check the name; for a private model set HF_TOKEN") from error
    except errors.OfflineModeIsEnabled as error:
        raise _offline(place) from error
    # Whichever HTTP library it is built on: its base class is that of these errors.
    except (OSError, *errors.HfHubHTTPError.__bases__) as error:
        # huggingface_hub words it of its own when it finds neither the Hub nor an earlier download.
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        if isinstance(cause, errors.OfflineModeIsEnabled):
            raise _offline(place) from error
        if _is_unreachable(cause):
            raise StoreError(f"the Hub cannot be reached: {first_line(cause)}", place=place,
                             fix="check the network, the proxy and HF_ENDPOINT, and run the same command "
                             "again; without a network name a folder that holds the model") from error
        if isinstance(error, OSError) and is_disk_error(error):
            raise LocalDiskError(f"cannot be kept on this disk: {error.strerror}", place=place,
                                 fix="free disk space, or set HF_HOME to a folder on another disk") from error
        raise StoreError(f"the download was cut off: {first_line(error)}", place=place,
                         fix="run the same command again: it keeps the files that arrived whole") from error


def _is_unreachable(error: BaseException | None) -> TypeGuard[BaseException]:
    """No connection came about: by the names that httpx and requests give to this."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectError", "ConnectTimeout", "ProxyError", "ConnectionRefusedError"})


def _offline(place: str) -> ConfigError:
    return ConfigError("it is not on this machine, and HF_HUB_OFFLINE is set", place=place,
                       fix="unset HF_HUB_OFFLINE, or put the model into the store: ldlm weights mirror")
