"""The language a person is spoken to in: English as it stands in the code, or Traditional Chinese from a catalogue.

Messages are written in English where they arise and translated where they are shown, so that what is stored, compared
or printed as JSON stays English. A message of the catalogue may hold `{placeholders}`: the text shown is matched
against it, the values are kept as they are, and a value that is itself a message is translated in turn. Text that no
message fits stays English. In English nothing is read and nothing is matched.

The catalogue is `locale/zh_TW/LC_MESSAGES/messages.mo` (GNU gettext), made from the `.po` file beside it by
`python tools/messages.py`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from posttrain.errors import ConfigError, PosttrainError, Problem

__all__ = ["LANGUAGES", "from_environment", "named", "shown", "speak", "spoken", "translate"]

ENGLISH, CHINESE = "en", "zh-TW"
LANGUAGES: tuple[str, ...] = (ENGLISH, CHINESE)
"""BCP 47 tags, as in `--language` and `<html lang>`."""

QUOTES = {"'": "'", '"': '"', "`": "`"}
DEEPEST = 4
"""A message within a message within a message: not deeper than this."""
THIN = 6
"""A message with fewer letters of its own, not all of them in front, and no mark such as a colon is a thin one."""
LONGEST = 4000
"""A longer text is no message: it stays as it is."""

_state = {"language": ENGLISH}


def spoken() -> str:
    """The language that is spoken now."""
    return _state["language"]


def speak(language: str) -> None:
    """From now on messages are shown in this language."""
    _state["language"] = named(language)


def named(text: str) -> str:
    """The language that a tag means, such as `zh_TW.UTF-8`, `zh-Hant` or `en_US`; ConfigError when there is none."""
    found = _language_of(text)
    if found is None:
        raise ConfigError(Problem("--language", f"unknown language '{text}'", f"known: {', '.join(LANGUAGES)}"))
    return found


def from_environment(environment: Mapping[str, str] = os.environ) -> str:
    """The language of LANGUAGE, LC_ALL, LC_MESSAGES and LANG, in gettext's order; English when they name none we have.

    LANGUAGE is a list of wishes and is not heard when the locale is `C`:
    https://www.gnu.org/software/gettext/manual/html_node/Locale-Environment-Variables.html
    """
    locale = next((environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)), "")
    if locale in ("C", "POSIX"):
        return ENGLISH
    for wish in (environment.get("LANGUAGE") or locale).split(":"):
        found = _language_of(wish)
        if found is not None:
            return found
    return ENGLISH


def _language_of(tag: str) -> str | None:
    """zh with Taiwan, Hong Kong, Macau or Hant is Traditional Chinese; Hans is not, whatever the country."""
    parts = tag.partition(".")[0].partition("@")[0].replace("_", "-").casefold().split("-")
    if parts[0] == "zh" and "hans" not in parts and {"tw", "hk", "mo", "hant"} & set(parts):
        return CHINESE
    return ENGLISH if parts[0] == "en" else None


def translate(text: str) -> str:
    """A message in the language spoken; the space around it is kept, and what is unknown stays English."""
    if _state["language"] == ENGLISH or not text or len(text) > LONGEST:
        return text
    bare = text.strip()
    start = text.index(bare)
    return text[:start] + (_translated(bare) or bare) + text[start + len(bare) :]


def shown(error: PosttrainError | Problem) -> str:
    """An error, or one problem of it, for a person: place, cause and mend, each translated by itself."""
    if isinstance(error, PosttrainError):
        return "\n".join(shown(problem) for problem in error.problems)
    if _state["language"] == ENGLISH:
        return str(error)
    head = translate(error.cause)
    if error.place:
        head = f"{translate(error.place)}：{head}"
    return f"{head}；{translate(error.mend)}" if error.mend else head


# ---- the catalogue -----------------------------------------------------------------------------------------------


class Template(NamedTuple):
    """A message with placeholders.

    literals: the text before, between and after them; verbatim: the placeholders in quotes; anchor: the longest
    literal, which a text must hold; thin: whether the message has next to no words of its own.
    """

    literals: tuple[str, ...]
    names: tuple[str, ...]
    verbatim: frozenset[str]
    text: str
    anchor: str
    thin: bool

    def values(self, text: str) -> dict[str, str] | None:
        """What stands in the text at each placeholder; None where the text is another message."""
        first, *between, last = self.literals
        if not text.startswith(first) or not text.endswith(last):
            return None
        at, end = len(first), len(text) - len(last)
        values = []
        for i, literal in enumerate(between, start=1):
            # what stands last is short, such as the time that is left: columns before it are one value
            find = text.rfind if literal.isspace() and i == len(between) else text.find
            found = find(literal, at, end)
            if found < 0:
                return None
            values.append(text[at:found])
            at = found + len(literal)
        if at > end:
            return None
        return dict(zip(self.names, [*values, text[at:end]], strict=True))


class Catalogue(NamedTuple):
    """Messages without placeholders, and those with them, the longest text first."""

    exact: dict[str, str]
    templates: list[Template]


def parse(message: str) -> tuple[list[str], list[str]]:
    """The literal texts of a message in braces (one more than placeholders), and the placeholders' names."""
    literals, names = [""], []
    for literal, name, _, _ in Formatter().parse(message):
        literals[-1] += literal
        if name is not None:
            names.append(name)
            literals.append("")
    return literals, names


def catalogue_of(pairs: Iterable[tuple[str, str]]) -> Catalogue:
    """A catalogue of (message, translation) pairs; those without a translation are left out."""
    exact: dict[str, str] = {}
    templates: list[Template] = []
    for message, translation in pairs:
        if not message or not translation:
            continue
        if "{" not in message and "}" not in message:
            exact[message] = translation
            continue
        literals, names = parse(message)
        if "" in names:  # `{}` is filled in by others
            exact[message] = translation
            continue
        if not names:
            exact[literals[0]] = translation.replace("{{", "{").replace("}}", "}")
            continue
        quoted = frozenset(
            name
            for name, left, right in zip(names, literals, literals[1:], strict=False)
            if left and right and QUOTES.get(left[-1]) == right[0]
        )
        anchor = max(literals, key=len)
        templates.append(Template(tuple(literals), tuple(names), quoted, translation, anchor, _thin(literals)))
    templates.sort(key=lambda one: -sum(map(len, one.literals)))
    return Catalogue(exact, templates)


def _thin(literals: list[str]) -> bool:
    """Whether a message has so little of its own that many a sentence would fit it, such as `{a} is {b}`."""
    own = "".join(literals)
    letters = sum(map(str.isalpha, own))
    return letters < THIN and sum(map(str.isalpha, literals[0])) < letters and not set(own) & set("|:'`[")


def read_mo(path: Path) -> list[tuple[str, str]]:
    """The messages of a `.mo` file and their translations."""
    data = path.read_bytes()
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    _, _, count, messages, translations = struct.unpack(f"{order}5I", data[:20])

    def texts(at: int) -> list[str]:
        places = struct.unpack_from(f"{order}{2 * count}I", data, at)
        return [data[start : start + size].decode() for size, start in zip(places[::2], places[1::2], strict=True)]

    return list(zip(texts(messages), texts(translations), strict=True))


@cache
def _catalogue() -> Catalogue:
    return catalogue_of(read_mo(Path(__file__).parent / "locale" / "zh_TW" / "LC_MESSAGES" / "messages.mo"))


def _translated(text: str, depth: int = 0) -> str | None:
    """The translation of a text without space around it; None when nothing in it is known."""
    catalogue = _catalogue()
    found = catalogue.exact.get(text)
    if found is not None:
        return found
    if depth and ", " in text:
        listed = _listed(text, depth)
        if listed is not None:
            return listed
    for template in catalogue.templates:
        if template.anchor in text:
            values = template.values(text)
            told = None if values is None else _told(template, values, depth)
            if told is not None:
                return template.text.format_map(told)
    return _in_parts(text, depth)


def _told(template: Template, values: dict[str, str], depth: int) -> dict[str, str] | None:
    """The values as they are shown; None where they show that the text is not this message after all.

    A value is a name, a number or a message within the message. Columns of something else (two spaces) are none of
    these, a place before the message is no part of it, and a thin message is meant only where a value is a number or a
    message.
    """
    told, meant = {}, not template.thin
    for name, value in values.items():
        bare = value.strip()
        if name in template.verbatim or " " not in bare:
            told[name] = value
            meant = meant or any(map(str.isdigit, bare))
            continue
        known = _translated(bare, depth + 1) if depth < DEEPEST else None
        placed = name == template.names[0] and not template.literals[0] and (": " in bare or "; " in bare)
        if known is None and (placed or "  " in bare):
            return None
        told[name] = value if known is None else value.replace(bare, known, 1)
        meant = meant or known is not None
    return told if meant else None


def _in_parts(text: str, depth: int) -> str | None:
    """Lines, columns, `cause; mend`, `place: cause`, `cause (detail)` and lists that are not one message.

    The parts that are known are translated.
    """
    if depth >= DEEPEST:
        return None
    for mark in ("\n", "  "):
        if mark in text:
            parts = text.split(mark)
            told = [_translated(part.strip(), depth + 1) if part.strip() else None for part in parts]
            if any(told):
                pairs = zip(parts, told, strict=True)
                return mark.join(part if one is None else part.replace(part.strip(), one, 1) for part, one in pairs)
    for mark, joined in (("; ", "；"), (": ", "："), (" (", "（")):
        parts = text.split(mark)
        for i in range(1, min(len(parts), 9)):
            head, rest = mark.join(parts[:i]), mark.join(parts[i:])
            told_head = _translated(head, depth + 1) if " " in head else None
            if mark == " (":
                if told_head is not None and rest.endswith(")"):
                    return f"{told_head}（{_translated(rest[:-1], depth + 1) or rest[:-1]}）"
                continue
            told_rest = _translated(rest, depth + 1) if " " in rest else None
            if told_rest is not None or (told_head is not None and mark == "; "):
                return (told_head or head) + joined + (told_rest or rest)
    return _listed(text, depth) if ", " in text else None


def _listed(text: str, depth: int) -> str | None:
    """A list with commas, where each part of it is a message."""
    told = [_translated(part, depth + 1) if " " in part and depth < DEEPEST else None for part in text.split(", ")]
    return "、".join(one for one in told if one) if all(told) else None
