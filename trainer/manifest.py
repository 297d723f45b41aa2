"""What makes a checkpoint exist: its manifest, and how the newest whole one is found and verified.

No DeepSpeed and no torch at import: the benchmark, sampling and the launcher read checkpoints here.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from trainer.config import TokenEncoderConfig, WeightFormat
from trainer.contract import ExitCode, LdlmError, Name, checkpoint_folder
from trainer.run_folder import RunFolder
from trainer.store import DamagedError, NotFoundError

TIME_DENSITY = "time_density"  # beside the averaged weights: probability of each bin of time
_AVERAGES = "averages-"


def averages_file(rank: int) -> str:
    """File of one rank's fragments of the averaged weights, without the attempt in front."""
    return f"{_AVERAGES}{rank:04d}.safetensors"


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
        prefix_token: One fixed token stands in front.
        source: Changes when the weights do; the same from the Hub, a folder with its files or a mirror.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    commit: str | None
    kept_blocks: int
    weights: WeightFormat
    prefix_token: bool
    source: str

    @property
    def key(self) -> str:
        """Equal where hidden states are."""
        prefix = "with" if self.prefix_token else "without"
        return f"{self.kept_blocks} blocks in {self.weights}, {prefix} a prefix, weights {self.source}"

    def __str__(self) -> str:
        return f"{self.name}{f' at {self.commit[:12]}' if self.commit else ''} ({self.key})"


class Manifest(BaseModel):
    """The commit of a checkpoint.

    Attributes:
        step: Optimizer steps done.
        attempt: The attempt that saved it.
        world_size: Ranks; a plain restore needs as many.
        files: Every file, shards of all ranks.
        data_fingerprint: `Corpus.fingerprint` of the text that the steps so far were trained on.
        model: Arguments that rebuild the model without its token encoder.
        shapes: Of every averaged weight, by name.
        engine: Precision and ZeRO stage that saved it; a restore needs the same.
        encoder: That the steps so far were trained with; None where that is not known.
    """

    model_config = ConfigDict(frozen=True)
    step: int
    attempt: int
    world_size: int
    files: list[StoredFile]
    data_fingerprint: str
    model: dict[str, int]
    shapes: dict[str, list[int]] = {}
    engine: str = ""
    encoder: EncoderIdentity | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the whole checkpoint."""
        return sum(file.num_bytes for file in self.files)


def pinned(config: TokenEncoderConfig, manifest: Manifest | None) -> TokenEncoderConfig:
    """The config of a run's encoder, at the commit that its first checkpoint was trained with.

    Only where it names no revision: the newest one may have moved on since.
    """
    began = manifest.encoder if manifest is not None else None
    if config.revision is not None or began is None or began.commit is None or began.name != config.name:
        return config
    return config.model_copy(update={"revision": began.commit})


def complete_checkpoints(folder: RunFolder, say: Callable[[str], None]) -> list[Manifest]:
    """Every checkpoint whose manifest parses and whose files have their sizes, newest first.

    Args:
        folder: The run.
        say: Told the name of each incomplete one, and why it does not count.
    """
    sizes = {found.key: found.num_bytes for found in folder.store.objects(folder.key(Name.CHECKPOINTS))}
    complete = []
    # From the objects: a local folder may be left over, empty, after its files were deleted.
    names = {key.removeprefix(folder.key(Name.CHECKPOINTS) + "/").split("/")[0] for key in sizes}
    for name in sorted(names, reverse=True):
        path = f"{Name.CHECKPOINTS}/{name}"
        try:
            manifest = folder.read(f"{path}/{Name.MANIFEST}", Manifest)
        except NotFoundError:
            say(f"checkpoint {name} has no manifest: its save did not finish; ignored")
            continue
        except DamagedError as error:
            say(f"checkpoint {name} ignored: its manifest {error.problem}")
            continue
        torn = [file.name for file in manifest.files
                if sizes.get(folder.key(f"{path}/{file.name}")) != file.num_bytes]
        if torn:
            say(f"checkpoint {name} ignored: {torn[0]} is missing or has the wrong size")
        else:
            complete.append(manifest)
    return complete


def retain(folder: RunFolder, step: int, keep: int) -> None:
    """Delete complete checkpoints older than the newest `keep`. Manifest first, then the files.

    Args:
        folder: The run.
        step: Of the newest one that is known to be good. Later ones do not count: an attempt that
            found them damaged has started before them.
        keep: At least 1.

    Raises:
        StoreError: They cannot be listed or deleted.
    """
    complete = complete_checkpoints(folder, say=lambda _: None)
    for manifest in [manifest for manifest in complete if manifest.step <= step][keep:]:
        base = folder.key(checkpoint_folder(manifest.step))
        folder.store.delete([f"{base}/{Name.MANIFEST}"])
        folder.store.delete(found.key for found in folder.store.objects(base))


def read_file(folder: RunFolder, manifest: Manifest, file: StoredFile) -> bytes:
    """One file of a checkpoint, its hash checked. Raises DamagedError when it does not match."""
    name = f"{checkpoint_folder(manifest.step)}/{file.name}"
    data = folder.read_bytes(name)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise DamagedError("its SHA-256 is not the manifest's: the file is corrupt",
                           place=f"{folder.url}/{name}")
    return data


def newest_verified(folder: RunFolder, wanted: Callable[[StoredFile], bool], say: Callable[[str], None], *,
                    say_damaged: Callable[[str], None] | None = None,
                    before: int | None = None) -> tuple[Manifest, dict[str, bytes]] | None:
    """The newest complete checkpoint whose wanted files match their hashes, with their content.

    Args:
        folder: The run.
        wanted: Which files to read. The others are only known to be there, with their sizes.
        say: Told about each checkpoint that is passed over.
        say_damaged: Told instead about those whose files are read and do not match.
        before: When given, only checkpoints of earlier steps than this one.

    Returns:
        None when the run has no checkpoint yet.

    Raises:
        CheckpointError: There are committed checkpoints, but every one is damaged. Starting again
            from step 0 would silently throw paid work away.
        StoreError: The store cannot be read now. That is no reason to take an older checkpoint.
    """
    for manifest in complete_checkpoints(folder, say):
        if before is not None and manifest.step >= before:
            continue
        try:
            return manifest, {file.name: read_file(folder, manifest, file)
                              for file in manifest.files if wanted(file)}
        except (DamagedError, NotFoundError) as error:
            (say_damaged or say)(f"checkpoint of step {manifest.step} not used: {error}")
    committed = [found for found in folder.store.objects(folder.key(Name.CHECKPOINTS))
                 if found.key.endswith("/" + Name.MANIFEST)]
    if committed:
        raise CheckpointError(
            f"all {len(committed)} committed checkpoints are damaged",
            place=f"{folder.url}/{Name.CHECKPOINTS}",
            fix="restore one from a backup; or, to train again from step 0, delete that folder")
    return None


def load_averaged_weights(folder: RunFolder, say: Callable[[str], None]) -> tuple[Manifest, dict[str, Any]]:
    """The averaged weights of the newest complete checkpoint, for sampling: no optimizer, no DeepSpeed load.

    With them come the model's buffers, and `TIME_DENSITY`.

    Raises:
        CheckpointError: The run has none yet, or all are damaged.
    """
    from safetensors.torch import load

    from trainer.average import assembled

    found = newest_verified(folder, lambda file: _AVERAGES in file.name, say)
    if not found or not found[1]:
        raise CheckpointError("this run has no complete checkpoint yet", place=folder.url,
                              fix="wait for the first one (`ldlm status` shows the durable step)")
    manifest, files = found
    fragments = {key: tensor for data in files.values() for key, tensor in load(data).items()}
    return manifest, assembled(fragments, manifest.shapes)
