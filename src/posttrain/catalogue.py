"""Translate finished texts with a gettext catalogue: find the message with `{placeholders}` that made a text.

The code formats its messages in English, with names and numbers filled in. A text that equals a message without
placeholders is looked up. When several messages with placeholders match, the one with the longest literal text is used.
Values are kept, and a value that is itself a message is translated too.
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
"""The greatest depth to which messages may be nested in messages."""
TRIES = 200
"""The greatest number of look-ups of parts for one text; a line for people has only a few parts."""
SHORT, WORDS = 12, 3
"""A message with fewer letters than SHORT and no colon does not match an unknown value with more spaces than WORDS."""
THIN = 6
"""A message such as `{a} is {b}` is thin: it has fewer letters than this, some of them after the first placeholder,
and no mark such as a colon."""
COUNTED = re.compile(r"\{(\w+)\} ?(?:個|段|題|份|項|張|次|種|條|句|筆|格|步|層|輪|遍|件|秒|列(?![出表]))")
"""Matches a placeholder before a Chinese classifier; its value must be a number."""
KEY = re.compile(r"(?:^|\s)\w+: ?$")
"""Matches a literal that ends like a key of YAML."""
CODE = re.compile(r"[{\[]\s*[\w'\"]+\s*[:,\]]")
"""Matches the beginning of a mapping or a list in YAML."""
CHOICES = re.compile(r"('[^']*'(?:, '[^']*')*),? (or|and) ('[^']*')")
"""Matches a list of words in quotes, as pydantic writes the allowed values."""


class Template(NamedTuple):
    """A message with placeholders. literals: the text before, between and after them; verbatim: the placeholders in
    quotes; anchor: the longest literal, which a matching text must contain; thin: the message has almost no literal
    words; short: it has few; counted: the placeholders that must have a number as their value."""

    literals: tuple[str, ...]
    names: tuple[str, ...]
    verbatim: frozenset[str]
    text: str
    anchor: str
    thin: bool
    short: bool
    counted: frozenset[str]

    def values(self, text: str) -> dict[str, str] | None:
        """Return the value of each placeholder in a text, or None when the text is not this message."""
        first, *between, last = self.literals
        if not text.startswith(first) or not text.endswith(last):
            return None
        at, end = len(first), len(text) - len(last)
        values = []
        for i, literal in enumerate(between, start=1):
            # the last value is short, such as the remaining time: all columns before it form one value, unless the
            # placeholder takes a number
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
    """The messages without placeholders (exact), and those with placeholders (templates), the longest first."""

    exact: dict[str, str]
    templates: list[Template]


def parse(message: str) -> tuple[list[str], list[str]]:
    """Return the literal texts of a message (one more than it has placeholders) and the placeholders' names."""
    literals, names = [""], []
    for literal, name, _, _ in Formatter().parse(message):
        literals[-1] += literal
        if name is not None:
            names.append(name)
            literals.append("")
    return literals, names


def catalogue_of(pairs: Iterable[tuple[str, str]]) -> Catalogue:
    """Return the catalogue of (message, translation) pairs. Pairs without a translation are left out."""
    exact: dict[str, str] = {}
    templates: list[Template] = []
    for message, translation in pairs:
        if not message or not translation:
            continue
        if "{" not in message and "}" not in message:
            exact[message] = translation
            continue
        literals, names = parse(message)
        if "" in names:  # `{}` is filled in by other programs
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
        letters, first = (sum(map(str.isalpha, part)) for part in (own, literals[0]))
        short = letters < SHORT and ":" not in own
        thin = short and letters < THIN and first < letters and not set(own) & set("|:'`[")
        counted = frozenset(COUNTED.findall(translation))
        templates.append(Template(tuple(literals), tuple(names), quoted, translation, anchor, thin, short, counted))
    templates.sort(key=lambda one: -sum(map(len, one.literals)))
    return Catalogue(exact, templates)


def read_mo(path: Path) -> list[tuple[str, str]]:
    """Return the (message, translation) pairs of a `.mo` file."""
    data = path.read_bytes()
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    _, _, count, messages, translations = struct.unpack(f"{order}5I", data[:20])

    def texts(at: int) -> list[str]:
        table = struct.unpack_from(f"{order}{2 * count}I", data, at)
        return [data[start : start + size].decode() for size, start in zip(table[::2], table[1::2], strict=True)]

    return list(zip(texts(messages), texts(translations), strict=True))


def translated(catalogue: Catalogue, text: str) -> str | None:
    """Return the translation of a text that has no space around it, or None when no part of it is known."""
    return _Search(catalogue).found(text)


@dataclass
class _Search:
    """One search for a text's translation. left: the number of look-ups left; it is limited because a text can be split
    in many ways."""

    catalogue: Catalogue
    left: int = TRIES
    known: dict[tuple[str, int], str | None] = field(default_factory=dict)  # by depth, as the depth limits the search

    def found(self, text: str, depth: int = 0) -> str | None:
        """Return the translation of a text, or of a part of a text at some depth; None when it is not known."""
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
        """Return the translation of a text that is one message as a whole, or None."""
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
        """Return the values to show, or None when the values show that the text is another message.

        A value is a name, a number or a message. It contains no columns (two spaces) of other texts, and the first
        value is not a location before the message. A thin message must have a value that is a number or a message. A
        value that must be a number has digits. YAML code after a key is not a value."""
        told, meant = {}, not template.thin
        for (name, value), before in zip(values.items(), template.literals, strict=False):
            bare = value.strip()
            if name in template.counted and not any(map(str.isdigit, bare)):
                return None
            if CODE.match(bare) and KEY.search(before):
                return None
            if "  " in bare and not any("  " in literal for literal in template.literals):
                return None  # the value would include the columns before its own: `12/40  9 tokens/s  42 s left`
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
        """Translate the known parts of lines, columns, `cause; mend`, `location: cause`, `cause (detail)` and lists."""
        for mark in ("\n", "  "):
            if mark in text:
                parts = text.split(mark)
                told = [self.found(part.strip(), depth + 1) if part.strip() else None for part in parts]
                pairs = zip(parts, told, strict=True)
                kept = [part if one is None else part.replace(part.strip(), one, 1) for part, one in pairs]
                return mark.join(kept) if any(told) else None
        for head, rest in _cut(text, ": "):  # a location before one message, which may contain the same mark
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
        """Translate a list with commas whose parts are messages, single words, or a number with its unit."""
        parts = _split(text, ", ", "{[(", "}])")  # a detail may contain commas
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
    """Return the texts before and after each of the first 8 occurrences of a mark that are not within brackets."""
    parts = _split(text, mark)
    return [(mark.join(parts[:i]), mark.join(parts[i:])) for i in range(1, min(len(parts), 9))]


def _split(text: str, mark: str, opening: str = "{[", closing: str = "}]") -> list[str]:
    """Return the parts between marks. Marks within brackets do not count: braces and square brackets enclose code."""
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
    """Return `'a', 'b' or 'c'` with the Chinese word for 'or' (or 'and'), and any other value as it is."""
    found = CHOICES.fullmatch(value)
    return value if found is None else f"{found[1]} {'或' if found[2] == 'or' else '和'} {found[3]}"
