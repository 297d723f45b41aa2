"""What was compiled on the way to an export's first text, shipped in it: `ldlm export --with-compiled`.

It is machine code, some of it for the host (Triton's launchers). Hashes say that it is what the export's
maker has written, not who that is: so it is used only for who says that he trusts the export, and only where
device and versions are those that it was made for. Else everything is compiled here, and nothing is said.
"""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch
from pydantic import BaseModel, ConfigDict

from trainer.bench_first import COMPILED, first_text_of_export
from trainer.contract import ConfigError
from trainer.fast.weights import usual_mode
from trainer.local_cache import cache_folder, disk_errors, one_at_a_time
from trainer.manifest import StoredFile

_FOLDER = "compiled"
_MADE_FOR = f"{_FOLDER}/made-for.json"
_GROUP = "__grp__"  # before the names of Triton's lists of files, which hold whole paths


class MadeFor(BaseModel):
    """Where compiled code is of use. Where sources have changed since, nothing is found in it."""

    model_config = ConfigDict(frozen=True)
    device: str
    torch: str
    python: str
    machine: str


def made_for_here() -> MadeFor | None:
    """This device and its software; None: no CUDA device, for which nothing is compiled."""
    if not torch.cuda.is_available():
        return None
    return MadeFor(device=torch.cuda.get_device_name(), torch=torch.__version__,
                   python=platform.python_version(), machine=platform.machine())


def check_compiles() -> MadeFor:
    """This device and its software. Raises ConfigError where nothing is compiled."""
    here = made_for_here()
    if here is None:
        raise ConfigError("there is no CUDA device here, and code is compiled on the device it is for",
                          place="--with-compiled", fix="export on a machine with that GPU, or leave it out")
    return here


def is_compiled(file: StoredFile) -> bool:
    """True for a file of an export that compiled code is in."""
    return file.name.startswith(f"{_FOLDER}/")


def compile_into(export: Path, here: MadeFor) -> None:
    """Have a process of its own come to a text from an export, and keep in it what that has compiled.

    Raises:
        LdlmError: It did not come to one.
    """
    folder = (export / _FOLDER).absolute()
    folder.mkdir()
    first_text_of_export(export, is_fast=True, mode=usual_mode(torch.device("cuda")), compiled=folder,
                         option="--with-compiled")
    (export / _MADE_FOR).write_text(here.model_dump_json())


def use_compiled(export: Path, files: Sequence[StoredFile]) -> bool:
    """Have this process find what was compiled, before anything is. False: it is not for here, or not there.

    Args:
        export: Its folder.
        files: Of it, whose hashes have been checked.

    Raises:
        StoreError: This machine's cache cannot be written.
    """
    own = [file for file in files if is_compiled(file)]
    if not any(file.name == _MADE_FOR for file in own):
        return False
    if MadeFor.model_validate_json((export / _MADE_FOR).read_bytes()) != made_for_here():
        return False
    os.environ[COMPILED] = str(_installed(export, own))
    return True


def _installed(export: Path, files: list[StoredFile]) -> Path:
    """A copy of them in this machine's cache: exports stay as they are, and Triton writes where it reads."""
    told = repr(sorted((file.name, file.sha256) for file in files))
    folder = cache_folder() / _FOLDER / hashlib.sha256(told.encode()).hexdigest()
    with one_at_a_time(folder.with_suffix(".lock")), disk_errors(folder):
        if not folder.is_dir():
            draft = Path(tempfile.mkdtemp(dir=folder.parent))
            for file in files:
                name = PurePosixPath(file.name).relative_to(_FOLDER)
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).write_bytes(_moved((export / file.name).read_bytes(), folder / name))
            draft.rename(folder)
    return folder


def _moved(content: bytes, path: Path) -> bytes:
    """The content of a file that has moved to `path`."""
    if not path.name.startswith(_GROUP):
        return content
    names = json.loads(content)["child_paths"]
    return json.dumps({"child_paths": {name: str(path.with_name(name)) for name in names}}).encode()
