"""The check that every text passes before a tokenizer reads it.

A tokenizer converts `<|im_end|>` to the control token wherever it occurs: in an answer, in a tool's description, in a
text to be classified. There it would end a turn too early, or begin one that does not exist. So a text with a control
token is refused, and the error names the token; only chat templates and the tokenizer itself write control tokens.
Half a surrogate pair, which no tokenizer can read, is refused too.

Control tokens are a tokenizer's special tokens, and those of its other added tokens that begin or end turns: the chat
template writes them around turns (see `turn_tokens`), or the model's generation stops at them. Other added tokens
(`<think>`, `<tool_call>`, technical terms) may occur in texts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from posttrain.data.records import LabelledText, Message, ReadingQuestion, TaggedTokens
from posttrain.data.turn_tokens import turn_tokens
from posttrain.errors import Problem, TemplateError
from posttrain.models.vocabulary import stops_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PLAIN_MEND", "Gate", "Part", "check_text", "gate_of", "head_problem", "parts_of"]

MEND = "remove it; the chat template adds control tokens itself"
PLAIN_MEND = "remove it; the tokenizer adds what a text needs itself"
SURROGATES = "\ud800-\udfff"


class Part(NamedTuple):
    """A text of a row, what it belongs to (`turn 1 (assistant)`), and its field if that is not the content."""

    text: str
    subject: str
    field: str = ""


class Gate:
    """The control tokens of one tokenizer with its chat template: special tokens, and others that begin or end
    turns."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # the tokenizer itself is not stored: the cache of gates must not keep it alive
        added = tokenizer.added_tokens_decoder
        self.special = frozenset(i for i, token in added.items() if token.special) | frozenset(
            tokenizer.all_special_ids
        )
        others = turn_tokens(tokenizer) | (stops_of(tokenizer) & added.keys())
        spelt = {i: str(tokenizer.convert_ids_to_tokens(i)) for i in self.special | others}
        self.source = tokenizer.chat_template
        # not a single character: a "!" that a vocabulary uses as padding is an ordinary "!" in texts
        self.control = {i: token for i, token in spelt.items() if len(token.strip()) > 1}
        self.normalised = any(token.normalized for i, token in added.items() if i in self.control)
        """Whether the tokenizer's normalisation (lower case, full width) may turn a text into a control token."""
        self.pattern = re.compile("|".join([*_longest_first(self.control.values()), f"[{SURROGATES}]"]))
        whole = [token for i, token in self.control.items() if i in added and not added[i].special]
        self.whole = re.compile("|".join(_longest_first(whole)) or "(?!)")
        """Control tokens that are read as one token even when special tokens are split into letters."""

    def first_in(self, text: str, tokenizer: PreTrainedTokenizerBase, *, unknown: bool = True) -> str | None:
        """The first control token in a text, or half a surrogate pair; None when there is none.

        A spelling counts only if the tokenizer converts it to the token (`single_word` tokens need a word of their
        own). unknown: whether the unknown token counts when it is spelt out; it never counts for an unknown word.
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
        self, parts: Iterable[Part], tokenizer: PreTrainedTokenizerBase, location: str, *, mend: str = MEND
    ) -> Problem | None:
        """The problem of the first text that has a control token; None when none has."""
        for text, subject, field in parts:
            found = self.first_in(text, tokenizer)
            if found is not None:
                return _problem(found, subject, field, location, mend)
        return None

    def cut(self, text: str) -> list[str]:
        """A text cut into parts, so that no part has a whole control token that is not special."""
        cuts = [0, *(hit.start() + 1 for hit in self.whole.finditer(text)), len(text)]
        return [text[a:b] for a, b in itertools.pairwise(cuts) if b > a]

    def without(self, text: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """A model's answer without control tokens that it has spelt out, so that it can be used in a prompt."""
        while self.first_in(text, tokenizer, unknown=False) is not None:
            shorter = self.pattern.sub("", text)
            if shorter == text:  # it is a control token only after normalisation
                break
            text = shorter
        return text


def _longest_first(tokens: Iterable[str]) -> list[str]:
    """Patterns for tokens, the longest first, so that no match is only the beginning of a longer token."""
    return [re.escape(token) for token in sorted(tokens, key=len, reverse=True)]


def _problem(found: str, subject: str, field: str, location: str, mend: str) -> Problem:
    at = f" in its {field}" if field else ""
    if "\ud800" <= found <= "\udfff":
        return Problem(location, f"{subject} holds half a surrogate pair ({found!a}){at}", "remove it: it is no text")
    return Problem(location, f"{subject} holds the control token {found!r}{at}", mend)


_gates: WeakKeyDictionary[PreTrainedTokenizerBase, Gate] = WeakKeyDictionary()


def gate_of(tokenizer: PreTrainedTokenizerBase) -> Gate:
    """The tokenizer's gate, made once for each chat template."""
    gate = _gates.get(tokenizer)
    if gate is None or gate.source != tokenizer.chat_template:
        gate = Gate(tokenizer)
        _gates[tokenizer] = gate
    return gate


def check_text(text: str, tokenizer: PreTrainedTokenizerBase, subject: str, location: str = "") -> None:
    """TemplateError when a text that no template renders has a control token.

    Two are allowed: the token that begins a document, at the beginning, and the unknown token, which ends nothing
    (WikiText's `<unk>`).
    """
    gate = gate_of(tokenizer)
    begins = str(tokenizer.bos_token) if tokenizer.bos_token is not None else ""
    rest = text.removeprefix(begins) if begins else text
    found = gate.first_in(rest, tokenizer, unknown=False)
    if found is not None:
        raise TemplateError(_problem(found, subject, "", location, PLAIN_MEND))


def head_problem(
    record: LabelledText | TaggedTokens | ReadingQuestion, tokenizer: PreTrainedTokenizerBase
) -> Problem | None:
    """The problem of a record with a control token: `[SEP]` would end the text."""
    if isinstance(record, LabelledText):
        parts = [Part(record.text, "the text"), Part(record.text2 or "", "the second text")]
    elif isinstance(record, TaggedTokens):
        parts = [Part(token, f"token {i}") for i, token in enumerate(record.tokens)]
    else:
        parts = [Part(record.question, "the question"), Part(record.context, "the context")]
    return gate_of(tokenizer).problem(parts, tokenizer, record.location, mend=PLAIN_MEND)


def parts_of(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> Iterator[Part]:
    """Every text of a conversation that a template may print."""
    for i, message in enumerate(messages):
        turn = f"turn {i} ({message.role})"
        yield Part(message.content, turn)
        for text, field in ((message.reasoning, "reasoning"), (message.name, "name")):
            if text is not None:
                yield Part(text, turn, field)
        if message.tool_call_id is not None:
            yield Part(message.tool_call_id, turn, "tool_call_id")
        if message.tool_calls is not None:
            yield from (Part(text, turn, "tool_calls") for text in _texts(message.for_template()["tool_calls"]))
    yield from (Part(text, "'tools'") for text in _texts(tools))


def _texts(value: Any) -> Iterator[str]:
    """All strings of a nested value, keys included."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            left += one
