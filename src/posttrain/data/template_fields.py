"""Fields of a conversation that a chat template leaves out, found by rendering it with and without them.

A template silently drops what it does not use: a user's `name`, the reasoning of earlier turns (Qwen3), text beside a
tool call (Llama 3.1), the second call of a turn, a parameter's `pattern` (gpt-oss), a turn of an unknown role. What is
in the row but not in the text cannot be learned, so such a row is refused.

First all fields are rendered together, replaced by unique words; a field whose word is in the text is used. For each of
the others the conversation is rendered again with another word: if the text is the same, the field is left out. Ids and
names of tool results in the order of their calls may be left out, since the order of turns tells them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from posttrain.data.calls import function_of, name_of, with_objects
from posttrain.data.records import Message
from posttrain.data.template_parts import ABSENT, Part, call_parts, other_value, schema_parts, seen_value, with_values
from posttrain.errors import Problem, TemplateError

__all__ = ["Field", "FieldCheck", "Tools"]

Tools = Sequence[dict[str, Any]] | None

MENDS = {
    "content": "remove the turn, write it in another role, or take a template that has a place for it",
    "reasoning": "remove the field; where the template keeps the reasoning of the last turns only, end the row with "
    "this turn and give later ones rows of their own",
    "name": "remove the field, or write the name into the content",
    "tool_call_id": "put the results in the order of their calls, with the ids of the calls, or remove the field",
    "tool_calls": "one call in each turn, or take a template that has a place for all",
}
MEND = "remove the field from the row"
SCHEMA_MEND = "take it out of the schema, or write it into a description that the template prints"
CALL_MEND = "remove it from the call, or take a template that has a place for it"
WORDS = "posttrainwords"
"""The beginning of the unique words."""


class Text(Protocol):
    """Renders a conversation."""

    def __call__(self, messages: Sequence[Message], tools: Tools, location: str, *, prompt: bool = False) -> str: ...


class Field(NamedTuple):
    """A field of a conversation; turn: index of the message, None for the row; at: index among several calls."""

    name: str
    turn: int | None
    at: int = 0


class Placed(NamedTuple):
    """A part of a turn's calls, or (turn None) of schemas; like: equal for parts that templates treat alike."""

    turn: int | None
    part: Part
    like: int


class FieldCheck:
    """Checks conversations with one template; remembers which turns, and parts of schemas and calls, it uses."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.kept: set[tuple[Any, ...]] = set()
        self.kept_parts: set[int] = set()
        self.kept_tools: set[int] = set()

    def __call__(
        self, messages: Sequence[Message], tools: Tools, location: str, text: str, *, prompt: bool = False
    ) -> None:
        """TemplateError naming the first field that is left out of `text`, which is the rendered conversation."""
        fields = list(_fields(messages, tools))
        # an answer that is learned is found in its turn anyway
        found = [not prompt and m.role == "assistant" and m.supervised and not m.tool_calls for m in messages]
        turns = [Field("content", i) for i, m in enumerate(messages) if m.content.strip() and not found[i]]
        shape = (_shape(messages), tuple(found), bool(tools), prompt)
        for some, parts in ((fields, self._parts(messages, tools)), (turns if shape not in self.kept else [], [])):
            lacking = self._without_words(some, parts, messages, tools, prompt)
            for field in lacking[0]:
                if self._left_out((_with(field, x, messages, tools) for x in (WORDS, None)), prompt, text):
                    cause = _cause(field.name, field.turn, messages)
                    raise TemplateError(Problem(location, cause, MENDS.get(field.name, MEND)))
            for part in lacking[1]:
                values = (other_value(part.part, WORDS), ABSENT)
                others = (_with_parts([(part, value)], messages, tools) for value in values)
                if self._is_new(part) and self._left_out(others, prompt, text):
                    named, mend = ("tools", SCHEMA_MEND) if part.turn is None else ("tool_calls", CALL_MEND)
                    cause = _cause(f"{named}{part.part}", part.turn, messages)
                    raise TemplateError(Problem(location, cause, mend))
                self.kept_parts.add(part.like)
            self.kept_parts |= {part.like for part in parts}
        self.kept.add(shape)
        self.kept_tools.add(hash(repr(tools)))
        for turn in turns:
            self._check_lines(turn, messages, tools, location, text, prompt)

    def _parts(self, messages: Sequence[Message], tools: Tools) -> list[Placed]:
        """Parts of schemas and calls to check; of tools only those that are unlike all parts checked before."""
        found: list[Placed] = []
        if tools and hash(repr(tools)) not in self.kept_tools:
            found += [Placed(None, part, like) for part, like in schema_parts(tools) if like not in self.kept_parts]
        for i, message in enumerate(messages):
            for part in call_parts(with_objects(message.tool_calls or ())):
                like = hash((*map(type, part.path), part.key, type(part.value)))
                found.append(Placed(i, part, like))
        return found

    def _is_new(self, placed: Placed) -> bool:
        """Whether to check a part that was not seen in the text; a value that cannot be seen is treated as its like."""
        known = placed.like in self.kept_parts
        return not known or (placed.turn is not None and seen_value(placed.part, "", 0) is not None)

    def _without_words(
        self, fields: Sequence[Field], parts: Sequence[Placed], messages: Sequence[Message], tools: Tools, prompt: bool
    ) -> tuple[list[Field], list[Placed]]:
        """The fields and parts whose words are not in the text; all when the template refuses the words."""
        if not fields and not parts:
            return [], []
        words = {field: f"{WORDS}{i}end" for i, field in enumerate(fields)}
        values = [seen_value(placed.part, f"{WORDS}{i}part", i) for i, placed in enumerate(parts)]
        told, known = _with_parts(
            [(placed, one) for placed, one in zip(parts, values, strict=True) if one is not None], messages, tools
        )
        for field, text in words.items():
            told, known = _with(field, text, told, known)
        rendered = self._renders(told, known, prompt)
        if rendered is None:
            return list(fields), list(parts)
        return (
            [field for field in fields if words[field] not in rendered],
            [placed for placed, one in zip(parts, values, strict=True) if one is None or str(one) not in rendered],
        )

    def _check_lines(
        self, turn: Field, messages: Sequence[Message], tools: Tools, location: str, text: str, prompt: bool
    ) -> None:
        """TemplateError when a line of a turn is left out: Qwen3 removes thoughts from earlier turns. Lines are checked
        only if the content is not in the text literally, plain or quoted as JSON."""
        assert turn.turn is not None
        message = messages[turn.turn]
        quoted = json.dumps(message.content, ensure_ascii=False)[1:-1]
        if message.content.strip() in text or quoted in text:
            return
        lines = message.content.split("\n")
        for i, line in enumerate(lines):
            if not line.strip():
                continue
            for words in ([WORDS], []):  # with other words, and without the line
                told = replace(message, content="\n".join([*lines[:i], *words, *lines[i + 1 :]]))
                changed = (*messages[: turn.turn], told, *messages[turn.turn + 1 :])
                if (words or line.strip() not in text) and self._renders(changed, tools, prompt) == text:
                    said = f"{line.strip()[:40]!r} of turn {turn.turn} ({message.role})"
                    cause = f"the chat template drops {said} silently"
                    raise TemplateError(Problem(location, cause, "take it out of the content"))

    def _renders(self, messages: Sequence[Message], tools: Tools, prompt: bool) -> str | None:
        """The text; None when the template refuses the conversation."""
        try:
            return self.text(messages, tools or None, "", prompt=prompt)
        except TemplateError:
            return None

    def _left_out(self, others: Iterable[tuple[Sequence[Message], Tools]], prompt: bool, text: str) -> bool:
        """Whether a conversation with another value in a field has the same text; if the template refuses it, the next
        one counts, which is without the field."""
        for messages, tools in others:
            rendered = self._renders(messages, tools, prompt)
            if rendered is not None:
                return rendered == text
        return False  # the template accepts only this value, so it uses it


def _shape(messages: Sequence[Message]) -> tuple[Any, ...]:
    """What decides which turns a template uses."""
    return tuple(
        (m.role, bool(m.content.strip()), len(m.tool_calls or ()), m.reasoning is not None, m.name is not None)
        for m in messages
    )


def _fields(messages: Sequence[Message], tools: Tools) -> Iterator[Field]:
    """The fields, besides the contents, that are not empty."""
    yield from (Field("tools", None, at) for at in range(len(tools or ())))
    calls: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        if message.reasoning is not None and message.reasoning.strip():
            yield Field("reasoning", i)
        yield from (Field("tool_calls", i, at) for at in range(len(message.tool_calls or ())))
        call = calls.pop(0) if message.role == "tool" and calls else {}
        if message.name is not None and not (call and name_of(call) == message.name):
            yield Field("name", i)
        if message.tool_call_id is not None and not (call and call.get("id") == message.tool_call_id):
            yield Field("tool_call_id", i)
        if message.role != "tool":
            calls = list(message.tool_calls or ())


def _with(
    field: Field, value: str | None, messages: Sequence[Message], tools: Tools
) -> tuple[tuple[Message, ...], Tools]:
    """The conversation with another value in a field; None: without the field."""
    if field.turn is None:
        assert tools is not None
        return tuple(messages), _named(tools, field.at, value)
    message = messages[field.turn]
    told: Any = value
    if field.name == "content":
        told = value or ""
    elif field.name == "tool_calls":
        told = _named(message.tool_calls or (), field.at, value) or None
    changed = replace(message, **{field.name: told})
    return (*messages[: field.turn], changed, *messages[field.turn + 1 :]), tools


def _with_parts(
    values: Sequence[tuple[Placed, Any]], messages: Sequence[Message], tools: Tools
) -> tuple[tuple[Message, ...], Tools]:
    """The conversation with other values in parts of its schemas and calls."""
    changes: dict[int | None, dict[tuple[Any, bool], Any]] = {}
    for placed, value in values:
        changes.setdefault(placed.turn, {})[placed.part.path, placed.part.key] = value
    told = list(messages)
    for turn, some in changes.items():
        if turn is None:
            tools = tuple(with_values(tools, some))
        else:
            calls = with_objects(told[turn].tool_calls or ())
            told[turn] = replace(told[turn], tool_calls=tuple(with_values(calls, some)))
    return tuple(told), tools


def _named(functions: Sequence[dict[str, Any]], at: int, name: str | None) -> tuple[dict[str, Any], ...]:
    """Calls or schemas of tools, one of them with another name, or without it."""
    if name is None:
        return (*functions[:at], *functions[at + 1 :])
    inner: Mapping[str, Any] = function_of(functions[at])
    renamed = {**inner, "name": name}
    changed = renamed if inner is functions[at] else {**functions[at], "function": renamed}
    return (*functions[:at], changed, *functions[at + 1 :])


def _cause(name: str, turn: int | None, messages: Sequence[Message]) -> str:
    where = f" in turn {turn} ({messages[turn].role})" if turn is not None else ""
    return f"the chat template has no place for '{name}'{where}: it would be dropped silently"
