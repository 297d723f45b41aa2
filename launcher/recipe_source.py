"""A recipe file as data that still knows where each value was written, and what YAML made of it.

PyYAML follows YAML 1.1, which reads `1:30` as 90 and `010` as 8. Such values pass every type check,
so they are found here, in the text.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import RecipeError, UsageError

Where = tuple[str | int, ...]  # ("train", "steps"), ("hardware", "train", 0, "gpu")

_OVERRIDE = "--set "
_MERGE_TAG = "tag:yaml.org,2002:merge"
_TEXT_TAG = "tag:yaml.org,2002:str"
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def dotted(where: Where) -> str:
    """The path as a user writes it: `hardware.train.0.gpu`."""
    return ".".join(str(part) for part in where)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a recipe."""

    place: str
    text: str
    fix: str | None = None


@dataclass
class Source:
    """What was read, and for each value its place (`recipes/x.yaml:12`, `--set a=1`).

    Attributes:
        shown: The file as it is named to the user.
        written: Unquoted scalars as they stand in the text (`no`, `3e-4`).
        problems: What is wrong whatever the types are: duplicate keys, traps of YAML 1.1.
    """

    shown: str
    data: Any = None
    places: dict[Where, str] = field(default_factory=dict)
    written: dict[Where, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, where: Where) -> str:
        """Place of a value, or of the nearest part of the file that holds it."""
        for length in range(len(where), 0, -1):
            if where[:length] in self.places:
                return self.places[where[:length]]
        return self.shown

    def newest_place(self, where: Where) -> str:
        """Place of a section as a whole: an override inside it, if any, is the likely culprit."""
        inside = [place for path, place in self.places.items()
                  if path[:len(where)] == where and place.startswith(_OVERRIDE)]
        return inside[-1] if inside else self.place(where)


def read_source(path: Path, shown: str) -> Source:
    """Read a recipe file.

    Raises:
        RecipeError: It cannot be read, is not UTF-8, not YAML, or not a mapping.
    """
    source = Source(shown)
    source.data = _parse(source, _read_text(path, shown), (), lambda line: f"{shown}:{line}")
    if not isinstance(source.data, dict):
        kind = "empty" if source.data is None else f"a {type(source.data).__name__}"
        raise RecipeError(f"a recipe is a mapping of keys, but this file is {kind}", place=shown,
                          fix="start it with `name: ...`; recipes/smoke.yaml is a whole example")
    return source


def apply_override(source: Source, item: str, place: str | None = None) -> None:
    """Put one `--set KEY=VALUE` into the source; VALUE is YAML.

    Args:
        place: What was typed, when another option stands for this item.

    Raises:
        UsageError: There is no `=`, no key, or VALUE is not YAML.
        RecipeError: KEY leads through something that has no parts.
    """
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {item} is not KEY=VALUE", fix="write it like --set train.steps=100")
    where: Where = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
    for known in (source.places, source.written):
        for stale in [path for path in known if path[:len(where)] == where]:
            del known[stale]
    place = place or f"{_OVERRIDE}{item}"
    try:
        value = _parse(source, text, where, lambda line: place)
    except RecipeError as error:
        raise UsageError(error.problem, place=place, fix="quote the value as YAML wants it") from error
    for length in range(1, len(where) + 1):
        source.places.setdefault(where[:length], place)
    _put(source.data, where, value, place)


def _put(data: Any, where: Where, value: Any, place: str) -> None:
    for depth, part in enumerate(where):
        last = depth == len(where) - 1
        if isinstance(data, list) and isinstance(part, int) and part < len(data):
            pass
        elif isinstance(data, dict):
            part = str(part)
            if not last and data.get(part) is None:
                data[part] = {}
        else:
            raise RecipeError(f"{dotted(where[:depth])} has no part `{part}`", place=place,
                              fix=f"set {dotted(where[:depth])} as a whole")
        if last:
            data[part] = value
        else:
            data = data[part]


def _read_text(path: Path, shown: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"is not UTF-8 text (byte {error.start})", place=shown,
                          fix="save it as UTF-8") from error
    except IsADirectoryError as error:
        raise RecipeError("is a folder, not a recipe", place=shown, fix="name a .yaml file in it") from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror or error}", place=shown,
                          fix="check its name and its permissions") from error


def _parse(source: Source, text: str, where: Where, place_of: Callable[[int], str]) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Walk(source, place_of).visit(node, where, node.start_mark.line + 1)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _syntax_error(error, source.shown, place_of) from error
    # AttributeError, TypeError: PyYAML trips over a tag of its own that does not fit, `!!timestamp x`.
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        problem = "is nested too deeply" if deep else f"holds a value that cannot be read: {error}"
        raise RecipeError(problem, place=source.shown, fix="quote the value, or write it plainly") from error


def _syntax_error(error: yaml.YAMLError, shown: str, place_of: Callable[[int], str]) -> RecipeError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    if mark is None:
        return RecipeError(f"is not YAML: {problem}", place=shown, fix="save it as plain UTF-8 text")
    return RecipeError(f"is not YAML: {problem} (column {mark.column + 1})", place=place_of(mark.line + 1),
                       fix="look at this line and the one above: colon, quotes, spaces and no tabs")


class _Walk:
    """One pass over the nodes of a document, noting places and problems."""

    def __init__(self, source: Source, place_of: Callable[[int], str]) -> None:
        self.source = source
        self.place_of = place_of
        self.seen: set[int] = set()

    def visit(self, node: yaml.Node, where: Where, line: int) -> None:
        self.source.places.setdefault(where, self.place_of(line))
        if id(node) in self.seen:  # an alias; it may even hold itself
            return
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, where)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*where, index), item.start_mark.line + 1)
        elif isinstance(node, yaml.ScalarNode) and node.style is None:
            self.source.written[where] = node.value
            self._trap(node, where, line)

    def _mapping(self, node: yaml.MappingNode, where: Where) -> None:
        first_line: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE_TAG:
                continue
            if key.tag != _TEXT_TAG:
                self._problem(line, f"the key `{getattr(key, 'value', '?')}` is not text for YAML",
                              "put the key in quotes")
                continue
            child = (*where, key.value)
            if key.value in first_line:
                self._problem(line, f"{dotted(child)} is given twice (first on line {first_line[key.value]})",
                              "keep one of the two")
                continue
            first_line[key.value] = line
            self.visit(value, child, line)

    def _trap(self, node: yaml.ScalarNode, where: Where, line: int) -> None:
        if node.tag not in _NUMBER_TAGS:
            return
        text, name = node.value, dotted(where)
        value = yaml.safe_load(text)
        if ":" in text:
            self._problem(line, f"{name} is {text}, which YAML reads as base 60: {value}",
                          f"write {value} if that is what you mean, else a plain number such as 1.5")
        elif re.fullmatch(r"[-+]?0[0-7_]+", text):
            self._problem(line, f"{name} is {text}, which YAML reads as octal: {value}",
                          f"write {text.lstrip('-+').lstrip('0') or '0'}")
        elif isinstance(value, float) and not math.isfinite(value):
            self._problem(line, f"{name} is {text}, not a finite number", "write a finite number")

    def _problem(self, line: int, text: str, fix: str) -> None:
        self.source.problems.append(Problem(self.place_of(line), text, fix))
