"""Read the fields of a row: messages, texts and tools. A wrong field raises `BadRow` with the mend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, TypeAlias

from posttrain.config.json_text import BadJson, parse_json
from posttrain.data.calls import fault_of_call, json_fault, with_arguments
from posttrain.data.records import ROLES, Message

__all__ = [
    "MESSAGE_KEYS",
    "BadRow",
    "Takes",
    "check_spelling",
    "filled",
    "is_text",
    "keys_of",
    "kind_of",
    "messages_of",
    "missing",
    "near_key",
    "text_of",
    "tools_of",
    "words_of",
]

ROLE_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
"""Name of a role in other formats -> the role, for the mend."""


Takes: TypeAlias = Mapping[str, Callable[[Any], bool]]
"""Optional key -> a function that returns whether a value has the right type."""
NEAR = 0.76
"""The least similarity at which an unknown key counts as misspelt: `training` counts for `train`, `game` does not count
for `name`."""


def is_text(value: Any) -> bool:
    """Return whether a value is a string."""
    return isinstance(value, str)


def _is_schemas(value: Any) -> bool:
    """Return whether a value is an object, a list of objects or JSON text. A key `tool` may also hold only a name."""
    if isinstance(value, str):
        return value.lstrip().startswith(("[{", "{"))
    return isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict))


MESSAGE_KEYS: Takes = {
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking", "name", "tool_call_id"), is_text),
    **dict.fromkeys(("train", "weight"), lambda value: isinstance(value, bool | int | float)),
    "tool_calls": lambda value: isinstance(value, list | dict | str),
}
"""The keys that a message may have in addition to role and content."""
ROW_KEYS: Takes = {"tools": _is_schemas}


class BadRow(Exception):
    """A row cannot be used. It has the cause and the mend; the readers turn it into a `Problem`."""

    def __init__(self, cause: str, mend: str = "") -> None:
        self.cause, self.mend = cause, mend
        super().__init__(cause)


def messages_of(value: Any, field: str) -> tuple[Message, ...]:
    """Return the messages of a list. field: its name, for errors. Raise BadRow when the list or a message is wrong."""
    if not isinstance(value, list):
        raise BadRow(f"'{field}' must be a list of messages, got {kind_of(value)}")
    if not value:
        raise BadRow(f"'{field}' is empty", "remove the row")
    return tuple(_message(item, f"{field}[{i}]") for i, item in enumerate(value))


def _message(item: Any, at: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow(f"{at} must be an object with 'role' and 'content', got {kind_of(item)}")
    role = item.get("role")
    if role is None:
        raise BadRow(f"{at} has no 'role'", missing("role", item, f"roles are {', '.join(ROLES)}"))
    if not isinstance(role, str) or role not in ROLES:
        close = ROLE_NAMES.get(role) if isinstance(role, str) else None
        mend = f"write '{close}'" if close else f"one of {', '.join(ROLES)}"
        raise BadRow(f"{at} has the unknown role {role!r}", mend)
    check_spelling(item, at, MESSAGE_KEYS, ("role", "content"))
    if item.get("function_call") is not None:
        raise BadRow(f"{at} has 'function_call', OpenAI's older form", 'write it as "tool_calls": [{"function": ...}]')
    calls = _calls(item.get("tool_calls"), at)
    content = _content(item, at, optional=calls is not None)
    if not content.strip() and calls is None and role in {"user", "assistant"}:
        what = "a row without an answer: " if role == "assistant" else ""
        raise BadRow(f"{what}{at} ({role}) has empty content", "write the text or remove the row")
    told = [item[k] for k in ("reasoning_content", "reasoning", "thinking") if item.get(k) is not None]
    said = [one for one in told if one != ""] or told
    if any(one != said[0] for one in said):
        raise BadRow(f"{at} has two different reasonings", "keep one of reasoning_content, reasoning and thinking")
    reasoning = said[0] if said else None
    return Message(
        role,
        content,
        reasoning=_optional(reasoning, f"{at}.reasoning_content"),
        tool_calls=calls,
        name=_optional(item.get("name"), f"{at}.name"),
        train=_train(item, at),
        tool_call_id=_optional(item.get("tool_call_id"), f"{at}.tool_call_id"),
    )


def _content(item: Mapping[str, Any], at: str, *, optional: bool) -> str:
    value = item.get("content")
    if isinstance(value, str):
        return value
    if value is None:
        if optional:
            check_spelling(item, at, {"content": is_text}, MESSAGE_KEYS)
            return ""
        raise BadRow(f"{at} has no 'content'", missing("content", item, 'add "content": "..."'))
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) == len(value) and all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
        raise BadRow(f"{at}.content has parts that are not text", 'only {"type": "text", "text": ...} parts are read')
    raise BadRow(f"{at}.content must be a string, got {kind_of(value)}")


def _calls(value: Any, at: str) -> tuple[dict[str, Any], ...] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise BadRow(f"{at}.tool_calls must be a list of objects, got {kind_of(value)}")
    for call in value:
        fault = fault_of_call(call)
        if fault is not None:
            raise BadRow(f"{at}.tool_calls {fault[0]}", fault[1])
    return tuple(with_arguments(call) for call in value)


def tools_of(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...] | None:
    """Return the JSON schemas of a row's tools, given as a list or as JSON text, or None. Raise BadRow."""
    check_spelling(row, "", ROW_KEYS)
    value = row.get("tools")
    if isinstance(value, str) and value.strip():  # hub data sets store schemas as JSON text
        try:
            value = parse_json(value)
        except BadJson as bad:
            raise BadRow(f"'tools' is {bad.cause}", bad.mend) from bad
    if value is None or value in ("", []):
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow(f"'tools' must be a list of JSON schemas, got {kind_of(value)}")
    fault = json_fault(value)
    if fault is not None:
        raise BadRow(f"'tools' {fault[0]}", fault[1])
    return tuple(value)


def _train(item: Mapping[str, Any], at: str) -> bool | None:
    value = item.get("train")
    if value is None and item.get("weight") is not None:  # OpenAI: weight 0 or 1
        if item["weight"] not in (0, 1):
            raise BadRow(f"{at}.weight must be 0 or 1, got {item['weight']!r}")
        value = bool(item["weight"])
    if value is not None and not isinstance(value, bool):
        raise BadRow(f"{at}.train must be true or false, got {kind_of(value)}")
    return value


def _optional(value: Any, at: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise BadRow(f"{at} must be a string, got {kind_of(value)}")
    return value


def text_of(row: Mapping[str, Any], field: str) -> str:
    """Return a field that must be a string. Raise BadRow otherwise."""
    value = row.get(field)
    if isinstance(value, str):
        return value
    if field in row:
        raise BadRow(f"'{field}' must be a string, got {kind_of(value)}")
    raise BadRow(f"'{field}' is missing", missing(field, row, f"the row has {keys_of(row)}"))


def words_of(row: Mapping[str, Any], field: str, mend: str = "remove the row") -> str:
    """Return a field that must be a string with words. Raise BadRow otherwise; mend: for an empty string."""
    text = text_of(row, field)
    if not text.strip():
        raise BadRow(f"'{field}' is empty", mend)
    return text


def filled(value: Any) -> bool:
    """Return whether a value is not empty: tables and data sets have None, "" or [] when a row has no such field."""
    return bool(value.strip()) if isinstance(value, str) else value is not None and value != []


def near_key(wanted: str, row: Mapping[str, Any]) -> str:
    """Return the row's key that is most similar to the wanted key, or "" when none is similar."""
    return next(iter(get_close_matches(wanted, [str(key) for key in row], n=1, cutoff=0.75)), "")


def check_spelling(item: Mapping[str, Any], at: str, takes: Takes, known: Collection[str] = ()) -> None:
    """Raise BadRow for a key that seems to be a misspelt key of `takes`.

    It is similar, its value has the right type, and the right key is missing. at: the item's name in the row, "" for
    the row itself; known: other keys that are read.
    """
    for key, value in item.items():
        if key in takes or key in known or not filled(value):
            continue
        near = _near(key.casefold(), tuple(takes))
        if near and takes[near](value) and not filled(item.get(near)):
            cause = f"{at} has the unknown key {key!r}" if at else f"the row has the unknown key {key!r}"
            raise BadRow(cause, f"did you mean '{near}'? else give it another name")


@lru_cache(maxsize=1024)
def _near(key: str, known: tuple[str, ...]) -> str:
    return next(iter(get_close_matches(key, known, n=1, cutoff=NEAR)), "")


def missing(field: str, row: Mapping[str, Any], otherwise: str) -> str:
    """Return the mend for a missing field: a question about the misspelt key if there is one, else `otherwise`."""
    near = near_key(field, row)
    return f"did you mean '{field}'? it has '{near}'" if near and near != field else otherwise


def kind_of(value: Any) -> str:
    """Return the type of a value in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def keys_of(row: Mapping[str, Any]) -> str:
    """Return the names of a row's first ten fields, for messages."""
    return ", ".join(f"'{key}'" for key in list(row)[:10]) or "no fields"
