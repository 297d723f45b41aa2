"""Sets a value in YAML that somebody else has written: its other keys, comments and order stay. Pure.

The text is changed in one place and read again; where it then says anything else than what was meant
(aliases, merged keys, several documents), nothing is changed.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def put(text: str, where: Sequence[str], value: object) -> str:
    """The text with a value set.

    Args:
        text: YAML with a mapping at its root, or empty.
        where: Keys from the root: `("vast", "remote_identity")`.
        value: Takes the place of what is there.

    Raises:
        ValueError: It is no such YAML, or cannot be changed in one place.
    """
    wanted = copy.deepcopy(_load(text))
    inner: Any = wanted
    for key in where[:-1]:
        if inner.get(key) is None:
            inner[key] = {}
        inner = inner[key]
        if not isinstance(inner, dict):
            raise ValueError(f"{key} is no mapping")
    inner[where[-1]] = value
    return _checked(text, _put(text, where, value), wanted)


def append(text: str, key: str, item: Mapping[str, str]) -> str:
    """The text with an item in the list under a key of its root, unless one there says as much.

    Raises:
        ValueError: As `put`.
    """
    found = _load(text).get(key)
    if found is None:
        return put(text, (key,), [dict(item)])
    if not isinstance(found, list):
        raise ValueError(f"{key} is no list")
    if any(isinstance(one, dict) and item.items() <= one.items() for one in found):
        return text
    _, node = _entry(yaml.compose(text, yaml.SafeLoader), key)
    if node.flow_style:
        new = _insert(text, node.start_mark.index + 1, _flow(dict(item)) + (", " if found else ""))
    else:
        new = _insert_lines(text, node.start_mark, _block([dict(item)]))
    return _checked(text, new, {**_load(text), key: [dict(item), *found]})


def _load(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(f"it is no YAML{line}: {getattr(error, 'problem', None) or error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError("it is no mapping of keys")
    return found


def _checked(old: str, new: str, wanted: Mapping[str, Any]) -> str:
    if _load(old) == wanted:
        return old
    try:
        if _load(new) == wanted:
            return new
    except ValueError:
        pass
    raise ValueError("it cannot be changed in one place")


def _put(text: str, where: Sequence[str], value: object) -> str:
    node = yaml.compose(text, yaml.SafeLoader)
    if node is None:
        return _end_line(text) + _block(_nested(where, value))
    for depth, key in enumerate(where):
        name, child = _entry(node, key)
        if child is None:
            return _into(text, node, _nested(where[depth:], value), is_root=depth == 0)
        rest = where[depth + 1:]
        if not rest or not isinstance(child, yaml.MappingNode):
            return _instead(text, name, child, _flow(_nested(rest, value)))
        node = child
    raise AssertionError("where names no key")


def _instead(text: str, name: Any, child: Any, new: str) -> str:
    """Put a value in the place of a key's; of one on lines of its own, those lines go."""
    start, end = child.start_mark.index, child.end_mark.index
    if isinstance(child, yaml.CollectionNode) and not child.flow_style:
        start, end = name.end_mark.index + 1, start + len(text[start:_last(child).end_mark.index].rstrip())
    gap = "" if text[start - 1].isspace() else " "  # behind the colon
    return text[:start] + gap + new + text[end:]


def _last(node: Any) -> Any:
    """The last value inside a node: where that ends, the node does; PyYAML counts comments behind it too."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return node


def _into(text: str, node: Any, entry: object, *, is_root: bool) -> str:
    """Put an entry into a mapping: behind all at the root, before its first key elsewhere."""
    if node.flow_style:
        inside = _flow(entry)[1:-1] + (", " if node.value else "")
        return _insert(text, node.start_mark.index + 1, inside)
    if is_root:
        return _end_line(text) + _block(entry)
    return _insert_lines(text, node.value[0][0].start_mark, _block(entry))


def _insert_lines(text: str, mark: Any, lines: str) -> str:
    """Put lines before what begins at a mark, set in as far as that is."""
    indent = " " * mark.column
    return _insert(text, mark.index, "".join(f"{line}\n{indent}" for line in lines.splitlines()))


def _insert(text: str, index: int, more: str) -> str:
    return text[:index] + more + text[index:]


def _end_line(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _entry(node: Any, key: str) -> tuple[Any, Any]:
    """Nodes of a key and of its value; None, None where there is no such key."""
    return next(((name, value) for name, value in node.value if getattr(name, "value", None) == key),
                (None, None))


def _nested(where: Sequence[str], value: object) -> object:
    for key in reversed(where):
        value = {key: value}
    return value


def _flow(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _block(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=False, sort_keys=False)
