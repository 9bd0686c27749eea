"""Read tool calls and their schemas. Arguments are an object, or JSON text, as OpenAI's interface returns it.

Given the text `"{\\"city\\": \\"Paris\\"}"` most templates print a quoted text instead of an object, and the model
learns arguments that no program can read. So a text with an object is parsed. An empty text, null and a missing value,
which many write for a call without parameters, become `{}`. Any other text stays. Llama's `parameters` are arguments
too.

The keys of the arguments, at every level, are read from these parts of the tool's schema: `properties`, `required`,
`items`, `additionalProperties`, `$ref` within the schema, `allOf`, `anyOf`, `oneOf`. A key of alternatives is required
if all alternatives with keys require it. A key with null is ignored, since Arrow gives every schema the keys of all
others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

from posttrain.config.json_text import BadJson, parse_json

__all__ = [
    "Keys",
    "Parameters",
    "argument_text",
    "fault_of_call",
    "function_of",
    "is_json",
    "json_fault",
    "name_of",
    "schemas_of",
    "with_arguments",
    "with_objects",
    "with_texts",
]

ARGUMENTS = "arguments"
PARAMETERS = "parameters"
KEYS = frozenset({"name", "id", "type", "index", "function", "description", ARGUMENTS, PARAMETERS})
"""The known keys of a call and of its `function`. In a call without arguments, an unknown key may hold them."""


def function_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a call with name and arguments: `function` in OpenAI's format, else the call itself."""
    inner = call.get("function")
    return inner if isinstance(inner, Mapping) else call


def name_of(call: Mapping[str, Any]) -> str | None:
    """Return the name of the called function, or None."""
    name = function_of(call).get("name")
    return name if isinstance(name, str) else None


def with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the call with `arguments`: its own, Llama's `parameters` or `{}`.

    A call with two different sets of arguments, which is a fault, stays as it is."""
    inner = function_of(call)
    if _has_both(inner):
        return dict(call)
    given = PARAMETERS if inner.get(PARAMETERS) is not None else ARGUMENTS
    changed = {key: one for key, one in inner.items() if key == given or key not in (ARGUMENTS, PARAMETERS)}
    changed = {ARGUMENTS if key == given else key: one for key, one in changed.items()}
    if changed.get(ARGUMENTS) is None:
        changed[ARGUMENTS] = {}
    return changed if inner is call else {**call, "function": changed}


def _has_both(function: Mapping[str, Any]) -> bool:
    """Return whether there are two sets of arguments that differ."""
    given = [function[key] for key in (ARGUMENTS, PARAMETERS) if function.get(key) is not None]
    return len(given) == 2 and given[0] != given[1]


def with_objects(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls, with arguments parsed if they are the JSON text of an object."""
    return [_changed(call, _read) for call in calls]


def with_texts(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls, with arguments that are objects written as JSON text, for templates that accept only text."""
    return [
        _changed(call, lambda value: json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value)
        for call in calls
    ]


def _changed(call: Mapping[str, Any], change: Any) -> dict[str, Any]:
    call = with_arguments(call)
    inner = function_of(call)
    changed = {**inner, ARGUMENTS: change(inner[ARGUMENTS])}
    return changed if inner is call else {**call, "function": changed}


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return {}
    try:
        found = json.loads(value)  # `fault_of_call` reports other faults of the text
    except (ValueError, RecursionError):  # not JSON, or nested too deep: it stays a text
        return value
    return found if isinstance(found, dict) else value


def json_fault(value: Any) -> tuple[str, str] | None:
    """Return cause and mend for the first part of a value that is not JSON, or None if the whole value is. Python's
    JSON accepts NaN and infinity, and a template would print values of other types as Python does.
    """
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            key = next((key for key in one if not isinstance(key, str)), None)
            if key is not None:
                return f"holds the key {key!r}, which is not JSON", "keys are texts"
            left += reversed(one.values())
        elif isinstance(one, list | tuple):
            left += reversed(one)
        elif isinstance(one, float):
            if not math.isfinite(one):
                return f"holds {one}, which is not JSON", "write null or a number"
        elif one is not None and not isinstance(one, str | int):
            return (
                f"holds a value of the type {type(one).__name__}, which is not JSON",
                "write it as a text or a number",
            )
    return None


def argument_text(call: Mapping[str, Any]) -> str | None:
    """Return the arguments if they are text, else None."""
    value = function_of(call).get(ARGUMENTS)
    return value if isinstance(value, str) else None


def fault_of_call(call: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return cause and mend for a call that must not be learned, else None.

    The faults are: no name; two sets of arguments, or an unknown key instead of them; values that are not JSON; JSON
    text that programs read in different ways (a key twice, nested too deep).
    """
    inner = function_of(call)
    if not (name_of(call) or "").strip():
        return "names no function", 'write it as {"function": {"name": "...", "arguments": {...}}}'
    if _has_both(inner):
        return "has both 'arguments' and 'parameters'", "keep one of them"
    if inner.get(ARGUMENTS) is None and inner.get(PARAMETERS) is None:
        other = next((key for key, one in inner.items() if key not in KEYS and one is not None), None)
        if other is not None:
            return f"has no 'arguments', but the unknown key {other!r}", "did you mean 'arguments'? or remove the key"
    call = with_arguments(call)
    text = (argument_text(call) or "").strip()
    if text.startswith("{") and text.endswith("}"):  # any other text is not an object
        try:
            fault = json_fault(parse_json(text))
        except BadJson as bad:
            fault = None if bad.broken else (f"cannot be used: {bad.cause}", bad.mend)
        if fault is not None:
            return f"has {ARGUMENTS} whose JSON text {fault[0]}", fault[1]
    return json_fault(call)


def is_json(text: str) -> bool:
    """Return whether a text is JSON that every program reads in the same way."""
    try:
        return json_fault(parse_json(text)) is None
    except BadJson:
        return False


# ---- schemas ---------------------------------------------------------------------------------------------------------


class Keys(NamedTuple):
    """The keys of an object. known: key -> its schema; required: the keys that it must have; others: the schema of all
    other keys."""

    known: Mapping[str, Any]
    required: frozenset[str]
    others: Any = None


class Parameters(NamedTuple):
    """A schema, and the whole schema in which its references are resolved; both None if there is no schema."""

    schema: Any = None
    whole: Any = None

    def keys(self) -> Keys | None:
        """Return the keys of an object of this schema, or None when the schema names none, so that any are allowed."""
        return self._keys(self.schema, set())

    def _keys(self, schema: Any, seen: set[str]) -> Keys | None:
        if not isinstance(schema, dict):
            return None
        found: list[Keys] = []
        known, others, must = (schema.get(key) for key in ("properties", "additionalProperties", "required"))
        if isinstance(known, dict) or isinstance(must, list) or isinstance(others, dict):
            told = {key: one for key, one in known.items() if one is not None} if isinstance(known, dict) else {}
            names = [name for name in must if isinstance(name, str)] if isinstance(must, list) else []
            found.append(Keys(told, frozenset(names), others))
        together = [self._meant(schema.get("$ref"), seen), *_list(schema.get("allOf"))]
        found += [keys for one in together if (keys := self._keys(one, seen)) is not None]
        for kind in ("anyOf", "oneOf"):
            choices = [keys for one in _list(schema.get(kind)) if (keys := self._keys(one, seen)) is not None]
            if choices:
                shared = reduce(frozenset.__and__, (keys.required for keys in choices))
                found.append(reduce(_joined, choices)._replace(required=shared))
        return reduce(_joined, found) if found else None

    def _meant(self, reference: Any, seen: set[str]) -> Any:
        """Return the part of the whole schema that `#/$defs/name` refers to, or None if it is missing or in `seen`."""
        if not isinstance(reference, str) or not reference.startswith("#") or reference in seen:
            return None
        seen.add(reference)
        part = self.whole
        for step in reference[1:].split("/")[1:]:
            part = part.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(part, dict) else None
        return part

    def at(self, key: str, keys: Keys | None) -> Parameters:
        """Return the schema of a key's value."""
        return self._replace(schema=None if keys is None else keys.known.get(key, keys.others))

    def items(self) -> Parameters:
        """Return the schema of the elements of a list."""
        return self._replace(schema={"anyOf": list(self._items(self.schema, set()))})

    def _items(self, schema: Any, seen: set[str]) -> Iterator[Any]:
        if isinstance(schema, dict):
            if isinstance(schema.get("items"), dict):
                yield schema["items"]
            parts = [self._meant(schema.get("$ref"), seen)]
            for part in parts + [one for kind in ("allOf", "anyOf", "oneOf") for one in _list(schema.get(kind))]:
                yield from self._items(part, seen)


def _joined(one: Keys, other: Keys) -> Keys:
    """Return the keys of two schemas that both apply."""
    twice = {key: {"anyOf": [one.known[key], other.known[key]]} for key in one.known.keys() & other.known.keys()}
    known = {**one.known, **other.known, **twice}
    return Keys(known, one.required | other.required, other.others if one.others is None else one.others)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def schemas_of(row: Mapping[str, Any]) -> dict[str, Parameters]:
    """Return function -> the schema of its parameters in this row. Any column may hold the schemas."""
    found: dict[str, Parameters] = {}
    for value in row.values():
        for tool in _tools(value):
            told = tool.get("function") if isinstance(tool, dict) and isinstance(tool.get("function"), dict) else tool
            if isinstance(told, dict) and isinstance(told.get("name"), str):
                one = Parameters(told.get("parameters"), told.get("parameters"))
                if one.keys() is not None:
                    found[told["name"]] = one
    return found


def _tools(value: Any) -> list[Any]:
    """Return the schemas in a cell, which is a list, a single schema, or JSON text."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")) and '"parameters"' in value:
        try:
            value = parse_json(value)
        except BadJson:  # some other text; if it is used, it is parsed again and reported
            return []
    return [value] if isinstance(value, dict) else _list(value)
