"""Render conversations with a tokenizer's chat template, and find the supervised turns in the text.

An assistant's words are found in the rendered text in one of two ways. Both are verified:

- **markers**: the template puts `{% generation %}` around the words, and the renderer reports these regions. The
  generation prompt must precede the region, or be its beginning, which is not learned;
- **prefixes**: two texts must be the beginning of the whole text: the turns before, rendered with the generation
  prompt, and the turns up to and including this one. The words are the difference. If the second condition fails (Qwen3
  drops the reasoning of earlier turns), the turn's content must follow the first text literally.

A supervised user's turn begins with its content. The end of a turn is found on the tokens (`data/chat.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from posttrain.data.calls import argument_text, fault_of_call, is_json, name_of, with_objects, with_texts
from posttrain.data.records import Conversation, Message
from posttrain.data.template_fields import FieldCheck, Tools
from posttrain.data.tokens import Tokenizer, shared_length
from posttrain.errors import Problem, TemplateError
from posttrain.models.template_dates import PINNED, at_moment, moment_of

__all__ = ["ChatTemplate", "Rendered", "Span"]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

MARK_MEND = (
    "put {% generation %}...{% endgeneration %} around the assistant's words in the template (chat_template.jinja), "
    'or leave the turn out of the loss with "train": false'
)
PROMPT_MEND = (
    "give the turn its reasoning_content where generation begins with reasoning; or correct chat_template.jinja: "
    "before an answer it must write what it writes for add_generation_prompt; or leave the turn out of the loss with "
    '"train": false'
)
SPLIT_MEND = (
    'give each answer a row of its own that ends with it, in which earlier answers have "train": false: this template '
    "writes an answer as generation does only where it comes last"
)

HI = (Message("user", "Hi"),)
"""A conversation with which to find out what a template writes around turns."""
OTHER_WORDS = "{ These are other words. }"
"""Words that no template contains."""

CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"posttrainkey": "value"}}}
"""A call with which to find out how a template takes arguments. Mistral's templates require ids of nine letters and
digits."""


RAW = 'posttrain "words"'
"""Arguments that are not JSON, and that change when they are written as a JSON text."""
RAW_MEND = 'write the arguments as an object, {"city": "Paris"}, or as the JSON text of one (json.dumps)'


class Span(NamedTuple):
    """The characters [start, end) of a supervised turn. last: no turn follows."""

    start: int
    end: int
    last: bool


class Rendered(NamedTuple):
    """A conversation as text. spans: its supervised turns; location: its location in the data."""

    text: str
    spans: list[Span]
    location: str


class ChatTemplate:
    """Renders conversations with one tokenizer's template. Its methods raise TemplateError, which names the row."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # the tokenizer itself is not stored: the cache in chat.py must not keep it alive
        self.name = str(tokenizer.name_or_path)
        self.variables = dict(tokenizer.special_tokens_map)
        self.moment = moment_of(tokenizer)
        try:
            self.sources = {  # some tokenizers have another template for tools
                tools: at_moment(tokenizer.get_chat_template(tools=[{}] if tools else None), self.moment)
                for tools in (False, True)
            }
        except ValueError as error:  # several templates, none of them the default
            raise TemplateError(Problem("", str(error), "name one of them 'default'")) from error
        self.arguments_are_text: dict[bool, bool] = {}
        self.raw: dict[bool, bool] = {}
        self.check_fields = FieldCheck(self.text)

    def text(self, messages: Sequence[Message], tools: Tools, location: str, *, prompt: bool = False) -> str:
        """Return the rendered text; with `prompt`, the generation prompt follows it."""
        return self._run(self._chat(messages, tools), tools, location, prompt)[0]

    def prompt(self, messages: Sequence[Message], tools: Tools, location: str) -> str:
        """Return the rendered text up to the beginning of the answer. Raise TemplateError when a field is left out."""
        _check_calls(messages, location)
        text = self.text(messages, tools, location, prompt=True)
        self.check_fields(messages, tuple(tools) if tools else None, location, text, prompt=True)
        return text

    def _chat(self, messages: Sequence[Message], tools: Tools) -> list[dict[str, Any]]:
        """Return the messages as the template takes them, with arguments of calls as objects or as JSON text."""
        chat = [message.for_template() for message in messages]
        if any(message.tool_calls for message in messages) and self._takes_text(bool(tools)):
            for fields in chat:
                if "tool_calls" in fields:
                    fields["tool_calls"] = with_texts(fields["tool_calls"])
        return chat

    def _takes_text(self, tools: bool) -> bool:
        """Return whether arguments must be JSON text: the template refuses an object, or prints it as Python does."""
        if tools not in self.arguments_are_text:
            printed = [self._called(calls, tools) for calls in ([CALL], with_texts([CALL]))]
            bad = not printed[0] or "{'posttrainkey'" in printed[0]
            self.arguments_are_text[tools] = bad and '"posttrainkey"' in printed[1]
        return self.arguments_are_text[tools]

    def _called(self, calls: list[dict[str, Any]], tools: bool) -> str:
        """Return a rendered simple conversation with calls, or "" when the template refuses it."""
        known = ({"type": "function", "function": {"name": "add", "description": "", "parameters": {}}},)
        chat: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
        chat.append({"role": "assistant", "content": "", "tool_calls": calls})
        try:
            return self._run(chat, known if tools else None, "", False)[0]
        except TemplateError:
            return ""

    def _prints_raw(self, tools: bool) -> bool:
        """Return whether the template prints arguments that are text as they are, without quotation marks."""
        if tools not in self.raw:
            call = {**CALL, "function": {"name": "add", "arguments": RAW}}
            self.raw[tools] = RAW in self._called([call], tools)
        return self.raw[tools]

    def _check_texts(self, record: Conversation) -> None:
        """Raise TemplateError for arguments that are not JSON if the template prints them as they are."""
        for i, message in enumerate(record.messages):
            for call in with_objects(message.tool_calls or ()):
                text = argument_text(call)
                if text is not None and not is_json(text) and self._prints_raw(bool(record.tools)):
                    cause = (
                        f"the arguments of turn {i}'s call to {name_of(call)!r} are a text that is no JSON, and this "
                        f"chat template prints it as it is: {text[:40]!r}{'...' if len(text) > 40 else ''}"
                    )
                    raise TemplateError(Problem(record.location, cause, RAW_MEND))

    def _run(
        self, chat: list[dict[str, Any]], tools: Tools, location: str, prompt: bool, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, regions = render_jinja_template(
                conversations=[chat],
                tools=list(tools) if tools else None,
                chat_template=self.sources[bool(tools)],
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marked,
                **self.variables,
            )
        except jinja2.TemplateSyntaxError as error:
            pinned = self.sources[bool(tools)].startswith(PINNED)  # `at_moment` puts a line before the template
            line = error.lineno - pinned
            cause = f"the tokenizer's chat template is not valid Jinja: line {line}: {error.message}"
            mend = "correct chat_template.jinja in the model's folder"
            raise TemplateError(Problem(self.name, cause, mend)) from error
        except RecursionError as error:
            raise TemplateError(Problem(location, "objects within objects without end", "remove the row")) from error
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(message["role"] for message in chat)
            cause = (
                f"the chat template refuses this conversation ({roles}): {str(error).strip() or type(error).__name__}"
            )
            raise TemplateError(Problem(location, cause, "change the row to what the template knows")) from error
        return texts[0], list(regions[0]) if marked else []

    def render(self, record: Conversation) -> Rendered:
        """Return the text and supervised spans of a conversation. Raise TemplateError if they cannot be verified."""
        _check_calls(record.messages, record.location)
        self._check_texts(record)
        chat = self._chat(record.messages, record.tools)
        marked = GENERATION.search(self.sources[bool(record.tools)]) is not None
        text, regions = self._run(chat, record.tools, record.location, prompt=False, marked=marked)
        self.check_fields(record.messages, record.tools, record.location, text)
        own = _marked_turns(text, regions, record.messages) if marked else None
        spans = []
        for i, message in enumerate(record.messages):
            if not message.supervised:
                continue
            if own is not None and message.role == "assistant":
                before = max((end for turn, (_, end) in own.items() if turn < i), default=0)
                start, end = self._without_prompt(record, i, text, own[i], before)
            elif message.role == "assistant":
                start, end = self._assistant_span(record, i, text)
            else:
                start, end = self._user_span(record, i, text)
            spans.append(Span(start, end, i == len(record.messages) - 1))
        return Rendered(text, spans, record.location)

    def _without_prompt(
        self, record: Conversation, i: int, text: str, region: tuple[int, int], before: int
    ) -> tuple[int, int]:
        """Return the marked region without the generation prompt, as some templates mark a part of the tag too.

        The generation prompt must be between `before`, the end of the earlier marked turns, and the words. Earlier
        turns may be rendered differently than in a prompt (Qwen3's reasoning). Raise TemplateError."""
        if text.endswith(self._usual_tag, 0, region[0]):
            return region
        tag = self._tag(record.messages[:i] or HI, record.tools, record.location)
        at = text.rfind(tag, before, region[0] + len(tag))
        if at < 0 or at + len(tag) >= region[1]:
            same = next(n for n in range(len(tag), -1, -1) if text.rfind(tag[:n], before, region[0] + n) >= 0)
            found = text[text.rfind(tag[:same], before, region[0] + same) + same :]
            raise self._unverified(record, i, _otherwise(tag[same:], found), PROMPT_MEND)
        return max(region[0], at + len(tag)), region[1]

    @cached_property
    def _usual_tag(self) -> str:
        return self._tag(HI, None, "")

    def _tag(self, asked: Sequence[Message], tools: Tools, location: str) -> str:
        """Return the generation prompt that the template adds to these turns."""
        prompt = self.text(asked, tools, location, prompt=True)
        return prompt[shared_length(prompt, self.text(asked, tools, location)) :]

    def prompt_problem(self) -> str:
        """Return how the generation prompt differs from the trained text of a simple conversation, or ""."""
        text = self.text((*HI, Message("assistant", "Yo")), None, "")
        prompt = self.text(HI, None, "", prompt=True)
        if text.startswith(prompt):
            return ""
        return f"generation begins with {prompt!r}, which is not how the trained text {text!r} begins"

    def _assistant_span(self, record: Conversation, i: int, text: str) -> tuple[int, int]:
        before = self.text(record.messages[:i], record.tools, record.location, prompt=True)
        if not text.startswith(before):
            at = shared_length(before, text)
            bare = self.text(record.messages[:i], record.tools, record.location)
            in_tag = before.startswith(bare) and at >= len(bare)  # `{% generation %}` would not help
            raise self._unverified(record, i, _otherwise(before[at:], text[at:]), PROMPT_MEND if in_tag else MARK_MEND)
        start = len(before)
        up_to = (
            self.text(record.messages[: i + 1], record.tools, record.location) if i + 1 < len(record.messages) else text
        )
        content = record.messages[i].content.strip()
        if text.startswith(up_to) and len(up_to) > start:
            if content and content not in text[start : len(up_to)]:
                raise self._unverified(record, i, "it renders the turn without its content")
            if self._tag_unprompted:
                raise self._unverified(record, i, "it writes a tag before the words that its generation prompt lacks")
            return start, len(up_to)
        turn = record.messages[i]
        same = _overlap(up_to[start:] if up_to.startswith(before) else "", text[start:])
        names = [name for call in turn.tool_calls or () if (name := name_of(call)) is not None]
        if same and all(words in same for words in (content, (turn.reasoning or "").strip(), *names)):
            return start, start + len(same)  # only the last turn has more text before it: Qwen3's empty reasoning
        at = start + len(text[start:]) - len(text[start:].lstrip())
        if content and text.startswith(content, at):
            return start, at + len(content)
        raise self._unverified(record, i, "it renders the turn otherwise when more turns follow", SPLIT_MEND)

    @cached_property
    def _tag_unprompted(self) -> bool:
        """Return whether an assistant's turn begins with a tag although the generation prompt is empty."""
        bare = self.text(HI, None, "")
        answered = self.text((*HI, Message("assistant", "Yo")), None, "")
        begun = answered.removeprefix(bare).lstrip().startswith("Yo")
        return self.text(HI, None, "", prompt=True) == bare and not begun

    def _user_span(self, record: Conversation, i: int, text: str) -> tuple[int, int]:
        """Return the span of a user's (or system's, or tool's) turn: from its content to the end of the turn.

        The turn is rendered with other words, since its own words may also occur in the tag ("user") or in the
        end-of-turn token ("end"). Raise TemplateError if the content is not found."""
        message = record.messages[i]
        other = (*record.messages[:i], replace(message, content=OTHER_WORDS))
        told = self.text(other, record.tools, record.location)
        at = told.find(OTHER_WORDS)
        words = message.content if text.startswith(message.content, at) else message.content.strip()
        if at < 0 or told[:at] != text[:at] or not text.startswith(words, at):
            raise self._unverified(record, i, "the turn's content is not in its text as it is")
        up_to = self.text(record.messages[: i + 1], record.tools, record.location)
        return at, len(up_to) if text.startswith(up_to) else at + len(words)

    def _unverified(self, record: Conversation, i: int, why: str, mend: str = MARK_MEND) -> TemplateError:
        role = record.messages[i].role
        cause = f"the words of turn {i} ({role}) cannot be told apart in this chat template: {why}"
        return TemplateError(Problem(record.location, cause, mend))


def _check_calls(messages: Sequence[Message], location: str) -> None:
    """Raise TemplateError for calls with faults (`fault_of_call`). Rows of files were checked when they were read."""
    for i, message in enumerate(messages):
        for call in message.tool_calls or ():
            fault = fault_of_call(call)
            if fault is not None:
                cause = f"turn {i} ({message.role}): its call to {name_of(call)!r} {fault[0]}"
                raise TemplateError(Problem(location, cause, fault[1]))


def _otherwise(prompt: str, text: str) -> str:
    return f"generation would begin with {prompt[:30]!r} where the text has {text[:30]!r}"


def _overlap(one: str, other: str) -> str:
    """Return the longest end of the first text that is a beginning of the second text."""
    starts = (found.start() for found in re.finditer(re.escape(other[:1]), one) if other)
    return next((one[at:] for at in starts if other.startswith(one[at:])), "")


def _marked_turns(
    text: str, regions: Sequence[tuple[int, int]], messages: Sequence[Message]
) -> dict[int, tuple[int, int]] | None:
    """Return index of each assistant turn -> its marked region; None unless each region contains the turn's content."""
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if len(turns) != len(regions):
        return None
    for i, (start, end) in zip(turns, regions, strict=True):
        if end <= start or messages[i].content.strip() not in text[start:end]:
            return None
    return dict(zip(turns, regions, strict=True))
