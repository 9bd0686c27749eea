"""Find the parts of tool schemas and tool calls that a template must print, and make copies with other values in them.

Every part of a schema that informs the model counts: descriptions, names and types of parameters at any depth,
`enum`, `required`, `pattern`, `default`, `return`. A template may leave out:

- what is the same everywhere: `"type": "function"` of a tool, and `"type": "object"` of its `parameters`;
- `strict`, `$schema`, `$id`, `$comment`, and `title`, which programs generate from the name;
- defaults: null, "", empty lists and objects, `false`, `"additionalProperties": true`, and a name in `required` that is
  no parameter.

In a call, the keys and values of its arguments count; `id`, `type` and `index` may be left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from posttrain.data.calls import function_of

__all__ = ["ABSENT", "Part", "call_parts", "other_value", "schema_parts", "seen_value", "with_values"]

Path: TypeAlias = "tuple[str | int, ...]"
Changes: TypeAlias = "Mapping[tuple[Path, bool], Any]"
"""(path, whether the key at that path is replaced) -> the new value or key."""

BOOKKEEPING = frozenset({"strict", "$schema", "$id", "$comment", "title"})
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keys of a schema that hold a mapping from names."""
VALUES = frozenset({"default", "const", "enum", "example", "examples"})
"""Keys of a schema that hold arbitrary values."""
NO_ARGUMENTS = frozenset({"id", "type", "index", "name", "function"})
"""Keys of a call that are checked elsewhere or may be left out."""
NUMBER = 918273000
"""The first of the numbers that are used as unique values, as they occur nowhere else."""
ABSENT = object()
"""Stands for a value that is removed."""


class Part(NamedTuple):
    """A path in schemas or calls, and its value. key: the part is the key; type: the value is a parameter's type."""

    path: Path
    value: Any
    key: bool = False
    type: bool = False

    def __str__(self) -> str:
        return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)


def schema_parts(tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Part, int]]:
    """Yield the parts of tools' schemas that count, without the tools' names, each with a number.

    The number is equal for parts that a template treats alike: parts with the same path in their parameter and with
    the same other keys there.
    """
    for i, tool in enumerate(tools):
        inner = function_of(tool)
        for told, path in ((tool, (i,)), *([(inner, (i, "function"))] if inner is not tool else [])):
            rest = {key: one for key, one in told.items() if key not in ("name", "function")}
            if path == (i,):
                rest.pop("type", None)
            for part in _schema(rest, path):
                yield part, hash((len(path), _kinds(told), *_likeness(part, told, part.path[len(path) :])))


def _schema(schema: Any, path: Path, *, type: bool = False) -> Iterator[Part]:
    if isinstance(schema, list):
        for i, inner in enumerate(schema):
            yield from _schema(inner, (*path, i), type=type)
    elif not isinstance(schema, Mapping):
        if schema is not False and schema not in (None, ""):
            yield Part(path, schema, type=type)
    else:
        for key, one in schema.items():
            at = (*path, key)
            if key in NAMED and isinstance(one, Mapping):
                for name, inner in one.items():
                    yield Part((*at, name), name, key=True)
                    yield from _schema(inner, (*at, name))
            elif key in VALUES:
                if one is not None and (one != [] or key in ("default", "const")):
                    yield from _value(one, at)
            elif key == "required" and isinstance(one, list):
                known = schema.get("properties")
                names = known if isinstance(known, Mapping) else {}
                yield from (
                    Part((*at, i), name) for i, name in enumerate(one) if isinstance(name, str) and name in names
                )
            elif key not in BOOKKEEPING and not _is_usual(at, one):
                yield from _schema(one, at, type=key == "type")


def _is_usual(path: Path, value: Any) -> bool:
    """Return whether a value is the same in every schema: a tool takes an object, and an object may have more keys."""
    if path[-1] == "additionalProperties":
        return value is True
    return value == "object" and path[1:] in (("parameters", "type"), ("function", "parameters", "type"))


def _value(value: Any, path: Path) -> Iterator[Part]:
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield Part((*path, key), key, key=True)
            yield from _value(one, (*path, key))
    elif isinstance(value, list | tuple) and value:
        for i, one in enumerate(value):
            yield from _value(one, (*path, i))
    else:
        yield Part(path, value)


def _likeness(part: Part, function: Mapping[str, Any], path: Path) -> tuple[Any, ...]:
    """Return the properties of a part by which a template may treat it differently.

    They are the path of the part within its parameter (or another unit of the schema), and the rest of that unit: its
    keys, or all of it if it contains objects."""
    depth = 3 if path[:2] == ("parameters", "properties") else 2 if path[:1] == ("parameters",) else 1
    unit: Any = function
    for step in path[:depth]:
        unit = unit[step]
    whole = not isinstance(unit, Mapping) or any(
        isinstance(one, Mapping) or (isinstance(one, list) and any(isinstance(each, Mapping) for each in one))
        for one in unit.values()
    )
    within = tuple(-1 if isinstance(step, int) else step for step in (*path[: min(depth, 2)], *path[depth:]))
    value = (type(part.value).__name__, bool(part.value), part.value if part.type else "")
    return (within, part.key, value, repr(unit) if whole and depth > 1 else _kinds(unit))


def _kinds(value: Any) -> Any:
    """Return the keys of an object with the types of their values, or the type's name of any other value."""
    if not isinstance(value, Mapping):
        return type(value).__name__
    return frozenset((k, type(v).__name__, bool(v), repr(v) if k == "type" else "") for k, v in value.items())


def call_parts(calls: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """Yield the parts of calls that count, without the functions' names."""
    for i, call in enumerate(calls):
        inner = function_of(call)
        for told, path in ((call, (i,)), *([(inner, (i, "function"))] if inner is not call else [])):
            for key, one in told.items():
                if key not in NO_ARGUMENTS and one is not None and one != {}:
                    yield from _value(one, (*path, key))


# ---- other values ----------------------------------------------------------------------------------------------------


def seen_value(part: Part, word: str, number: int) -> str | int | float | None:
    """Return a unique word or number to replace the value, or None for a truth value, null or a type (not unique)."""
    if isinstance(part.value, bool) or part.type:
        return None
    if isinstance(part.value, str):
        return word
    if isinstance(part.value, int | float):
        return NUMBER + number if isinstance(part.value, int) else NUMBER + number + 0.5
    return None


def other_value(part: Part, word: str) -> Any:
    """Return another value of the same type."""
    if isinstance(part.value, bool):
        return not part.value
    if part.type:
        return "integer" if part.value == "string" else "string"
    seen = seen_value(part, word, 0)
    return seen if seen is not None else [word] if part.value == [] else word


def with_values(value: Any, changes: Changes, path: Path = ()) -> Any:
    """Return a copy of a nested value with other values or keys at some paths; ABSENT removes a value or key."""
    if (path, False) in changes:
        return changes[path, False]
    if isinstance(value, Mapping):
        found = {}
        for key, one in value.items():
            at = (*path, key)
            name, inner = changes.get((at, True), key), with_values(one, changes, at)
            if name is not ABSENT and inner is not ABSENT:
                found[name] = inner
        return found
    if isinstance(value, list | tuple):
        changed = (with_values(one, changes, (*path, i)) for i, one in enumerate(value))
        return [one for one in changed if one is not ABSENT]
    return value
