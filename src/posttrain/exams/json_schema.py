"""Does a JSON value fit a JSON Schema? Draft 2020-12, by the package jsonschema.

A schema that is malformed, or has keywords that the draft does not know, is not `checkable`: whoever judges says so
instead of guessing. `format` is an annotation here, as the standard has it by default. Nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["checkable", "fits"]

BESIDE = frozenset(
    ("then", "else", "minContains", "maxContains", "$schema", "$id", "$anchor", "$dynamicAnchor", "$vocabulary",
     "$defs", "$comment", "definitions", "title", "description", "default", "examples", "deprecated", "readOnly",
     "writeOnly", "contentEncoding", "contentMediaType", "contentSchema", "propertyOrdering", "strict", "name")
)  # fmt: skip
"""Keywords that are read with others or say nothing about a value; the last three are of APIs that answer in JSON."""


def checkable(schema: Mapping[str, Any]) -> bool:
    """Whether every keyword of the schema, and of the schemas inside it, is known and has a value that it may have."""
    from jsonschema import Draft202012Validator as Validator
    from jsonschema import SchemaError

    known = BESIDE | Validator.VALIDATORS.keys()
    try:
        Validator.check_schema(schema)
    except SchemaError:
        return False
    return all(key in known for part in _parts(schema) for key in part)


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and every schema inside it."""
    from referencing.jsonschema import DRAFT202012

    if isinstance(schema, Mapping):
        yield schema
        for inner in DRAFT202012.subresources_of(schema):
            yield from _parts(inner)


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether the value keeps every keyword. A reference that leads nowhere, or round in a circle, allows nothing."""
    from jsonschema import Draft202012Validator as Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        return Validator(schema, registry=Registry()).is_valid(value)
    except (Unresolvable, RecursionError):
        return False
