"""What pydantic finds wrong in a recipe, in the words of somebody who writes YAML."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from launcher.gpu_kinds import GPU_KINDS, known_name
from launcher.recipe_source import Problem, Source, Where, dotted

_WANTED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "is_instance_of": "a number", "decimal_type": "a number", "finite_number": "a finite number",
    "string_type": "text", "bool_type": "true or false", "list_type": "a list", "tuple_type": "a list",
    "model_type": "a block of keys", "model_attributes_type": "a block of keys",
    "greater_than": "more than {gt}", "greater_than_equal": "{ge} or more", "less_than": "less than {lt}",
    "less_than_equal": "{le} or less", "literal_error": "{expected}",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "a list of {min_length} or more", "too_long": "a list of at most {max_length}",
}
_NUMBERS = ("a whole number", "a number")
# What the patterns of the recipe mean: a regular expression is no help to most.
_GPU = "a GPU and how many per node, such as RTX5090:1"
_PATTERNS = {r"^[A-Za-z][A-Za-z0-9-]*:[1-9][0-9]*$": _GPU,
             r"^[a-z][a-z0-9.-]*$": "small letters, digits, dots and hyphens, such as smoke"}


def innermost(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Errors without those of a list or block of which a part is wrong: it is without that part there."""
    places = [error["loc"] for error in errors]
    return [error for error in errors if not any(
        len(place) > len(error["loc"]) and place[:len(error["loc"])] == error["loc"] for place in places)]


def explain(error: ErrorDetails, source: Source, model: type[BaseModel]) -> Problem:
    """One problem of the recipe: its line, what is wrong, what to write instead."""
    where: Where = tuple(error["loc"])
    place = source.place(where)
    kind, name = error["type"], dotted(where) or "the recipe"
    if kind == "extra_forbidden":
        return Problem(place, f"{name} is not a known key", _known_key(where, model))
    if kind == "missing":
        return Problem(place, f"{name} is missing", f"add it to {dotted(where[:-1]) or 'the recipe'}")
    if kind == "value_error":
        text, _, fix = str(error["ctx"]["error"]).partition(": ")
        # A validator of a block does not know where its block stands.
        return Problem(source.newest_place(where), f"{name}: {text}", fix.replace("{where}", name) or None)
    wanted = _wanted(error)
    problem = f"{name} is {_shown(error['input'])}, but it must be {wanted}"
    return Problem(place, problem, _fix(name, wanted, error["input"], source.written.get(where)))


def _wanted(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if context.get("pattern") in _PATTERNS:
        return _PATTERNS[context["pattern"]]
    template = _WANTED.get(error["type"])
    return template.format(**context) if template else error["msg"][:1].lower() + error["msg"][1:]


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a block of keys" if isinstance(value, dict) else "a list"
    return f"the text `{value}`" if isinstance(value, str) else str(value)


def _fix(name: str, wanted: str, value: Any, written: str | None) -> str:
    """What to write; `written` is the unquoted text in the file, None when it was quoted."""
    if isinstance(value, str) and wanted in _NUMBERS and _is_number(value):
        text = _yaml_number(value, whole=wanted == "a whole number")
        why = "without the quotes" if written is None else f"YAML reads {value} as text"
        return f"write {text} ({why})"
    if wanted == _GPU and isinstance(value, str) and known_name(value) in GPU_KINDS:
        return f"add --set {name}={known_name(value)}:1 (or as many as it has)"
    if isinstance(value, bool) and written and written.lower() not in ("true", "false"):
        return f'write "{written}" in quotes (YAML reads {written} as {str(value).lower()})'
    if isinstance(value, float) and wanted == "a whole number" and value.is_integer():
        return f"write {int(value)}"
    if wanted == "text" and written:
        return f'write "{written}" in quotes'
    return f"set {name} to {wanted}"


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < 1e300
    except ValueError:
        return False


def _yaml_number(text: str, whole: bool) -> str:
    """A number as YAML 1.1 takes it: `3e-4` -> `3.0e-4`, `1e3` -> `1.0e+3`."""
    if whole and float(text).is_integer():
        return str(int(float(text)))
    mantissa, _, exponent = text.strip().lower().partition("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    return f"{mantissa}e{exponent if exponent[0] in '+-' else '+' + exponent}" if exponent else mantissa


def _known_key(where: Where, model: type[BaseModel]) -> str:
    """A hint towards the key that was meant: the same name elsewhere, or a near one beside it."""
    parent, last = where[:-1], str(where[-1])
    section = _section(model, parent)
    siblings = sorted(section.model_fields) if section else []
    elsewhere = [path for path in _paths(model) if path.split(".")[-1] == last]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    near = difflib.get_close_matches(last, siblings, n=1)
    if near:
        return f"did you mean {dotted((*parent, near[0]))}?"
    return f"remove it; {dotted(parent) or 'a recipe'} has {', '.join(siblings)}"


def _section(model: type[BaseModel], where: Where) -> type[BaseModel] | None:
    found: type[BaseModel] | None = model
    for part in where:
        if isinstance(part, str) and found is not None:
            field = found.model_fields.get(part)
            found = _model_in(field.annotation) if field else None
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        inner = _model_in(field.annotation)
        if inner:
            yield from _paths(inner, f"{prefix}{name}.")

