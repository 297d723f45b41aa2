"""The mirror of a truncated trunk in a store: where it lies, what is in it, how it comes to this machine."""

import hashlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.config import TokenEncoderConfig, WeightFormat
from trainer.contract import Name
from trainer.encoder_shape import blocks_to_keep
from trainer.local_cache import cache_folder, one_at_a_time
from trainer.manifest import StoredFile
from trainer.store import DamagedError, NotFoundError, Store
from trainer.transfers import Progress, check_files, fetch_files, unsound

NEWEST = ""
_FOLDER = "weights"
_COMMIT_DIGITS = 12
_LONG_AGO = datetime.min.replace(tzinfo=UTC)  # of a mirror that is found by its commit


class MirrorManifest(BaseModel):
    """The commit of a mirror: written last.

    Attributes:
        name: Of the model.
        asked: Each revision that was asked for, and when last; `NEWEST` stands for none.
        commit: On the Hub; None for a folder or a package.
        source: `Weights.source` of what it was made from.
        num_blocks: Of the whole model.
        kept_blocks: That are here.
        weights: Format of the blocks' matrices.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    asked: dict[str, datetime]
    commit: str | None
    source: str
    num_blocks: int
    kept_blocks: int
    weights: WeightFormat
    files: list[StoredFile]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.num_bytes for file in self.files)


    def command(self, store: Store, *options: str) -> str:
        """What writes this mirror again."""
        revision = next((f"--revision {told} " for told in self.asked if told != NEWEST), "")
        # hidden_states has one entry more than there are blocks.
        layer = self.kept_blocks - self.num_blocks - 1
        return " ".join([f"ldlm weights mirror --name {self.name} {revision}--layer {layer} "
                         f"--weights {self.weights} --store {store.address}", *options])


def mirror_key(name: str, num_kept: int, weights: WeightFormat, commit: str | None) -> str:
    """Folder of a mirror in its store: `weights/Qwen--Qwen3.6-27B/62-blocks-bf16-0123456789ab`.

    It ends with the commit where there is one, so that revisions stand side by side.
    """
    return f"{_model_key(name)}/{num_kept}-blocks-{weights}{f'-{commit[:_COMMIT_DIGITS]}' if commit else ''}"


def find_mirror(store: Store, config: TokenEncoderConfig) -> tuple[str, MirrorManifest] | None:
    """Key and manifest of a complete mirror that serves this config: in its format, else in bf16.

    Raises:
        ConfigError: There is a mirror, and the model has no such layer.
        StoreError: The store cannot be read.
    """
    found = mirrors_by_format(store, config)
    return found.get(config.weights) or found.get("bf16")


def mirrors_by_format(store: Store, config: TokenEncoderConfig
                      ) -> dict[WeightFormat, tuple[str, MirrorManifest]]:
    """Keys and manifests of complete mirrors of this model, revision and layer, one for each format there is.

    A revision is found by the word it was mirrored under, or by its commit. `revision: null` takes what
    was mirrored without a revision, of several commits the one that was asked for last; a mirror of a
    named revision need not be the newest, and does not serve it.

    Raises:
        ConfigError: There is a mirror, and the model has no such layer.
        StoreError: The store cannot be read.
    """
    keys = [f"{_model_key(config.name)}/{folder}" for folder in store.folders(_model_key(config.name))]
    found = [(key, manifest) for key in keys if (manifest := read_manifest(store, key)) is not None
             and (_asked(config) in manifest.asked or _asked(config) == manifest.commit)]
    found.sort(key=lambda pair: pair[1].asked.get(_asked(config), _LONG_AGO), reverse=True)
    fitting: dict[WeightFormat, tuple[str, MirrorManifest]] = {}
    for key, manifest in found:
        if manifest.kept_blocks == blocks_to_keep(config.layer, manifest.num_blocks, config.name):
            fitting.setdefault(manifest.weights, (key, manifest))
    return fitting


def read_manifest(store: Store, key: str) -> MirrorManifest | None:
    """The manifest of a mirror; None when it is not complete.

    Raises:
        StoreError: The store cannot be read, or the manifest is damaged.
    """
    try:
        return MirrorManifest.model_validate_json(store.get(f"{key}/{Name.MANIFEST}"))
    except NotFoundError:
        return None
    except ValidationError as error:
        raise DamagedError("the manifest of this mirror is damaged",
                           place=f"{store.url}/{key}/{Name.MANIFEST}",
                           fix="delete it and write the mirror again: ldlm weights mirror") from error


def fetch_mirror(store: Store, key: str, manifest: MirrorManifest, say: Callable[[str], None], *,
                 only: Iterable[str] | None = None) -> Path:
    """The folder on this machine with the files of a mirror: a copy, or the store itself if it is here.

    Their hashes are checked once per machine, and again when a file has changed since.
    Processes of one machine may call this together: one fetches, the others wait.

    Args:
        store: That holds it.
        key: Its folder there.
        manifest: Its files.
        say: Told of progress.
        only: Names of the files that are wanted; all by default.

    Raises:
        StoreError: As `fetch_files`.
    """
    wanted = [file for file in manifest.files if only is None or file.name in set(only)]
    fix = manifest.command(store, "--verify")
    if store.local_folder is not None:
        with one_at_a_time(cache_folder() / f"{key}.lock"):
            check_files(store.local_folder / key, wanted, fix)
        return store.local_folder / key
    # Another mirror under the same key has other hashes, and so a folder of its own.
    content = hashlib.sha256("".join(sorted(file.sha256 for file in manifest.files)).encode())
    folder = cache_folder() / key / content.hexdigest()[:12]
    # A rank that wants the tokenizer does not wait for who fetches weights.
    if only is not None and not unsound(folder, wanted):
        return folder
    with one_at_a_time(folder.with_suffix(".lock")):
        missing = unsound(folder, wanted)
        if missing:
            total_bytes = sum(file.num_bytes for file in missing)
            with Progress(f"weights of {manifest.name}", total_bytes, say) as progress:
                fetch_files(store, key, missing, folder, progress, fix)
    return folder


def _asked(config: TokenEncoderConfig) -> str:
    return config.revision or NEWEST


def _model_key(name: str) -> str:
    return f"{_FOLDER}/{name.strip('/').replace('/', '--')}"
