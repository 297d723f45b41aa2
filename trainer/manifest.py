"""What makes a checkpoint exist: its manifest, and how whole ones are found and read.

No DeepSpeed and no torch at import: the benchmark, sampling and the launcher read checkpoints here.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from trainer.config import Products, TokenEncoderConfig, WeightFormat
from trainer.contract import ExitCode, LdlmError, Name, checkpoint_folder
from trainer.pieces import Piece
from trainer.run_folder import RunFolder
from trainer.store import DamagedError, NotFoundError, StoredObject

_T = TypeVar("_T")
TIME_DENSITY = "time_density"  # among averaged weights: probability of each bin of time
FORMAT = 2  # of a manifest; 1 was DeepSpeed's own files, which bound a run to its number of ranks


class CheckpointError(LdlmError):
    """Checkpoints exist, but none can be trusted."""

    cli_exit_code = 6
    node_exit_code = ExitCode.BROKEN


class StoredFile(BaseModel):
    """One file of a checkpoint. `name` is relative to the checkpoint's folder."""

    model_config = ConfigDict(frozen=True)
    name: str
    num_bytes: int
    sha256: str


class EncoderIdentity(BaseModel):
    """Which token encoder made the hidden states.

    Attributes:
        name: As in the config; another name may stand for the same encoder.
        commit: Of its weights on the Hub; None for a folder or a package.
        kept_blocks: That run.
        weights: Format that they are held in.
        products: What blocks multiply in.
        prefix_token: One fixed token stands in front.
        source: Changes when the weights do; the same from the Hub, a folder with its files or a mirror.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    commit: str | None
    kept_blocks: int
    weights: WeightFormat
    products: Products = "bf16"
    prefix_token: bool
    source: str

    @property
    def key(self) -> str:
        """Equal where hidden states are."""
        prefix = "with" if self.prefix_token else "without"
        held = self.weights + ("" if self.products == "bf16" else f" multiplied in {self.products}")
        return f"{self.kept_blocks} blocks in {held}, {prefix} a prefix, weights {self.source}"

    def __str__(self) -> str:
        return f"{self.name}{f' at {self.commit[:12]}' if self.commit else ''} ({self.key})"


class Shard(BaseModel):
    """What one rank has stored of the state: one file. Its pieces have hashes of their own."""

    model_config = ConfigDict(frozen=True)
    name: str
    num_bytes: int


class Manifest(BaseModel):
    """The commit of a checkpoint.

    Attributes:
        format: Of what is described here; another is refused.
        step: Optimizer steps done.
        attempt: The attempt that saved it.
        world_size: Ranks that saved it; any other number can go on from it.
        shards: Of all ranks, by rank.
        pieces: Of which the shards are made: together, every element of every vector once.
        rest: Small tensors: buffers of the model, and what the timestep sampler has learned.
        groups: Name and shape of the parameters that lie end to end in the vector of each group.
        data_fingerprint: `Corpus.fingerprint` of the text that the steps so far were trained on.
        model: Arguments that rebuild the model without its token encoder.
        precision: In which the steps so far were computed; a restore needs the same.
        encoder: That the steps so far were trained with; None where that is not known.
    """

    model_config = ConfigDict(frozen=True)
    format: Literal[2] = FORMAT
    step: int
    attempt: int
    world_size: int
    shards: list[Shard]
    pieces: list[Piece]
    rest: StoredFile
    groups: list[dict[str, list[int]]]
    data_fingerprint: str
    model: dict[str, int]
    precision: str = ""
    encoder: EncoderIdentity | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by name."""
        return {file.name: file.num_bytes for file in (*self.shards, self.rest)}

    @property
    def num_bytes(self) -> int:
        """Size of the whole checkpoint."""
        return sum(self.sizes.values())

    @property
    def spared_bytes(self) -> int:
        """By which compression has made it smaller."""
        return sum(piece.spared_bytes for piece in self.pieces)

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Of every trained parameter, by name."""
        return {name: shape for group in self.groups for name, shape in group.items()}


class _AnyFormat(BaseModel):
    """What manifests of all formats say; the first did not name itself."""

    step: int
    format: int = 1


class Quarantine(BaseModel):
    """Why a checkpoint that was committed does not count: what an attempt found when it read it."""

    model_config = ConfigDict(frozen=True)
    reason: str
    attempt: int
    at: datetime


def pinned(config: TokenEncoderConfig, manifest: Manifest | None) -> TokenEncoderConfig:
    """The config of a run's encoder, at the commit that its first checkpoint was trained with.

    Only where it names no revision: the newest one may have moved on since.
    """
    began = manifest.encoder if manifest is not None else None
    if config.revision is not None or began is None or began.commit is None or began.name != config.name:
        return config
    return config.model_copy(update={"revision": began.commit})


def pinned_by_run(config: TokenEncoderConfig, folder: RunFolder) -> TokenEncoderConfig:
    """The same for a run by its newest complete checkpoint. Raises as `complete_checkpoints`."""
    return pinned(config, next(complete_checkpoints(folder, lambda _: None), None))


def complete_checkpoints(folder: RunFolder, say: Callable[[str], None],
                         listed: Sequence[StoredObject] | None = None) -> Iterator[Manifest]:
    """Every checkpoint whose manifest parses and whose files have their sizes, newest first.

    None that is in quarantine. One is read when it is asked for: most callers want the newest.

    Args:
        folder: The run.
        say: Told the name of each incomplete one, and why it does not count.
        listed: What is below its checkpoints; None: the store is asked.

    Raises:
        CheckpointError: One is in a format of another version.
        StoreError: They cannot be listed or read.
    """
    found = folder.store.objects(folder.key(Name.CHECKPOINTS)) if listed is None else listed
    sizes = {one.key: one.num_bytes for one in found}
    # From the objects: a local folder may be left over, empty, after its files were deleted.
    names = {key.removeprefix(folder.key(Name.CHECKPOINTS) + "/").split("/")[0] for key in sizes}
    for folder_name in sorted(names, reverse=True):
        path = f"{Name.CHECKPOINTS}/{folder_name}"
        if folder.key(f"{path}/{Name.QUARANTINE}") in sizes:
            say(f"checkpoint {folder_name} ignored: {_why_quarantined(folder, path)}")
            continue
        try:
            manifest = folder.read(f"{path}/{Name.MANIFEST}", Manifest)
        except NotFoundError:
            say(f"checkpoint {folder_name} has no manifest: its save did not finish; ignored")
            continue
        except DamagedError as error:
            _refuse_other_format(folder, path)
            say(f"checkpoint {folder_name} ignored: its manifest {error.problem}")
            continue
        torn = [name for name, num_bytes in manifest.sizes.items()
                if sizes.get(folder.key(f"{path}/{name}")) != num_bytes]
        if torn:
            say(f"checkpoint {folder_name} ignored: {torn[0]} is missing or has the wrong size")
        else:
            yield manifest


def named_objects(folder: RunFolder, step: int) -> list[StoredObject]:
    """What a listing would show of one checkpoint, asked for by name: listings may lag.

    Returns:
        Nothing where it has no manifest.

    Raises:
        StoreError: They cannot be asked for.
    """
    path, found = checkpoint_folder(step), []
    try:
        names = [*folder.read(f"{path}/{Name.MANIFEST}", Manifest).sizes]
    except NotFoundError:
        return []
    except DamagedError:
        names = []  # who reads it says so
    for name in (Name.MANIFEST, Name.QUARANTINE, *names):
        key = folder.key(f"{path}/{name}")
        with suppress(NotFoundError):
            found.append(StoredObject(key, folder.store.size(key)))
    return found


def _refuse_other_format(folder: RunFolder, path: str) -> None:
    """Raise CheckpointError where a manifest is whole, and of another version: to go on without it would be
    to begin anew, and to delete it."""
    try:
        found = folder.read(f"{path}/{Name.MANIFEST}", _AnyFormat)
    except (NotFoundError, DamagedError):
        return
    if found.format != FORMAT:
        raise CheckpointError(
            f"the checkpoint of step {found.step} is in format {found.format}, and this version reads "
            f"{FORMAT}",
            place=f"{folder.url}/{path}",
            fix="go on with the version of ldlm that wrote it, or start another run")


def _why_quarantined(folder: RunFolder, path: str) -> str:
    try:
        found = folder.read(f"{path}/{Name.QUARANTINE}", Quarantine)
    except (NotFoundError, DamagedError):
        return "in quarantine"
    return f"in quarantine since attempt {found.attempt} found it damaged: {found.reason}"


def quarantine(folder: RunFolder, step: int, reason: str, attempt: int) -> None:
    """Put a damaged checkpoint aside: no later attempt tries it again. Raises StoreError."""
    folder.write(f"{checkpoint_folder(step)}/{Name.QUARANTINE}",
                 Quarantine(reason=reason, attempt=attempt, at=datetime.now(UTC)))


def read_rest(folder: RunFolder, manifest: Manifest) -> bytes:
    """The small tensors of a checkpoint, in the format of safetensors. Raises DamagedError, NotFoundError."""
    name = f"{checkpoint_folder(manifest.step)}/{manifest.rest.name}"
    data = folder.read_bytes(name)
    if hashlib.sha256(data).hexdigest() != manifest.rest.sha256:
        raise DamagedError("its SHA-256 is not the manifest's: the file is corrupt",
                           place=f"{folder.url}/{name}")
    return data


def newest_readable(folder: RunFolder, read: Callable[[Manifest], _T], say: Callable[[str], None], *,
                    on_damaged: Callable[[Manifest, LdlmError], None] | None = None,
                    before: int | None = None,
                    listed: Sequence[StoredObject] | None = None) -> tuple[Manifest, _T] | None:
    """The newest complete checkpoint that can be read, with what was read.

    Args:
        folder: The run.
        read: Reads what is wanted of one; DamagedError and NotFoundError make the one before be tried.
        say: Told about each checkpoint that is passed over.
        on_damaged: Told instead about those that could not be read.
        before: When given, only checkpoints of earlier steps than this one.
        listed: See `complete_checkpoints`.

    Returns:
        None when the run has no checkpoint yet.

    Raises:
        CheckpointError: There are committed checkpoints, but every one is damaged. Starting again
            from step 0 would silently throw paid work away.
        StoreError: The store cannot be read now. That is no reason to take an older checkpoint.
    """
    # One listing for both: where listings lag, nothing is damaged.
    listed = folder.store.objects(folder.key(Name.CHECKPOINTS)) if listed is None else listed
    for manifest in complete_checkpoints(folder, say, listed):
        if before is not None and manifest.step >= before:
            continue
        try:
            return manifest, read(manifest)
        except (DamagedError, NotFoundError) as error:
            if on_damaged is None:
                say(f"checkpoint of step {manifest.step} not used: {error}")
            else:
                on_damaged(manifest, error)
    committed = [found for found in listed if found.key.endswith("/" + Name.MANIFEST)]
    if committed:
        raise CheckpointError(
            f"all {len(committed)} committed checkpoints are damaged",
            place=f"{folder.url}/{Name.CHECKPOINTS}",
            fix=f"if the machine was at fault and not they, delete their {Name.QUARANTINE} and resume; else "
                "restore one from a backup, or, to train again from step 0, delete that folder")
    return None
