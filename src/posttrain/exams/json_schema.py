"""Does a JSON value fit a JSON Schema? The keywords of draft 2020-12 that answers are asked to keep, and no more.

A schema with other keywords cannot be checked: `unknown_keywords` names them, and whoever judges says so instead of
guessing. `format` is an annotation here, as the standard has it by default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["fits", "unknown_keywords"]

Schema = Mapping[str, Any] | bool
TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and float(v).is_integer(),
}
ANNOTATIONS = frozenset(
    ("$schema", "$id", "$comment", "title", "description", "default", "examples", "format", "deprecated", "readOnly",
     "writeOnly", "$defs", "definitions", "propertyOrdering", "strict", "name")
)  # fmt: skip
CHECKED = frozenset(
    ("type", "enum", "const", "properties", "required", "additionalProperties", "patternProperties", "minProperties",
     "maxProperties", "items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains", "minLength",
     "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "allOf",
     "anyOf", "oneOf", "not", "$ref")
)  # fmt: skip


def unknown_keywords(schema: Schema) -> list[str]:
    """Keywords anywhere in the schema that are not checked here."""
    return sorted({key for part in _parts(schema) for key in part if key not in CHECKED | ANNOTATIONS})


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and every schema inside it; names of properties are no keywords."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        for inner in (schema.get(key) or {}).values():
            yield from _parts(inner)
    for key in ("additionalProperties", "items", "contains", "not"):
        yield from _parts(schema.get(key))
    for key in ("allOf", "anyOf", "oneOf", "prefixItems"):
        for inner in schema.get(key) or []:
            yield from _parts(inner)


def fits(value: Any, schema: Schema, root: Schema | None = None) -> bool:
    """Whether the value keeps every keyword; root: where `$ref: "#/..."` begins, the schema itself by default."""
    if isinstance(schema, bool):
        return schema
    root = schema if root is None else root
    ref = schema.get("$ref")
    if ref is not None and not fits(value, _referred(ref, root), root):
        return False
    kinds = schema.get("type")
    if kinds is not None and not any(TYPES[k](value) for k in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if "enum" in schema and not any(_equal(value, one) for one in schema["enum"]):
        return False
    if "const" in schema and not _equal(value, schema["const"]):
        return False
    return _combined(value, schema, root) and _shaped(value, schema, root)


def _combined(value: Any, schema: Mapping[str, Any], root: Schema) -> bool:
    return (
        all(fits(value, one, root) for one in schema.get("allOf", []))
        and ("anyOf" not in schema or any(fits(value, one, root) for one in schema["anyOf"]))
        and ("oneOf" not in schema or sum(fits(value, one, root) for one in schema["oneOf"]) == 1)
        and ("not" not in schema or not fits(value, schema["not"], root))
    )


def _shaped(value: Any, schema: Mapping[str, Any], root: Schema) -> bool:
    """The keywords of the value's own type; those of other types say nothing about it."""
    if isinstance(value, dict):
        return _object(value, schema, root)
    if isinstance(value, list):
        return _array(value, schema, root)
    if isinstance(value, str):
        return _within(len(value), schema, "minLength", "maxLength") and (
            "pattern" not in schema or re.search(schema["pattern"], value) is not None
        )
    if TYPES["number"](value):
        return (
            _within(value, schema, "minimum", "maximum")
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
            and ("multipleOf" not in schema or float(value / schema["multipleOf"]).is_integer())
        )
    return True


def _object(value: dict[str, Any], schema: Mapping[str, Any], root: Schema) -> bool:
    if not _within(len(value), schema, "minProperties", "maxProperties"):
        return False
    if not all(key in value for key in schema.get("required") or []):
        return False
    named, patterns = schema.get("properties") or {}, schema.get("patternProperties") or {}
    for key, inner in value.items():
        rules = [named[key]] if key in named else []
        rules += [rule for pattern, rule in patterns.items() if re.search(pattern, key)]
        if not rules and "additionalProperties" in schema:
            rules = [schema["additionalProperties"]]
        if not all(fits(inner, rule, root) for rule in rules):
            return False
    return True


def _array(value: list[Any], schema: Mapping[str, Any], root: Schema) -> bool:
    if not _within(len(value), schema, "minItems", "maxItems"):
        return False
    first = schema.get("prefixItems") or []
    if not all(fits(inner, rule, root) for inner, rule in zip(value, first, strict=False)):
        return False
    if "items" in schema and not all(fits(inner, schema["items"], root) for inner in value[len(first) :]):
        return False
    if "contains" in schema and not any(fits(inner, schema["contains"], root) for inner in value):
        return False
    twice = schema.get("uniqueItems") and any(_equal(a, b) for i, a in enumerate(value) for b in value[:i])
    return not twice


def _within(size: float, schema: Mapping[str, Any], least: str, most: str) -> bool:
    return not (least in schema and size < schema[least]) and not (most in schema and size > schema[most])


def _equal(a: Any, b: Any) -> bool:
    """JSON's equality: 1 and 1.0 are the same, 1 and true are not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return bool(a == b)


def _referred(ref: str, root: Schema) -> Schema:
    """A reference inside the schema; one that leads nowhere allows nothing."""
    part: Any = root
    for step in ref.removeprefix("#").strip("/").split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        if step:
            part = part.get(step, False) if isinstance(part, Mapping) else False
    return part if isinstance(part, Mapping | bool) else False
