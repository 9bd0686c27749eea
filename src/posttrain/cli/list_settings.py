"""The settings of one kind, for `posttrain list SEAM KIND`: what may stand beside `kind:`, by its JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Setting", "settings_of"]

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


class Setting(NamedTuple):
    """One setting. key: its path in the YAML, such as `target.steps`; takes: what may be written; default: as YAML in
    one line, None if it must be given; help: what it is for.
    """

    key: str
    takes: str
    default: str | None
    help: str


def settings_of(config: type[Any]) -> list[Setting]:
    """Return the settings of a configuration class, without `kind`, in their order. Those of a part that is a mapping
    of its own follow it, by their paths.
    """
    schema = config.model_json_schema()
    return list(_settings(schema, schema.get("$defs", {}), "", {}))


def _settings(
    schema: Mapping[str, Any], parts: Mapping[str, Any], before: str, given: Mapping[str, Any]
) -> Iterator[Setting]:
    """Yield the settings of a schema. before: the path of the part; given: the defaults that its holder gives it."""
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        if "const" in field and name == "kind":
            continue
        key, told = f"{before}{name}", " ".join(field.get("description", "").split())
        empty: Any = {} if "additionalProperties" in field else []
        default = given.get(name, field.get("default", empty))
        inner = _part(field, parts)
        if inner is not None:
            yield Setting(key, "{...}", None if name in required else "", told)
            yield from _settings(inner, parts, f"{key}.", default or {})
        else:
            missing = name in required and name not in given
            yield Setting(key, _takes(field, parts), None if missing else _yaml(default), told)


def _part(field: Mapping[str, Any], parts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of a field that is always a mapping with known keys."""
    found = parts.get(str(field.get("$ref", "")).rpartition("/")[2], field)
    return found if "properties" in found else None


def _takes(field: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """Return in words what may be written for a field."""
    if "$ref" in field:
        return _takes(parts[field["$ref"].rpartition("/")[2]], parts)
    if "anyOf" in field:  # where a kind is chosen, its name comes first, and then the mappings of all kinds
        return " | ".join(dict.fromkeys(_takes(one, parts) for one in field["anyOf"]))
    if "const" in field:
        return _yaml(field["const"])
    if "enum" in field:
        return " | ".join(_yaml(value) for value in field["enum"])
    if field.get("type") == "array":
        return f"[{_takes(field['items'], parts)}, ...]" if "items" in field else "[...]"
    if field.get("type") == "object" or "properties" in field:
        return "{...}"
    bounds = "".join(f" {sign} {field[name]}" for name, sign in BOUNDS.items() if name in field)
    return str(field.get("type", "any")) + bounds


def _yaml(value: Any) -> str:
    """Return a value as it may be written in YAML."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
