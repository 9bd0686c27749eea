"""The report's texts in each language. A message is a key with arguments; it becomes text when the page is made.

The catalogue is `messages.json`: a line for each message, with its text in every language. Words between backticks
become `<code>`, and words between double asterisks become `<strong>`. Everything else, including arguments, is escaped.
An argument may itself be a message.
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
"""The text between two sentences."""
_PER_CENT = re.compile(r"%(?=[\u4e00-\u9fff])")
"""A per cent sign directly before a Chinese character, after which `text` puts a space."""


@dataclass(frozen=True)
class Message:
    """A catalogue key and the arguments of its text."""

    key: str
    args: dict[str, object] = field(default_factory=dict)


def say(key: str, **args: object) -> Message:
    """Return the message `key`. Its arguments are formatted numbers, names, or messages."""
    return Message(key, args)


def say_if(conditions: Mapping[str, object]) -> tuple[Message, ...]:
    """Return a message for each key with a true condition; these messages have no arguments."""
    return tuple(say(key) for key, holds in conditions.items() if holds)


@cache
def catalogue(language: str) -> dict[str, str]:
    """Return key -> text in one language. Raise ConfigError for an unknown language."""
    check_language(language)
    messages = json.loads((Path(__file__).parent / "messages.json").read_text(encoding="utf-8"))
    return {key: texts[language] for key, texts in messages.items()}


def check_language(language: str) -> None:
    """Raise ConfigError unless the report exists in this language."""
    if language not in LANGUAGES:
        raise ConfigError(Problem("--language", f"unknown language '{language}'", f"known: {', '.join(LANGUAGES)}"))


def known(key: str) -> bool:
    """Whether the catalogue has a key."""
    return key in catalogue(LANGUAGES[0])


def say_known(key: str, name: str) -> Message:
    """Return the message `key`, or `name` unchanged when the catalogue does not have the key."""
    return say(key) if known(key) else say("verbatim", text=name)


Words = str | Message
"""The content of a table or a chart: a name or number that is the same in all languages, or a message."""


class Voice(NamedTuple):
    """The wording of a page: if the catalogue has a message with one of the prefixes, it replaces the plain message.

    The page of `posttrain exam` must not mention studies, methods or training. It uses the prefixes `pair.` (two
    models), `single.` (one model) and `alone.` (both cases). names: arguments that every message may use.
    """

    prefixes: tuple[str, ...]
    names: Mapping[str, object]

    def key(self, key: str) -> str:
        """Return the key of the message that replaces `key`, or `key` itself."""
        return next((f"{prefix}{key}" for prefix in self.prefixes if known(f"{prefix}{key}")), key)

    def words(self, words: Words) -> Words:
        """Return words in the page's wording, including the messages among the arguments of a message."""
        if not self.prefixes or not isinstance(words, Message):
            return words
        args = {k: self.words(v) if isinstance(v, Message) else v for k, v in words.args.items()}
        return Message(self.key(words.key), {**self.names, **args})


def text(message: Words, language: str) -> str:
    """Return a message in one language as plain text, with its backticks. Raise KeyError for an unknown key."""
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
    """Return a technical name as HTML in which a line may break after dots, dashes, slashes, tildes and underscores."""
    return Markup(re.sub(r"([._/~-])(?=.)", r"\1<wbr>", str(escape(name)).replace("&#", "\0"))).replace("\0", "&#")


def both(message: Words) -> Markup:
    """Return a message as HTML in every language, each in its own element; a name is returned once, escaped. The page
    shows only the elements in the chosen language.
    """
    return escape(message) if isinstance(message, str) else sentences([message])


def sentences(messages: Sequence[Words]) -> Markup:
    """Return sentences one after another, once in each language: with spaces between them in English only."""
    return Markup("").join(
        Markup('<span lang="{}">{}</span>').format(each, inline(_SPACE[each].join(text(m, each) for m in messages)))
        for each in LANGUAGES
    )


def attribute(language: str, **messages: Words) -> Markup:
    """Return HTML attributes (`title`, `aria-label`, ...) in the page's first language. The attribute `data-i18n` has
    them in all languages, for the switch of the language.
    """
    names = {name.replace("_", "-"): message for name, message in messages.items()}
    every = {name: {each: text(m, each).replace("`", "") for each in LANGUAGES} for name, m in names.items()}
    shown = Markup(" ").join(Markup('{}="{}"').format(name, every[name][language]) for name in names)
    return shown + Markup(' data-i18n="{}"').format(json.dumps(every, ensure_ascii=False))
