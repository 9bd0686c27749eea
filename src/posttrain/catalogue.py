"""A gettext catalogue that is matched against finished texts: messages with `{placeholders}`, found by what is around.

The code says its messages in English with names and numbers filled in; which message a text was is found again here.
What has no placeholders is looked up; of the others, the one with most words of its own wins. Values are kept as they
are, and a value that is itself a message is translated in turn.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import NamedTuple

__all__ = ["Catalogue", "Template", "catalogue_of", "parse", "read_mo", "translated"]

QUOTES = {"'": "'", '"': '"', "`": "`"}
DEEPEST = 4
"""A message within a message within a message: not deeper than this."""
TRIES = 200
"""So many parts of one text are looked up at most; a line for people has a handful."""
SHORT, WORDS = 12, 3
"""In a message with fewer letters of its own, and no colon, an unknown value of more spaces is a sentence of others."""
THIN = 6
"""A message with fewer letters of its own, not all of them in front, and no mark such as a colon is a thin one."""
COUNTED = re.compile(r"\{(\w+)\} ?(?:個|段|題|份|項|張|次|種|條|句|筆|格|步|層|輪|遍|件|秒|列(?![出表]))")
"""A placeholder before a Chinese classifier: only a number stands there."""
KEY = re.compile(r"(?:^|\s)\w+: ?$")
"""The end of a literal that reads as a key of YAML where a mapping or a list follows."""
CODE = re.compile(r"[{\[]\s*[\w'\"]+\s*[:,\]]")
"""How a mapping or a list in YAML begins."""
CHOICES = re.compile(r"('[^']*'(?:, '[^']*')*),? (or|and) ('[^']*')")
"""Words in quotes, to choose from, as pydantic lists them."""


class Template(NamedTuple):
    """A message with placeholders.

    literals: the text before, between and after them; verbatim: the placeholders in quotes; anchor: the longest
    literal, which a text must hold; thin: whether the message has next to no words of its own; short: whether it has
    few; counted: the placeholders that only a number fits.
    """

    literals: tuple[str, ...]
    names: tuple[str, ...]
    verbatim: frozenset[str]
    text: str
    anchor: str
    thin: bool
    short: bool
    counted: frozenset[str]

    def values(self, text: str) -> dict[str, str] | None:
        """What stands in the text at each placeholder; None where the text is another message."""
        first, *between, last = self.literals
        if not text.startswith(first) or not text.endswith(last):
            return None
        at, end = len(first), len(text) - len(last)
        values = []
        for i, literal in enumerate(between, start=1):
            # what stands last is short, such as the time that is left: columns before it are one value, a number is not
            columns = literal.isspace() and i == len(between) and self.names[i - 1] not in self.counted
            find = text.rfind if columns else text.find
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
        anchor, own = max(literals, key=len), "".join(literals)
        short = sum(map(str.isalpha, own)) < SHORT and ":" not in own
        thin = short and _thin(literals)
        counted = frozenset(COUNTED.findall(translation))
        templates.append(Template(tuple(literals), tuple(names), quoted, translation, anchor, thin, short, counted))
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


def translated(catalogue: Catalogue, text: str) -> str | None:
    """The translation of a text without space around it; None when nothing in it is known."""
    return _Search(catalogue).found(text)


@dataclass
class _Search:
    """One text's translation. left: looked up at most so often, as a text of many parts could be cut in many ways."""

    catalogue: Catalogue
    left: int = TRIES
    known: dict[tuple[str, int], str | None] = field(default_factory=dict)  # by depth: below it, less is looked up

    def found(self, text: str, depth: int = 0) -> str | None:
        """The translation of a text, or of a part of it at some depth."""
        if (text, depth) not in self.known:
            if depth > DEEPEST or not self.left:
                return None
            self.left -= 1
            self.known[text, depth] = self._looked_up(text, depth)
        return self.known[text, depth]

    def _looked_up(self, text: str, depth: int) -> str | None:
        known = text in self.catalogue.exact
        row = self._row(text, depth) if depth and ", " in text and not known else None
        return row or self._whole(text, depth) or self._in_parts(text, depth)

    def _whole(self, text: str, depth: int) -> str | None:
        """The translation of one message."""
        exact = self.catalogue.exact.get(text)
        if exact is not None:
            return exact
        for template in self.catalogue.templates:
            if template.anchor in text:
                values = template.values(text)
                told = None if values is None else self._told(template, values, depth)
                if told is not None:
                    return template.text.format_map(told)
        return None

    def _told(self, template: Template, values: dict[str, str], depth: int) -> dict[str, str] | None:
        """The values as they are shown; None where they show that the text is not this message after all.

        A value is a name, a number or a message within the message. Columns of something else (two spaces) are none of
        these, a place before the message is no part of it, and a thin message is meant only where a value is a number
        or a message. Nor is a text this message where it has words for a number, or where its last word is a key of
        YAML that is to be copied.
        """
        told, meant = {}, not template.thin
        for (name, value), before in zip(values.items(), template.literals, strict=False):
            bare = value.strip()
            if name in template.counted and not any(map(str.isdigit, bare)):
                return None
            if CODE.match(bare) and KEY.search(before):
                return None
            if "  " in bare and not any("  " in literal for literal in template.literals):
                return None  # it would take the columns before its own: `12/40  9 tokens/s  42 s left`
            if name in template.verbatim or " " not in bare:
                told[name] = value
                meant = meant or any(map(str.isdigit, bare))
                continue
            known = self.found(bare, depth + 1)
            several = ": " in bare or "; " in bare
            placed = several and name == template.names[0] and not template.literals[0]
            odd = template.thin or placed or "  " in bare or (template.short and bare.count(" ") > WORDS)
            if (known is None and odd) or (several and template.thin):
                return None
            told[name] = _chosen(value) if known is None else value.replace(bare, known, 1)
            meant = meant or known is not None
        return told if meant else None

    def _in_parts(self, text: str, depth: int) -> str | None:
        """Lines, columns, `cause; mend`, `place: cause`, `cause (detail)` and lists that are not one message.

        The parts that are known are translated.
        """
        for mark in ("\n", "  "):
            if mark in text:
                parts = text.split(mark)
                told = [self.found(part.strip(), depth + 1) if part.strip() else None for part in parts]
                pairs = zip(parts, told, strict=True)
                kept = [part if one is None else part.replace(part.strip(), one, 1) for part, one in pairs]
                return mark.join(kept) if any(told) else None
        for head, rest in _cut(text, ": "):  # a place before one message, which may have the same marks in it
            told_rest = self._whole(rest, depth + 1) if " " in rest and self.left else None
            self.left = max(self.left - 1, 0)
            if told_rest is not None:
                return f"{self.found(head, depth + 1) or head if ' ' in head else head}：{told_rest}"
        for mark, joined in (("; ", "；"), (": ", "："), (" (", "（")):
            for head, rest in _cut(text, mark):
                told_head = self.found(head, depth + 1) if " " in head else None
                if mark == " (":
                    if told_head is not None and rest.endswith(")"):
                        return f"{told_head}（{self.found(rest[:-1], depth + 1) or rest[:-1]}）"
                    continue
                told_rest = self.found(rest, depth + 1) if " " in rest else None
                if told_rest is not None or (told_head is not None and mark == "; "):
                    return (told_head or head) + joined + (told_rest or rest)
        return self._row(text, depth) if ", " in text else None

    def _row(self, text: str, depth: int) -> str | None:
        """A list with commas whose parts are messages, single words, or a number and its unit."""
        parts = _split(text, ", ", "{[(", "}])")  # a detail may have commas of its own
        if len(parts) == 1:
            return None
        told = [self.found(part, depth + 1) if " " in part else None for part in parts]
        fits = all(
            one is not None or " " not in part or (part[0].isdigit() and part.count(" ") == 1)
            for part, one in zip(parts, told, strict=True)
        )
        if not fits or not any(told):
            return None
        return "，".join(part if one is None else one for part, one in zip(parts, told, strict=True))


def _cut(text: str, mark: str) -> list[tuple[str, str]]:
    """Before and after each of the first places of a mark, none of them within brackets."""
    parts = _split(text, mark)
    return [(mark.join(parts[:i]), mark.join(parts[i:])) for i in range(1, min(len(parts), 9))]


def _split(text: str, mark: str, opening: str = "{[", closing: str = "}]") -> list[str]:
    """The parts between marks; what stands in brackets is one part: in braces and square brackets it is code."""
    parts, depth = [""], 0
    for i, part in enumerate(text.split(mark)):
        if i:
            if depth > 0:
                parts[-1] += mark
            else:
                parts.append("")
        parts[-1] += part
        depth += sum(map(part.count, opening)) - sum(map(part.count, closing))
    return parts


def _chosen(value: str) -> str:
    """`'a', 'b' or 'c'` with the word of the language; any other value as it is."""
    found = CHOICES.fullmatch(value)
    return value if found is None else f"{found[1]} {'或' if found[2] == 'or' else '和'} {found[3]}"
