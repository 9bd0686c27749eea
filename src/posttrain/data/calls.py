"""Arguments of tool calls: an object, or the JSON text that OpenAI's own interface writes.

Most templates print the arguments as JSON. Given the text `"{\\"city\\": \\"Paris\\"}"` they print a quoted text in
place of an object, and the model learns arguments that no program can read. So a text that holds an object becomes that
object; any other text stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["function_of", "name_of", "with_objects", "with_texts"]

ARGUMENTS = "arguments"


def function_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a call that has name and arguments: under `function` in OpenAI's form, else the call itself."""
    inner = call.get("function")
    return inner if isinstance(inner, Mapping) else call


def name_of(call: Mapping[str, Any]) -> str | None:
    """The name of the called function."""
    name = function_of(call).get("name")
    return name if isinstance(name, str) else None


def with_objects(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The calls, arguments that are the JSON text of an object read."""
    return [_changed(call, _read) for call in calls]


def with_texts(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The calls, arguments that are objects written as JSON text, for templates that take nothing else."""
    return [_changed(call, _written) for call in calls]


def _changed(call: Mapping[str, Any], change: Any) -> dict[str, Any]:
    inner = function_of(call)
    if ARGUMENTS not in inner:
        return dict(call)
    changed = {**inner, ARGUMENTS: change(inner[ARGUMENTS])}
    return changed if inner is call else {**call, "function": changed}


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):  # no JSON, or brackets without end: a text like any other
        return value
    return found if isinstance(found, dict) else value


def _written(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
