"""Convert rows in other formats to posttrain's own fields: Alpaca, ShareGPT, content and summary, steering's pairs.

- Alpaca: `instruction` and `output`; `input`, if there is one, follows the instruction after a blank line. A row may
  also have `system`, and `history`, a list of [question, answer]. A row with `chosen` and `rejected` instead of
  `output` is a preference.
- ShareGPT: `conversations` (or `conversation`), turns of `from` and `value`. A row may also have `system` and `tools`.
  A turn from `function_call` is the assistant's, and its value is the call as JSON; `observation` is the tool's answer.
  A row that also has `chosen` and `rejected`, a turn each, is a preference.
- `content` and `summary`: the text to summarise, and the summary; `history` as above.
- `prompt`, `positive` and `negative`: a preference of the positive answer, as files of contrast pairs have it.

A row is recognised by its keys; a row with posttrain's own keys (`messages`, `prompt`, ...) is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from posttrain.config.json_text import BadJson, parse_json
from posttrain.data.fields import (
    MESSAGE_KEYS,
    BadRow,
    check_spelling,
    filled,
    is_text,
    keys_of,
    kind_of,
    missing,
    text_of,
)

__all__ = ["FIELDS", "Converted", "own_fields", "turns_in"]

TURN_KEYS = ("conversations", "conversation")
SPEAKER_KEYS, WORD_KEYS = ("from", "role", "speaker"), ("value", "content", "text")
SPEAKERS = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "bard", "bing"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "function_call"),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response", "function"), "tool"),
}
"""Name of a speaker in ShareGPT files -> role."""
KEPT = ("train", "weight", "name", "tool_call_id", "reasoning_content", "reasoning", "thinking")
"""The other keys of a turn that are kept."""
ARGUMENT_KEYS = ("arguments", "parameters")
CALL_KEYS = ("name", *ARGUMENT_KEYS, "id", "type")
"""The keys of a call in a turn of `function_call`."""
CONTRAST = {"positive": "chosen", "negative": "rejected"}
FIELDS = ("instruction", "input", "output", "system", "history", *TURN_KEYS, "content", "summary", *CONTRAST)
"""The fields of these formats, to which columns may be mapped."""


class Converted(NamedTuple):
    """A row in posttrain's own fields. format: the format it was converted from, "" for posttrain's own."""

    format: str
    row: Mapping[str, Any]


def own_fields(row: Mapping[str, Any]) -> Converted:
    """Return the row as it is, or converted to messages, to prompt and completion, or to a preference. Raise BadRow."""
    has = {key for key, value in row.items() if filled(value)}
    turns_key = next((key for key in TURN_KEYS if key in has), "")
    if "messages" in has:
        if _is_sharegpt(row["messages"]):
            return Converted("ShareGPT", _sharegpt(row, "messages"))
        return Converted("", {**row, "messages": turns_in(row["messages"], "messages")})
    if turns_key:
        return Converted("ShareGPT", _sharegpt(row, turns_key))
    if row.get("instruction") is not None and "prompt" not in has:
        if has & {"output", "chosen", "rejected"} or "output" in row:
            return Converted("Alpaca", _alpaca(row, has))
        if not has & {"text", "completion"}:
            mend = missing("output", row, 'add "output": "..."')
            if "response" in has:  # a row of Dolly
                mend = "columns: {" + ("input: context, " if "context" in row else "") + "output: response}"
            raise BadRow("a row without an answer: 'instruction' but no 'output'", mend)
    if {"content", "summary"} <= has and not has & {"prompt", "text", "completion", "chosen"}:
        text_of(row, "summary")
        return Converted("content and summary", _asked(row, text_of(row, "content"), {"completion": row["summary"]}))
    if "prompt" in has and has & CONTRAST.keys() and not has & {"chosen", "rejected", "completion", "text"}:
        lacking = next((key for key in CONTRAST if key not in has), "")
        if lacking:
            raise BadRow(f"a pair without '{lacking}'", missing(lacking, row, f'add "{lacking}": "..."'))
        return Converted("positive and negative answers", {**row, **{CONTRAST[key]: row[key] for key in CONTRAST}})
    compared = [key for key in ("prompt", "chosen", "rejected") if key in has]
    if {"chosen", "rejected"} <= has and any(_is_sharegpt(row[key]) for key in compared):
        return Converted("ShareGPT", {**row, **{key: _turns_of(row[key], key) for key in compared}})
    return Converted("", row)


def turns_in(value: Any, field: str) -> Any:
    """Return a list of turns, parsed if it is JSON text, as in tables and hub data sets. Raise BadRow for bad JSON."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return parse_json(value)
    except BadJson as bad:
        mend = "write it with json.dumps, not str" if value.lstrip()[:2] in ("['", "[{") and "'" in value else bad.mend
        raise BadRow(f"the text of '{field}' is {bad.cause}", mend) from bad


# ---- Alpaca, content and summary -------------------------------------------------------------------------------------


def _alpaca(row: Mapping[str, Any], has: set[str]) -> Mapping[str, Any]:
    check_spelling(
        row, "", {"input": is_text, "system": is_text, "history": lambda value: isinstance(value, list)}, FIELDS
    )
    said = [text_of(row, key) for key in ("instruction", "input") if key in has]
    asked = "\n\n".join(said) if said else text_of(row, "instruction")
    if not asked.strip():
        raise BadRow("'instruction' is empty", "write the prompt or remove the row")
    if has & {"chosen", "rejected"}:
        return _asked(row, asked, {key: row.get(key) for key in ("chosen", "rejected")})
    if not filled(row.get("output")):
        raise BadRow("a row without an answer: 'output' is empty", "write the answer or remove the row")
    return _asked(row, asked, {"completion": text_of(row, "output")})


def _asked(row: Mapping[str, Any], asked: str, answers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row with its prompt: a text, or a conversation if there are earlier turns."""
    before = _before(row)
    if not before:
        return {**row, "prompt": asked, **answers}
    said = [*before, {"role": "user", "content": asked}]
    turns = {k: [{"role": "assistant", "content": v}] if isinstance(v, str) else v for k, v in answers.items()}
    return {**row, "prompt": said, **turns}


def _before(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    if filled(row.get("system")):
        turns.append({"role": "system", "content": text_of(row, "system")})
    history = turns_in(row.get("history"), "history")
    if not filled(history):
        return turns
    for i, pair in enumerate(history if isinstance(history, list) else [history]):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(said, str) for said in pair):
            raise BadRow(f"history[{i}] must be a question and its answer, got {kind_of(pair)}", '[["Hi", "Hello!"]]')
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


# ---- ShareGPT --------------------------------------------------------------------------------------------------------


def _is_sharegpt(value: Any) -> bool:
    """Return whether a turn, or the first of a list of turns, has `from` or `value` and no `role`."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and first.get("role") is None and (first.keys() & {"from", "value"} != set())


def _sharegpt(row: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    check_spelling(row, "", {"system": is_text}, FIELDS)
    turns = _turns_of(row[field], field)
    if filled(row.get("system")):
        if turns and turns[0]["role"] == "system":
            raise BadRow(f"two system prompts: 'system' and the first turn of '{field}'", "keep one of them")
        turns = [{"role": "system", "content": text_of(row, "system")}, *turns]
    found = {**row, "tools": _schemas(row.get("tools"))}
    if filled(row.get("chosen")) and filled(row.get("rejected")):
        answers = {
            key: [{"role": "assistant", "content": row[key]}] if isinstance(row[key], str) else _turns_of(row[key], key)
            for key in ("chosen", "rejected")
        }
        return {**found, "messages": None, "prompt": turns, **answers}
    return {**found, "messages": turns}


def _turns_of(value: Any, field: str) -> list[dict[str, Any]]:
    turns = turns_in(value, field)
    turns = [turns] if isinstance(turns, dict) else turns
    if not isinstance(turns, list):
        mend = '[{"from": "human", "value": "Hi"}, ...]'
        raise BadRow(f"'{field}' must be a list of turns, got {kind_of(turns)}", mend)
    return [_turn(turn, f"{field}[{i}]") for i, turn in enumerate(turns)]


def _turn(turn: Any, at: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise BadRow(f"{at} must be an object with 'from' and 'value', got {kind_of(turn)}")
    who = next((turn[key] for key in SPEAKER_KEYS if turn.get(key) is not None), None)
    if who is None:
        raise BadRow(f"{at} has no 'from'", missing("from", turn, f"it has {keys_of(turn)}"))
    role = SPEAKERS.get(who.strip().lower()) if isinstance(who, str) else None
    if role is None:
        raise BadRow(f"{at} is from {who!r}, which is unknown", f"known: {', '.join(SPEAKERS)}")
    words = next((turn[key] for key in WORD_KEYS if turn.get(key) is not None), None)
    if words is None and not filled(turn.get("tool_calls")):
        raise BadRow(f"{at} has no 'value'", missing("value", turn, f"it has {keys_of(turn)}"))
    check_spelling(turn, at, MESSAGE_KEYS, (*SPEAKER_KEYS, *WORD_KEYS))
    rest = {key: turn[key] for key in KEPT if turn.get(key) is not None}
    if filled(turn.get("tool_calls")):
        rest["tool_calls"] = turn["tool_calls"]
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(words, at), **rest}
    return {"role": role, "content": words, **rest}


def _calls(words: Any, at: str) -> list[dict[str, Any]]:
    """Return the calls of a `function_call` turn, which holds one call or a list of calls as JSON. Raise BadRow."""
    example = '{"name": "...", "arguments": {...}}'
    try:
        value = parse_json(words) if isinstance(words, str) else words
    except BadJson as bad:
        raise BadRow(f"{at} (function_call) is {bad.cause}", f"such as {example}") from bad
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise BadRow(f"{at} (function_call) names no function", f"such as {example}")
    return [_call(call, at) for call in calls]


def _call(call: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Return a call in OpenAI's format. Raise BadRow for an unknown key, since it may hold the arguments."""
    unknown = [key for key in call if key not in CALL_KEYS]
    if unknown:
        near = missing("arguments", dict.fromkeys(unknown), f"known: {', '.join(CALL_KEYS)}")
        raise BadRow(f"{at} (function_call) calls {call['name']!r} with the unknown key {unknown[0]!r}", near)
    given = [call[key] for key in ARGUMENT_KEYS if call.get(key) is not None]
    if len(given) == 2 and given[0] != given[1]:
        raise BadRow(f"{at} (function_call) has both 'arguments' and 'parameters'", "keep one of them")
    told = {"id": call["id"]} if call.get("id") is not None else {}
    return {**told, "type": "function", "function": {"name": call["name"], "arguments": given[0] if given else {}}}


def _schemas(value: Any) -> Any:
    """Return schemas in OpenAI's format. ShareGPT's often lack `{"type": "function", "function": ...}` around them."""
    tools = turns_in(value, "tools")
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list):
        return tools
    return [
        {"type": "function", "function": tool}
        if isinstance(tool, dict) and "function" not in tool and "name" in tool
        else tool
        for tool in tools
    ]
