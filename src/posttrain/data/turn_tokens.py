"""The added tokens with which a chat template begins and ends turns, also those that are not flagged as special.

`tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])` adds tokens that are not special; DeepSeek's `<｜User｜>` is
another one. In a text they begin and end turns all the same. Other added tokens are allowed in texts: `<think>` and
`<tool_call>` in a row that writes out thoughts and calls, technical terms. To tell them apart, the template renders a
conversation of unique words. Tokens of turns are:

- all tokens between an assistant's words and the next user's, and all after the last words: the end of one turn and the
  tag of the next;
- all tokens after a user's words at the end of the text;
- of the tags of assistants, tools and the system: the first token, or, for the system, the one next to its words; later
  ones may say how the assistant is to think (`<|im_start|>assistant\\n<think>`).

Tokens around reasoning that are not around a user's words are not tokens of turns. A tag has a letter and another sign:
an added word `user`, or line breaks that are one token, are no tags.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from posttrain.data.records import Message
from posttrain.data.template import ChatTemplate
from posttrain.data.tokens import Tokenizer, shared_length
from posttrain.errors import TemplateError

__all__ = ["turn_tokens"]

ASKED, SAID, AGAIN, LAST, SYSTEM, THOUGHT, RESULT, ARGUMENT = (f"posttrainprobe{name}" for name in "abcdefgh")
"""Words that occur nowhere else."""
ID = "call00001"
CALL = {"id": ID, "type": "function", "function": {"name": "add", "arguments": {"city": ARGUMENT}}}


def turn_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of added tokens that are not special and begin or end turns; none without a chat template."""
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
    """Added tokens between two turns: those that end the first, and those of the second one's tag, in order."""

    ends: list[int]
    tag: list[int]


class _Probe(NamedTuple):
    """Renders conversations and finds the added tokens around words."""

    tokenizer: Tokenizer
    template: ChatTemplate
    tags: frozenset[int]

    def text(self, *turns: Message) -> str:
        """The rendered turns; "" when the template refuses them."""
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
        """The tokens between two words; `ended`, a text that ends with the first turn, shows which of them end it."""
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
