"""What the report says, in each language. A message is a key with arguments; it becomes text when the page is made.

The catalogue is `messages.json`: a line per message, with its text in every language. Words between backticks become
`<code>`, between double asterisks `<strong>`; everything else, arguments included, is escaped. An argument may itself
be a message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape

from posttrain.errors import ConfigError, Problem

__all__ = [
    "LANGUAGES",
    "Message",
    "Voice",
    "Words",
    "attribute",
    "both",
    "breakable",
    "catalogue",
    "check_language",
    "inline",
    "known",
    "say",
    "say_if",
    "say_known",
    "sentences",
    "text",
]

LANGUAGES: tuple[str, ...] = ("en", "zh-TW")
"""BCP 47 tags, as in `<html lang>` and `--language`."""

_SPACE = {"en": " ", "zh-TW": ""}
_PER_CENT = re.compile(r"%(?=[\u4e00-\u9fff])")
"""Between a number's sign and a Chinese word stands a space."""


@dataclass(frozen=True)
class Message:
    """A catalogue key and the arguments of its text."""

    key: str
    args: dict[str, object] = field(default_factory=dict)


def say(key: str, **args: object) -> Message:
    """Return the message `key`. Its arguments are formatted numbers, names, or messages."""
    return Message(key, args)


def say_if(conditions: Mapping[str, object]) -> tuple[Message, ...]:
    """Return the messages without arguments whose condition holds."""
    return tuple(say(key) for key, holds in conditions.items() if holds)


@cache
def catalogue(language: str) -> dict[str, str]:
    """Return key -> text of one language. ConfigError for a language that does not exist."""
    check_language(language)
    messages = json.loads((Path(__file__).parent / "messages.json").read_text(encoding="utf-8"))
    return {key: texts[language] for key, texts in messages.items()}


def check_language(language: str) -> None:
    """Raise ConfigError unless the report speaks this language."""
    if language not in LANGUAGES:
        raise ConfigError(Problem("--language", f"unknown language '{language}'", f"known: {', '.join(LANGUAGES)}"))


def known(key: str) -> bool:
    """Whether the catalogue has a key."""
    return key in catalogue(LANGUAGES[0])


def say_known(key: str, name: str) -> Message:
    """Return the message `key`; the name as it is where the catalogue has none."""
    return say(key) if known(key) else say("verbatim", text=name)


Words = str | Message
"""What a table or a chart shows: a name or number as it is, or a message in the reader's language."""


class Voice(NamedTuple):
    """How a page words its messages: one with a prefix, where the catalogue has it, takes the place of the plain one.

    The page of `posttrain exam` speaks of no study, method or training, and has `pair.` (two models), `single.` (one
    model) and `alone.` (either). names: arguments that every message may use.
    """

    prefixes: tuple[str, ...]
    names: Mapping[str, object]

    def key(self, key: str) -> str:
        """Return the key of the message that takes another's place."""
        return next((f"{prefix}{key}" for prefix in self.prefixes if known(f"{prefix}{key}")), key)

    def words(self, words: Words) -> Words:
        """Return words in the page's wording; so are the messages among a message's arguments."""
        if not self.prefixes or not isinstance(words, Message):
            return words
        args = {k: self.words(v) if isinstance(v, Message) else v for k, v in words.args.items()}
        return Message(self.key(words.key), {**self.names, **args})


def text(message: Words, language: str) -> str:
    """Return a message in one language, as plain text with its backticks. KeyError for an unknown key."""
    if isinstance(message, str):
        return message
    args = {k: text(v, language) if isinstance(v, Message) else v for k, v in message.args.items()}
    shown = catalogue(language)[message.key].format(**args)
    return shown if language == LANGUAGES[0] else _PER_CENT.sub("% ", shown)


def inline(plain: str) -> Markup:
    """Return escaped text in which only `code` and **strong** are HTML."""
    html = str(escape(plain))
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", html)
    html = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", html)
    return Markup(html)


def breakable(name: str) -> Markup:
    """Return a technical name that a line may break after its dots, dashes, slashes and underscores."""
    return Markup(re.sub(r"([._/~-])(?=.)", r"\1<wbr>", str(escape(name)).replace("&#", "\0"))).replace("\0", "&#")


def both(message: Words) -> Markup:
    """Return a message once per language, each in its own element, of which the page shows one; a name as it is."""
    return escape(message) if isinstance(message, str) else sentences([message])


def sentences(messages: Sequence[Words]) -> Markup:
    """Return sentences in a row, once per language: English has a space between them, Chinese has none."""
    return Markup("").join(
        Markup('<span lang="{}">{}</span>').format(each, inline(_SPACE[each].join(text(m, each) for m in messages)))
        for each in LANGUAGES
    )


def attribute(language: str, **messages: Words) -> Markup:
    """Return attributes (`title`, `aria-label`, ...) in the page's first language, and all languages for its switch."""
    names = {name.replace("_", "-"): message for name, message in messages.items()}
    every = {name: {each: text(m, each).replace("`", "") for each in LANGUAGES} for name, m in names.items()}
    shown = Markup(" ").join(Markup('{}="{}"').format(name, every[name][language]) for name in names)
    return shown + Markup(' data-i18n="{}"').format(json.dumps(every, ensure_ascii=False))
