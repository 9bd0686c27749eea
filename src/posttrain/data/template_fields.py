"""Find the fields of a conversation that a chat template leaves out, by rendering it with and without them.

A template silently drops the fields that it does not use: a user's `name`, the reasoning of earlier turns (Qwen3), text
in a turn with a tool call (Llama 3.1), the second call of a turn, a parameter's `pattern` (gpt-oss), a turn of an
unknown role. A field that is in the row but not in the text cannot be learned, so such a row is refused.

First all fields are replaced by unique words and rendered together. If the word of a field is in the text, the field is
used. For each other field the conversation is rendered again with another word: if the text is the same, the field is
left out. Ids and names of tool results in the order of their calls may be left out, since the order of turns gives
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from posttrain.data.calls import function_of, name_of, with_objects
from posttrain.data.records import Message
from posttrain.data.template_parts import ABSENT, Part, call_parts, other_value, schema_parts, seen_value, with_values
from posttrain.errors import Problem, TemplateError

__all__ = ["FieldCheck", "Tools"]

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
"""The beginning of all unique words."""


class Text(Protocol):
    """A function that renders a conversation as text."""

    def __call__(self, messages: Sequence[Message], tools: Tools, location: str, *, prompt: bool = False) -> str: ...


class Spot(NamedTuple):
    """A field of a turn (turn None: of the row). at: index of a call or tool, if the field is its name; part: a part of
    the turn's calls or of the tools' schemas; like: a number that is equal for parts that templates treat alike."""

    turn: int | None
    name: str
    at: int = 0
    part: Part | None = None
    like: int = 0


class FieldCheck:
    """Checks conversations with one template. It remembers which turns and which parts of schemas and calls it uses."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.kept: set[tuple[Any, ...]] = set()
        self.kept_parts: set[int] = set()
        self.kept_tools: set[int] = set()

    def __call__(
        self, messages: Sequence[Message], tools: Tools, location: str, text: str, *, prompt: bool = False
    ) -> None:
        """Raise TemplateError, which names the first field that is left out of `text`, the rendered conversation."""
        # a learned answer needs no check here: rendering finds it in its turn
        found = [not prompt and m.role == "assistant" and m.supervised and not m.tool_calls for m in messages]
        turns = [Spot(i, "content") for i, m in enumerate(messages) if m.content.strip() and not found[i]]
        shape = (_shape(messages), tuple(found), bool(tools), prompt)
        fields = [*_fields(messages, tools), *self._parts(messages, tools)]
        for spots in (fields, turns if shape not in self.kept else []):
            for spot in self._without_words(spots, messages, tools, prompt):
                if self._is_new(spot) and self._left_out(spot, messages, tools, prompt, text):
                    raise TemplateError(_problem(spot, messages, location))
                self.kept_parts.add(spot.like)
            self.kept_parts |= {spot.like for spot in spots}
        self.kept.add(shape)
        self.kept_tools.add(hash(repr(tools)))
        for spot in turns:
            self._check_lines(spot, messages, tools, location, text, prompt)

    def _parts(self, messages: Sequence[Message], tools: Tools) -> Iterator[Spot]:
        """Yield the parts of schemas and calls to check, without parts of schemas like those checked before."""
        if tools and hash(repr(tools)) not in self.kept_tools:
            for part, like in schema_parts(tools):
                if like not in self.kept_parts:
                    yield Spot(None, "tools", part=part, like=like)
        for i, message in enumerate(messages):
            for part in call_parts(with_objects(message.tool_calls or ())):
                like = hash((*map(type, part.path), part.key, type(part.value)))
                yield Spot(i, "tool_calls", part=part, like=like)

    def _is_new(self, spot: Spot) -> bool:
        """Return whether to check a spot that was not seen in the text. A part is not checked if a like part is used,
        unless it is a part of a call with a value that can be seen."""
        if spot.part is None or spot.like not in self.kept_parts:
            return True
        return spot.turn is not None and seen_value(spot.part, "", 0) is not None

    def _without_words(
        self, spots: Sequence[Spot], messages: Sequence[Message], tools: Tools, prompt: bool
    ) -> Sequence[Spot]:
        """Return the spots without their unique words in the text, or all spots when the template refuses the words."""
        values = [_seen(spot, i) for i, spot in enumerate(spots)]
        seen = [(spot, value) for spot, value in zip(spots, values, strict=True) if value is not None]
        rendered = self._renders(*_with(seen, messages, tools), prompt) if spots else None
        if rendered is None:
            return spots
        return [spot for spot, value in zip(spots, values, strict=True) if value is None or str(value) not in rendered]

    def _check_lines(
        self, spot: Spot, messages: Sequence[Message], tools: Tools, location: str, text: str, prompt: bool
    ) -> None:
        """Raise TemplateError when a line of a turn is left out: Qwen3 removes thoughts from earlier turns. Lines are
        checked only if the content is not in the text literally, plain or quoted as JSON."""
        turn = spot.turn
        assert turn is not None
        message = messages[turn]
        quoted = json.dumps(message.content, ensure_ascii=False)[1:-1]
        if message.content.strip() in text or quoted in text:
            return
        lines = message.content.split("\n")
        for i, line in enumerate(lines):
            if not line.strip():
                continue
            for words in ([WORDS], []):  # with other words, and without the line
                told = replace(message, content="\n".join([*lines[:i], *words, *lines[i + 1 :]]))
                changed = (*messages[:turn], told, *messages[turn + 1 :])
                if (words or line.strip() not in text) and self._renders(changed, tools, prompt) == text:
                    said = f"{line.strip()[:40]!r} of turn {turn} ({message.role})"
                    cause = f"the chat template drops {said} silently"
                    raise TemplateError(Problem(location, cause, "take it out of the content"))

    def _renders(self, messages: Sequence[Message], tools: Tools, prompt: bool) -> str | None:
        """Return the rendered text, or None when the template refuses the conversation."""
        try:
            return self.text(messages, tools or None, "", prompt=prompt)
        except TemplateError:
            return None

    def _left_out(self, spot: Spot, messages: Sequence[Message], tools: Tools, prompt: bool, text: str) -> bool:
        """Return whether the text is the same with another value in the spot, or, if that is refused, without it."""
        for value in (WORDS if spot.part is None else other_value(spot.part, WORDS), ABSENT):
            rendered = self._renders(*_with([(spot, value)], messages, tools), prompt)
            if rendered is not None:
                return rendered == text
        return False  # the template accepts only this value, so it uses it


def _shape(messages: Sequence[Message]) -> tuple[Any, ...]:
    """Return the properties of a conversation on which it depends which turns a template uses."""
    return tuple(
        (m.role, bool(m.content.strip()), len(m.tool_calls or ()), m.reasoning is not None, m.name is not None)
        for m in messages
    )


def _fields(messages: Sequence[Message], tools: Tools) -> Iterator[Spot]:
    """Yield the fields that are not empty, except the contents."""
    yield from (Spot(None, "tools", at) for at in range(len(tools or ())))
    calls: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        if message.reasoning is not None and message.reasoning.strip():
            yield Spot(i, "reasoning")
        yield from (Spot(i, "tool_calls", at) for at in range(len(message.tool_calls or ())))
        call = calls.pop(0) if message.role == "tool" and calls else {}
        if message.name is not None and not (call and name_of(call) == message.name):
            yield Spot(i, "name")
        if message.tool_call_id is not None and not (call and call.get("id") == message.tool_call_id):
            yield Spot(i, "tool_call_id")
        if message.role != "tool":
            calls = list(message.tool_calls or ())


def _seen(spot: Spot, number: int) -> str | int | float | None:
    """Return a unique value for the spot, or None if a value there cannot be recognised in a text."""
    word = f"{WORDS}{number}end"
    return word if spot.part is None else seen_value(spot.part, word, number)


def _with(
    values: Sequence[tuple[Spot, Any]], messages: Sequence[Message], tools: Tools
) -> tuple[tuple[Message, ...], Tools]:
    """Return the conversation with other values in some spots; with ABSENT, without the field or part."""
    told, parts = list(messages), dict[int | None, dict[tuple[Any, bool], Any]]()
    for spot, value in values:
        if spot.part is not None:
            parts.setdefault(spot.turn, {})[spot.part.path, spot.part.key] = value
    for turn, some in parts.items():
        if turn is None:
            tools = tuple(with_values(tools, some))
        else:
            calls = with_objects(told[turn].tool_calls or ())
            told[turn] = replace(told[turn], tool_calls=tuple(with_values(calls, some)))
    for spot, value in values:
        new: Any = None if value is ABSENT else value
        if spot.part is not None:
            continue
        if spot.turn is None:
            tools = _named(tools or (), spot.at, new)
            continue
        if spot.name == "tool_calls":
            new = _named(told[spot.turn].tool_calls or (), spot.at, new) or None
        elif spot.name == "content":
            new = new or ""
        changed: dict[str, Any] = {spot.name: new}
        told[spot.turn] = replace(told[spot.turn], **changed)
    return tuple(told), tools


def _named(functions: Sequence[dict[str, Any]], at: int, name: str | None) -> tuple[dict[str, Any], ...]:
    """Return calls or schemas of tools; the one at the index `at` gets another name, or is removed (name None)."""
    if name is None:
        return (*functions[:at], *functions[at + 1 :])
    inner: Mapping[str, Any] = function_of(functions[at])
    renamed = {**inner, "name": name}
    changed = renamed if inner is functions[at] else {**functions[at], "function": renamed}
    return (*functions[:at], changed, *functions[at + 1 :])


def _problem(spot: Spot, messages: Sequence[Message], location: str) -> Problem:
    name, turn = f"{spot.name}{spot.part or ''}", spot.turn
    where = f" in turn {turn} ({messages[turn].role})" if turn is not None else ""
    cause = f"the chat template has no place for '{name}'{where}: it would be dropped silently"
    if spot.part is None:
        return Problem(location, cause, MENDS.get(spot.name, MEND))
    return Problem(location, cause, SCHEMA_MEND if turn is None else CALL_MEND)
