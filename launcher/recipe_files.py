"""What the text and the encoder of a recipe are, as far as their files tell without loading them.

The node applies the same rules (trainer/data.py, trainer/token_encoder.py), but there they are billed.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path

from launcher.recipe_source import Where
from trainer.config import TrainConfig
from trainer.encoder_shape import KNOWN_CONFIGS, EncoderShape, encoder_shape

_BUILT_IN_TEXTS = ("python-docs",)
_READ_BYTES = 64 * 1024  # enough to tell a text from something else
_OTHER_TEXT = "name a UTF-8 text file, or python-docs (built in)"
_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PACKAGED = [name for name in KNOWN_CONFIGS if "/" not in name]
_OTHER_ENCODER = ("name a model of the Hugging Face Hub (Qwen/Qwen3.5-0.8B-Base), a folder in its layout, or "
                  f"one of: {', '.join(_PACKAGED)}")


class _Unusable(Exception):
    """One thing that is wrong, and what to do: two arguments."""


def file_problems(config: TrainConfig, root: Path, is_local: bool) -> Iterator[tuple[Where, str, str]]:
    """What is wrong with the text and the encoder: the key, the problem, the fix.

    Args:
        root: Where relative paths start: the checkout, which travels to the nodes as their folder.
        is_local: Absolute paths are looked up too; on a rented machine they are another disk's.
    """
    source, encoder = config.data.source, config.token_encoder
    if not _is_elsewhere(source) and (is_local or not Path(source).is_absolute()):
        try:
            _check_text(root / source)
        except _Unusable as error:
            problem, fix = error.args
            yield ("train", "data", "source"), f"train.data.source names {source}: {problem}", fix
    if source.startswith("hf://"):
        yield (("train", "data", "source"), f"train.data.source names {source}, which is not prepared yet",
               f"ldlm data prepare {source} --tokenizer {encoder.name} --out shards:NAME; then set "
               "train.data.source to shards:NAME")
    is_known = encoder.name in KNOWN_CONFIGS
    if not is_known and not is_local and Path(encoder.name).is_absolute():
        return
    if not is_known:
        try:
            _check_model(root / encoder.name, may_be_on_hub=_ON_THE_HUB.fullmatch(encoder.name) is not None)
        except _Unusable as error:
            problem, fix = error.args
            where = ("train", "token_encoder", "name")
            yield where, f"train.token_encoder.name names {encoder.name}: {problem}", fix
    shape = encoder_shape(encoder.name, root)
    if shape is not None:
        yield from _misfits(config, shape)


def found_folder(name: str, root: Path) -> str:
    """The whole path of a model's folder that is named from here or from home; any other name as it is.

    Args:
        root: From where a relative name is understood by nodes, too.
    """
    folder = Path(name).expanduser()
    if name in _PACKAGED or (root / name / "config.json").is_file():
        return name
    return str(folder.absolute()) if (folder / "config.json").is_file() else name


def text_from_here(item: str, root: Path) -> str:
    """A `--set` item, as it reads from the checkout: a text file is named from the folder where one types.

    Args:
        item: `train.data.source=FILE`; any other comes back as it is, and so does a file that is not here.
        root: The checkout.
    """
    key, _, name = item.partition("=")
    if key.strip() != "train.data.source" or not name.strip() or _is_elsewhere(name.strip()):
        return item
    path = Path(name.strip()).expanduser().absolute()
    if not path.is_file():
        return item
    return f"{key}={path.relative_to(root) if path.is_relative_to(root) else path}"


def _is_elsewhere(source: str) -> bool:
    """True for what is no file: a built-in text, or shards, which the node finds in the store."""
    return source in _BUILT_IN_TEXTS or source.startswith("shards:") or "://" in source


def _check_text(path: Path) -> None:
    try:
        if path.is_dir():
            raise _Unusable(f"{path} is a folder, not a text file", _OTHER_TEXT)
        with path.open("rb") as file:
            start = file.read(_READ_BYTES)
            is_whole = not file.read(1)
    except FileNotFoundError:
        raise _Unusable(f"there is no {path}", "put it there, or use python-docs (built in)") from None
    except OSError as error:
        raise _Unusable(f"{path} cannot be read: {error.strerror}", _OTHER_TEXT) from None
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start, final=is_whole)
    except UnicodeDecodeError as error:
        problem = f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        raise _Unusable(problem, _OTHER_TEXT) from None
    if is_whole and not text.strip():
        raise _Unusable(f"{path} is empty", _OTHER_TEXT)


def _check_model(folder: Path, may_be_on_hub: bool) -> None:
    path = folder / "config.json"
    if not path.is_file():
        if may_be_on_hub and not folder.exists():
            return
        raise _Unusable(f"there is no {path}", _OTHER_ENCODER)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise _Unusable(f"{path} cannot be read as a JSON object", _OTHER_ENCODER)


def _misfits(config: TrainConfig, shape: EncoderShape) -> Iterator[tuple[Where, str, str]]:
    encoder, length = config.token_encoder, config.data.sequence_length
    try:
        shape.kept_blocks(encoder.layer)
    except ValueError:
        blocks = shape.num_blocks
        usual = max(-3, -blocks)  # the paper's, unless there are two blocks
        fix = (f"add --set train.token_encoder.layer={usual} ({-blocks} to -2 will do)" if blocks > 1
               else "choose a model with more than one block")
        yield (("train", "token_encoder", "layer"),
               f"train.token_encoder.layer is {encoder.layer}, but {encoder.name} has {blocks} blocks", fix)
    prefix = int(encoder.prefix_token)
    if shape.max_positions is not None and length + prefix > shape.max_positions:
        longest = shape.max_positions - prefix
        why = f" ({shape.max_positions} positions, one goes to the prefix)" if prefix else ""
        yield (("train", "data", "sequence_length"),
               f"train.data.sequence_length is {length}, but {encoder.name} reads at most {longest} "
               f"tokens{why}", f"add --set train.data.sequence_length={longest} (or less)")
