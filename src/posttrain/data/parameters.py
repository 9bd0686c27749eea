"""What JSON schemas of tools say about the keys of a call's arguments, at every level.

It reads `properties`, `required`, `items`, `additionalProperties`, `$ref` within the schema, `allOf`, `anyOf` and
`oneOf`: a key of alternatives is required if all alternatives with keys require it. A key with null is ignored, since
Arrow gives every schema the keys of all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any, NamedTuple

from posttrain.config.json_text import BadJson, parse_json

__all__ = ["Keys", "Parameters", "schemas_of"]


class Keys(NamedTuple):
    """The keys that an object may have, each with its schema; the keys that it must have; the schema of other keys."""

    known: Mapping[str, Any]
    required: frozenset[str]
    others: Any = None


class Parameters(NamedTuple):
    """A schema, and the whole schema in which its references are resolved; None where there is no schema."""

    schema: Any = None
    whole: Any = None

    def keys(self) -> Keys | None:
        """The keys of an object of this schema; None when the schema names none, so that any are allowed."""
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
        """The part of the whole schema that `#/$defs/name` refers to; None if it is missing or was visited before."""
        if not isinstance(reference, str) or not reference.startswith("#") or reference in seen:
            return None
        seen.add(reference)
        part = self.whole
        for step in reference[1:].split("/")[1:]:
            part = part.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(part, dict) else None
        return part

    def at(self, key: str, keys: Keys | None) -> Parameters:
        """The schema of a key's value."""
        return self._replace(schema=None if keys is None else keys.known.get(key, keys.others))

    def items(self) -> Parameters:
        """The schema of the elements of a list."""
        return self._replace(schema={"anyOf": list(self._items(self.schema, set()))})

    def _items(self, schema: Any, seen: set[str]) -> Iterator[Any]:
        if isinstance(schema, dict):
            if isinstance(schema.get("items"), dict):
                yield schema["items"]
            parts = [self._meant(schema.get("$ref"), seen)]
            for part in parts + [one for kind in ("allOf", "anyOf", "oneOf") for one in _list(schema.get(kind))]:
                yield from self._items(part, seen)


def _joined(one: Keys, other: Keys) -> Keys:
    """The keys of two schemas that both apply."""
    twice = {key: {"anyOf": [one.known[key], other.known[key]]} for key in one.known.keys() & other.known.keys()}
    known = {**one.known, **other.known, **twice}
    return Keys(known, one.required | other.required, other.others if one.others is None else one.others)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def schemas_of(row: Mapping[str, Any]) -> dict[str, Parameters]:
    """Function -> the schema of its parameters in this row; any column may have the schemas."""
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
    """The schemas in a cell: a list, a single one, or JSON text."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")) and '"parameters"' in value:
        try:
            value = parse_json(value)
        except BadJson:  # some other text; if it is used, it is parsed again and reported
            return []
    return [value] if isinstance(value, dict) else _list(value)
