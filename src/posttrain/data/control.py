"""Check every text for control tokens before a tokenizer reads it.

A tokenizer converts `<|im_end|>` to the control token wherever it occurs, even in an answer or a tool's description.
There it would end a turn too early, or begin a turn that does not exist. So a text with a control token, or with half a
surrogate pair, is refused, and the error names the token. Only chat templates and the tokenizer itself write control
tokens.

Control tokens are special tokens, and other added tokens that begin or end turns or at which generation stops. All
other added tokens (`<think>`, `<tool_call>`, technical terms) may occur in texts. To distinguish them, the template
renders a conversation of unique words. Tokens of turns are:

- the tokens between an assistant's words and the next user's words, and the tokens after the last words: the end of a
  turn and the next tag;
- the tokens after a user's words at the end of the text;
- in the tags of assistants and tools: the first token; in the tag of the system: the token next to its words. Later
  tokens may say how the assistant should think (`<|im_start|>assistant\\n<think>`).

Tokens around reasoning that are not around a user's words are not tokens of turns. A tag has a letter and another sign:
an added word `user` is no tag, and neither is a token of line breaks.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from posttrain.data.records import LabelledText, Message, ReadingQuestion, TaggedTokens
from posttrain.data.template import ChatTemplate
from posttrain.data.tokens import Tokenizer, shared_length
from posttrain.errors import Problem, TemplateError
from posttrain.models.vocabulary import stops_of

__all__ = ["PLAIN_MEND", "Gate", "Part", "check_text", "gate_of", "head_problem", "parts_of", "turn_tokens"]

MEND = "remove it; the chat template adds control tokens itself"
PLAIN_MEND = "remove it; the tokenizer adds what a text needs itself"
SURROGATES = "\ud800-\udfff"


class Part(NamedTuple):
    """A text of a row. subject: its turn or other part of the row (`turn 1 (assistant)`); field: its field there, "" if
    it is the content."""

    text: str
    subject: str
    field: str = ""


class Gate:
    """The control tokens of one tokenizer and its chat template: special tokens, and others that begin or end turns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # the tokenizer itself is not stored: the cache of gates must not keep it alive
        added = tokenizer.added_tokens_decoder
        self.special = frozenset(i for i, token in added.items() if token.special) | frozenset(
            tokenizer.all_special_ids
        )
        others = turn_tokens(tokenizer) | (stops_of(tokenizer) & added.keys())
        spelt = {i: str(tokenizer.convert_ids_to_tokens(i)) for i in self.special | others}
        self.source = tokenizer.chat_template
        # a single character is no control token: a "!" that a vocabulary uses as padding is an ordinary "!" in texts
        self.control = {i: token for i, token in spelt.items() if len(token.strip()) > 1}
        self.normalised = any(token.normalized for i, token in added.items() if i in self.control)
        """Whether the tokenizer's normalisation (lower case, full width) may turn a text into a control token."""
        self.pattern = re.compile("|".join([*_longest_first(self.control.values()), f"[{SURROGATES}]"]))
        whole = [token for i, token in self.control.items() if i in added and not added[i].special]
        self.whole = re.compile("|".join(_longest_first(whole)) or "(?!)")
        """Matches control tokens that are read as one token even when special tokens are split into letters."""

    def first_in(self, text: str, tokenizer: Tokenizer, *, unknown: bool = True) -> str | None:
        """Return the first control token in a text, or half a surrogate pair, else None. A spelling counts if the
        tokenizer converts it to the token. unknown: whether the unknown token counts too when it is spelt out.
        """
        spelt = {hit[0] for hit in self.pattern.finditer(text)}
        half = next((one for one in spelt if "\ud800" <= one <= "\udfff"), None)
        if half is not None:
            return half
        if not spelt and not self.normalised:
            return None
        for i in tokenizer([text], add_special_tokens=False)["input_ids"][0] if text else ():
            if i in self.control and i != tokenizer.unk_token_id:
                return self.control[i]
        unk = str(tokenizer.unk_token)
        return unk if unknown and unk in spelt else None

    def problem(
        self, parts: Iterable[Part], tokenizer: Tokenizer, location: str, *, mend: str = MEND
    ) -> Problem | None:
        """Return the problem of the first text that has a control token, or None."""
        for text, subject, field in parts:
            found = self.first_in(text, tokenizer)
            if found is not None:
                return _problem(found, subject, field, location, mend)
        return None

    def cut(self, text: str) -> list[str]:
        """Cut a text into parts, so that no part has a whole control token that is not special."""
        cuts = [0, *(hit.start() + 1 for hit in self.whole.finditer(text)), len(text)]
        return [text[a:b] for a, b in itertools.pairwise(cuts) if b > a]

    def without(self, text: str, tokenizer: Tokenizer) -> str:
        """Return a model's answer without control tokens that it has spelt out, so that it can be used in a prompt."""
        while self.first_in(text, tokenizer, unknown=False) is not None:
            shorter = self.pattern.sub("", text)
            if shorter == text:  # it is a control token only after normalisation
                break
            text = shorter
        return text


def _longest_first(tokens: Iterable[str]) -> list[str]:
    """Return patterns for tokens, the longest first, so that no match is only the beginning of a longer token."""
    return [re.escape(token) for token in sorted(tokens, key=len, reverse=True)]


def _problem(found: str, subject: str, field: str, location: str, mend: str) -> Problem:
    at = f" in its {field}" if field else ""
    if "\ud800" <= found <= "\udfff":
        return Problem(location, f"{subject} holds half a surrogate pair ({found!a}){at}", "remove it: it is no text")
    return Problem(location, f"{subject} holds the control token {found!r}{at}", mend)


_gates: WeakKeyDictionary[Tokenizer, Gate] = WeakKeyDictionary()


def gate_of(tokenizer: Tokenizer) -> Gate:
    """Return the tokenizer's gate, which is made once for each chat template."""
    gate = _gates.get(tokenizer)
    if gate is None or gate.source != tokenizer.chat_template:
        _gates[tokenizer] = gate = Gate(tokenizer)
    return gate


def check_text(text: str, tokenizer: Tokenizer, subject: str, location: str = "") -> None:
    """Raise TemplateError when a text that no template renders has a control token. Two are allowed: the BOS token at
    the beginning of the text, and the unknown token, which ends nothing (WikiText's `<unk>`).
    """
    gate = gate_of(tokenizer)
    begins = str(tokenizer.bos_token) if tokenizer.bos_token is not None else ""
    rest = text.removeprefix(begins) if begins else text
    found = gate.first_in(rest, tokenizer, unknown=False)
    if found is not None:
        raise TemplateError(_problem(found, subject, "", location, PLAIN_MEND))


def head_problem(record: LabelledText | TaggedTokens | ReadingQuestion, tokenizer: Tokenizer) -> Problem | None:
    """Return the problem of a record with a control token, or None. A `[SEP]`, for example, would end the text."""
    if isinstance(record, LabelledText):
        parts = [Part(record.text, "the text"), Part(record.text2 or "", "the second text")]
    elif isinstance(record, TaggedTokens):
        parts = [Part(token, f"token {i}") for i, token in enumerate(record.tokens)]
    else:
        parts = [Part(record.question, "the question"), Part(record.context, "the context")]
    return gate_of(tokenizer).problem(parts, tokenizer, record.location, mend=PLAIN_MEND)


def parts_of(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> Iterator[Part]:
    """Yield every text of a conversation that a template may print."""
    for i, message in enumerate(messages):
        turn = f"turn {i} ({message.role})"
        yield Part(message.content, turn)
        fields = {"reasoning": message.reasoning, "name": message.name, "tool_call_id": message.tool_call_id}
        yield from (Part(text, turn, field) for field, text in fields.items() if text is not None)
        if message.tool_calls is not None:
            yield from (Part(text, turn, "tool_calls") for text in _texts(message.for_template()["tool_calls"]))
    yield from (Part(text, "'tools'") for text in _texts(tools))


def _texts(value: Any) -> Iterator[str]:
    """Yield all strings of a nested value, keys included."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            left += one


# ---- tokens of turns -------------------------------------------------------------------------------------------------


ASKED, SAID, AGAIN, LAST, SYSTEM, THOUGHT, RESULT, ARGUMENT = (f"posttrainprobe{name}" for name in "abcdefgh")
"""Unique words, which occur nowhere else."""
ID = "call00001"
CALL = {"id": ID, "type": "function", "function": {"name": "add", "arguments": {"city": ARGUMENT}}}


def turn_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids of added tokens that are not special and begin or end turns; none without a chat template."""
    added = {i: str(token.content) for i, token in tokenizer.added_tokens_decoder.items()}
    tags = frozenset(i for i, text in added.items() if _is_tag(text))
    plain = tags - {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not tokenizer.chat_template or not plain:
        return frozenset()
    try:
        probe = _Probe(tokenizer, ChatTemplate(tokenizer), tags)
    except TemplateError:  # several templates without a default: rendering reports it
        return frozenset()
    return frozenset(_found(probe)) & plain


def _is_tag(text: str) -> bool:
    return any(map(str.isalpha, text)) and any(not (one.isalnum() or one.isspace() or one == "▁") for one in text)


class _Gap(NamedTuple):
    """The added tokens between two turns, in order. ends: they end the first turn; tag: they begin the second turn."""

    ends: list[int]
    tag: list[int]


class _Probe(NamedTuple):
    """Renders conversations and finds the added tokens around words."""

    tokenizer: Tokenizer
    template: ChatTemplate
    tags: frozenset[int]

    def text(self, *turns: Message) -> str:
        """Return the rendered turns, or "" when the template refuses them."""
        try:
            return self.template.text(turns, None, "")
        except TemplateError:
            return ""

    def tokens(self, text: str) -> list[int]:
        ids = self.tokenizer([text], add_special_tokens=False)["input_ids"][0] if text else []
        return [i for i in ids if i in self.tags]

    def before(self, words: str, text: str) -> list[int]:
        return self.tokens(text.partition(words)[0]) if words in text else []

    def after(self, words: str, text: str) -> list[int]:
        return self.tokens(text.rpartition(words)[2]) if words in text else []

    def gap(self, words: str, other: str, text: str, ended: str) -> _Gap:
        """Return the tokens between two words. ended: a text that ends with the first turn; it shows which end it."""
        between = self.before(other, text.rpartition(words)[2]) if words in text else []
        same = shared_length(between, self.after(words, ended))
        return _Gap(between[:same], between[same:])


def _found(probe: _Probe) -> Iterable[int]:
    asked, said, again = Message("user", ASKED), Message("assistant", SAID), Message("user", AGAIN)
    talk = probe.text(asked, said, again, Message("assistant", LAST))
    of_user = {*probe.gap(SAID, AGAIN, talk, "").tag, *probe.after(LAST, talk)}
    asking = probe.gap(ASKED, SAID, talk, probe.text(asked))
    of_user |= {*asking.ends}
    system = probe.text(Message("system", SYSTEM), asked, said)
    calling = (asked, Message("assistant", "", tool_calls=(CALL,)))
    result = probe.gap(
        ARGUMENT, RESULT, probe.text(*calling, Message("tool", RESULT, tool_call_id=ID), said), probe.text(*calling)
    )
    told = [*asking.tag[:1], *probe.before(SYSTEM, system)[-1:], *result.tag[:1]]
    thinking = probe.text(asked, Message("assistant", SAID, reasoning=THOUGHT))
    of_thoughts = {*probe.before(THOUGHT, thinking)[-1:], *probe.after(THOUGHT, thinking)[:1]}
    return of_user | (set(told) - of_thoughts)
