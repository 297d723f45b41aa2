"""`python -m trainer.export`, behind `ldlm export`: what generation needs of a run, in one folder.

    model.safetensors   averaged weights of latent decoder, token decoder and denoiser, with their buffers
    config.json         sizes, settings, what it cost, and the hashes of the other files; written last
    tokenizer/          in Hugging Face layout
    recipe.yaml         reproduces it: `ldlm launch recipe.yaml`
    README.md           model card; curves.png where matplotlib is there
    compiled/           with --with-compiled: kernels, see trainer/compiled.py

The folder appears whole, by a rename; a copy of it that was cut off does not match its hashes.
Exit codes: those of the `ldlm` command.
"""

import fcntl
import glob
import json
import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainer.command import carry_out, talk
from trainer.compiled import check_compiles, compile_into, is_compiled, use_compiled
from trainer.config import TrainConfig
from trainer.contract import ConfigError, Name, StoreError
from trainer.generate import Generator, warp_of
from trainer.local_cache import sha256_of
from trainer.manifest import TIME_DENSITY, StoredFile
from trainer.model_card import Facts, draw_curves, facts_of, model_card, recipe_yaml
from trainer.push import check_name, push
from trainer.run_folder import RunFolder
from trainer.sample_options import read_export_options
from trainer.saved_run import SavedRun, load_run
from trainer.store import named_store
from trainer.stored_model import ENCODER, model_of
from trainer.token_encoder import load_tokenizer, open_tokenizer
from trainer.trunk import first_line
from trainer.weights_file import read_tensors

_FORMAT = "ldlm-export-1"
_WEIGHTS, _CONFIG, _RECIPE, _TOKENIZER, _CARD, _PLOT = (
    "model.safetensors", "config.json", "recipe.yaml", "tokenizer", "README.md", "curves.png")
_DRAFT = ".unfinished-export"  # ends the hidden name of a folder that is being written
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_NUM_SAMPLES, _SEED = 5, 0  # on the model card
Precision = Literal["bf16", "fp32"]


class ExportRecord(BaseModel):
    """`config.json` of an export.

    Attributes:
        has_encoder: The latent encoder is in it too.
        model: Arguments that rebuild the model, as in a checkpoint's manifest.
        facts: What training took.
        train: The settings of the run.
        files: Every other file that loading reads, with its hash.
    """

    model_config = ConfigDict(frozen=True)
    format: Literal["ldlm-export-1"] = _FORMAT
    run_id: str
    step: int
    precision: Precision
    has_encoder: bool = False
    model: dict[str, int]
    facts: Facts
    train: TrainConfig
    files: list[StoredFile]

    @property
    def has_compiled(self) -> bool:
        """What was compiled on its maker's device is in it, too."""
        return any(map(is_compiled, self.files))


def load_export(path: Path | str, device: torch.device | str = "cpu",
                dtype: torch.dtype | None = None) -> Generator:
    """Read an export for generation. No DeepSpeed, no token encoder.

    Args:
        path: Its folder.
        device: Where to generate.
        dtype: To compute in; None: float32 on a CPU, elsewhere as the weights are stored.

    Raises:
        ConfigError: It is no export, of another version, or not what was written.
    """
    return open_export(Path(path), torch.device(device), dtype)[1]


def open_export(path: Path, device: torch.device, dtype: torch.dtype | None = None, *,
                trusts_compiled: bool = False) -> tuple[ExportRecord, Generator]:
    """What an export says of itself, and its generator. Arguments and errors as of `load_export`.

    Args:
        trusts_compiled: This process may run the machine code that lies in it.
    """
    with ThreadPoolExecutor(3) as pool:  # hashes are worked out while weights are on their way
        checked = pool.submit(read_export, path)
        tensors = pool.submit(read_tensors, path / _WEIGHTS, device)
        tokenizer = pool.submit(open_tokenizer, path / _TOKENIZER)
        record = checked.result()  # first: of what is not whole the others may have read anything
    if trusts_compiled:
        use_compiled(path, record.files)
    state, sizes = tensors.result(), record.model
    warp = warp_of(record.train, state.pop(TIME_DENSITY).cpu())
    model = model_of(record.train, sizes["hidden_size"], sizes["vocab_size"], state).requires_grad_(False)
    dtype = dtype or (torch.float32 if device.type == "cpu" else _DTYPES[record.precision])
    return record, Generator(record.train, model.to(dtype), warp, sizes["num_tokens"],
                             sizes["end_of_text_id"], tokenizer.result())


def read_export(path: Path) -> ExportRecord:
    """What an export says of itself, its files checked against their hashes. Raises as `load_export`."""
    try:
        record = ExportRecord.model_validate_json((path / _CONFIG).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"is no export: there is no {_CONFIG}", place=str(path),
                          fix="name a folder that `ldlm export RUN` has made") from error
    except ValidationError as error:
        raise ConfigError(f"is no export of this version: {error.errors()[0]['msg']}",
                          place=str(path / _CONFIG), fix="make it again: ldlm export RUN") from error
    for file in record.files:
        if not _is_whole(path / file.name, file):
            raise ConfigError(f"{file.name} is missing, cut off or changed: its SHA-256 is not the one in "
                              f"{_CONFIG}", place=str(path), fix="copy or export it again")
    return record


def _is_whole(path: Path, file: StoredFile) -> bool:
    return path.is_file() and path.stat().st_size == file.num_bytes and sha256_of(path) == file.sha256


def write_export(run: SavedRun, out: Path, precision: Precision = "bf16", *, with_encoder: bool = False,
                 with_compiled: bool = False) -> ExportRecord:
    """Write a run's newest weights into a new folder, whole or not at all.

    Before it counts it is loaded again, and has made the samples of its model card.

    Raises:
        ConfigError: Something else is there already, the tokenizer cannot be found, or nothing is compiled
            on this device.
        StoreError: The disk does not take it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _same_export(run, out, (precision, with_encoder, with_compiled))
    here = check_compiles() if with_compiled else None
    with _draft_of(out.absolute()) as draft:
        save_file(_needed(run, precision, with_encoder), draft / _WEIGHTS)
        _write_tokenizer(load_tokenizer(run.config.token_encoder, run.folder.store), draft / _TOKENIZER)
        recipe = run.folder.read_json(Name.RECIPE)
        recipe["train"]["token_encoder"] = run.config.token_encoder.model_dump(mode="json")
        (draft / _RECIPE).write_text(recipe_yaml(recipe))
        record = _recorded(draft, ExportRecord(
            run_id=run.folder.run_id, step=run.manifest.step, precision=precision, has_encoder=with_encoder,
            model=run.manifest.model, train=run.config,
            facts=facts_of(run.folder, run.config, run.manifest), files=[]))
        if here:
            compile_into(draft, here)
            record = _recorded(draft, record)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        samples = load_export(draft, device).texts(_NUM_SAMPLES, _SEED)
        has_plot = draw_curves(run.folder, record.step, draft / _PLOT)
        (draft / _CARD).write_text(model_card(run.folder, run.config, record.facts, record.step, samples,
                                              has_plot=has_plot))
    return record


def _recorded(draft: Path, record: ExportRecord) -> ExportRecord:
    """The record with all files that lie there, written."""
    files = [file for file in _files(draft) if file.name != _CONFIG]
    record = record.model_copy(update={"files": files})
    (draft / _CONFIG).write_text(record.model_dump_json(indent=1))
    return record


def _same_export(run: SavedRun, out: Path, kind: tuple[Precision, bool, bool]) -> ExportRecord:
    """What is at `out` already, when it is this very export: then a push can go on."""
    wanted = (run.folder.run_id, run.manifest.step, kind)
    record = read_export(out) if (out / _CONFIG).is_file() else None
    if record and (record.run_id, record.step,
                   (record.precision, record.has_encoder, record.has_compiled)) == wanted:
        return record
    raise ConfigError("there is something else at this place already", place=str(out),
                      fix="name another folder: --out PATH, or remove this one")


def _needed(run: SavedRun, precision: Precision, with_encoder: bool) -> dict[str, Tensor]:
    """Tensors of the file: trained weights in the precision, buffers as they are."""
    return {name: (tensor.to(_DTYPES[precision]) if name in run.manifest.shapes else tensor).contiguous()
            for name, tensor in run.weights.items() if with_encoder or not name.startswith(ENCODER)}


def _files(draft: Path) -> Iterator[StoredFile]:
    for path in sorted(path for path in draft.rglob("*") if path.is_file()):
        yield StoredFile(name=path.relative_to(draft).as_posix(), num_bytes=path.stat().st_size,
                         sha256=sha256_of(path))


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library has no other type for what a disk says
        raise OSError(first_line(error)) from error


@contextmanager
def _draft_of(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block has ended well, and else is gone."""
    draft = lock = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_drafts(out)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_DRAFT, dir=out.parent))
        lock = _locked(draft)
        yield draft
        for path in draft.rglob("*"):  # some of them only their owner could read
            path.chmod(0o755 if path.is_dir() else 0o644)
        draft.chmod(0o755)
        draft.rename(out)
    except (OSError, SafetensorError) as error:
        said = error.strerror if isinstance(error, OSError) else None
        raise StoreError(f"the export cannot be written: {said or first_line(error)}", place=str(out),
                         fix="check permissions and free disk space, or name another folder: --out PATH"
                         ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_left_drafts(out: Path) -> None:
    """Remove what killed calls have left of this export. An empty one may be about to be locked."""
    for draft in out.parent.glob(f".{glob.escape(out.name)}.*{_DRAFT}"):
        lock = _locked(draft) if any(draft.iterdir()) else None
        if lock is not None:
            shutil.rmtree(draft, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives, or the file is closed.

    Returns:
        The open file; None where another process has it, or the file system has no locks.
    """
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def main(argv: list[str] | None = None) -> int:
    """Export as the command line says. Returns the exit code."""
    options = read_export_options(argv)
    return carry_out(lambda: _export(options),
                     interrupted="interrupted: an export that was not finished is gone")


def _export(options: Namespace) -> str:
    if options.push_to_hub is not None:
        check_name(options.push_to_hub)
    folder = RunFolder(named_store(options.store), options.run)
    run = load_run(folder, talk)
    out = options.out or Path(f"{options.run}-step-{run.manifest.step}")
    record = write_export(run, out, options.precision, with_encoder=options.with_encoder,
                          with_compiled=options.with_compiled)
    num_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    url = None
    if options.push_to_hub is not None:
        talk(f"the export is whole: {out}; uploading {num_bytes / 1e6:.1f} MB")
        url = push(out, options.push_to_hub, f"Step {record.step} of {record.run_id}")
    if options.json:
        return json.dumps({"path": str(out), "url": url, "run": record.run_id, "step": record.step,
                           "precision": record.precision, "num_bytes": num_bytes}, indent=2)
    pushed = f"pushed to {url}\n" if url else ""
    return (f"{pushed}exported step {record.step:,} of {record.run_id} to {out}: {num_bytes / 1e6:.1f} MB, "
            f"{record.precision}\ntry it: ldlm sample --from {out}")


if __name__ == "__main__":
    sys.exit(main())
