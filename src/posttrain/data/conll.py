"""Read CoNLL files: each line has a token first and its tag last, and blank lines separate sentences.

- Columns are separated by tabs if the lines have tabs, else by spaces.
- Lines that begin with `-DOCSTART-` are skipped, and so are comments: lines that begin with `#` and are no token.
  `#metoo O` is a token, as it has as many columns as other lines. `# O` is a token, as its last column is a tag, but
  `# id 7 domain=train` is not. After the first token of a sentence `# #` is a token (as in Penn Treebank) if it has as
  many columns as the token before it, unless all tags of the file are of spans. A line with the first column `# id`
  (between tabs) is a comment, unless other tokens have spaces. Before the first token of a sentence `#id 7` is a
  comment if 7 cannot be a tag, as all other tags are of spans (`B-LOC`, `O`) or have letters. If this is not certain,
  the line is a bad row.
- If lines are numbered within their sentences, the token is the second column. With ten columns (CoNLL-U, CoNLL-X) the
  tag is the fourth (UPOS), or the fifth if that is empty; other columns can be chosen by `columns: {tags: xpos}`. Lines
  numbered `3-4` (several words written as one) or `8.1` (words not written) are skipped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from posttrain.data.fields import BadRow

__all__ = ["CONLL_MEND", "CONLL_SUFFIXES", "conll_rows"]

CONLL_SUFFIXES = frozenset({".conll", ".conllu", ".bio", ".iob", ".iob2"})
"""The endings of files that have one token in each line."""
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
TABS = 0.9
"""Tabs separate columns if at least this share of the lines has the same number of tabs."""
TAG = re.compile(r"O|[BIESLUM][-_]\S+")
"""Matches a tag of a span of tokens."""
UNSURE_MEND = "write a comment with a space, '# id 7'; the tag of a token must stand in other lines, too"
CONLL_MEND = "a token and its tag in each line, blank lines between sentences"


class _Line(NamedTuple):
    number: int
    cells: list[str]


class _Layout(NamedTuple):
    """The layout of a file. widths: numbers of columns, the most frequent first; numbered: whether the first column
    counts tokens; tags: index of the column of tags; known: last columns of lines that are certainly tokens; spans:
    whether all known tags are tags of spans; worded: whether all known tags have letters; spaced: whether tokens may
    contain spaces."""

    widths: tuple[int, ...]
    numbered: bool
    tags: int
    known: frozenset[str]
    spans: bool
    worded: bool
    spaced: bool


def conll_rows(text: str, name: str, note: Callable[[str], None] = lambda _: None) -> Iterator[tuple[str, Any]]:
    """Yield (location, row or BadRow) of every sentence. The location is its first line. note: is called with a text
    about the lines that were skipped and the columns that were chosen.
    """
    lines = _lines(text)
    sure = [line.cells for line in lines if _is_token(line.cells)]
    if not sure:  # every token may be a hashtag
        tagged = [line.cells for line in lines if len(line.cells) > 1 and TAG.fullmatch(line.cells[-1])]
        sure = [cells for cells in tagged if cells[0] != "-DOCSTART-"]
    layout = _layout(sure, lines)
    comments = extra = 0
    sentence: list[_Line] = []
    unsure: BadRow | None = None
    for line in [*lines, _Line(0, [])]:
        if _comment(line.cells, layout, len(sentence[-1].cells) if sentence else 0):
            comments += 1
        elif layout.numbered and re.fullmatch(r"\d+[-.]\d+", line.cells[0] if line.cells else ""):
            extra += 1
        elif not sentence and _may_be_tagged(line.cells, layout) is False:
            comments += 1
        elif line.cells and line.cells[0] != "-DOCSTART-":
            if not sentence and _may_be_tagged(line.cells, layout) is None:
                cause = f"line {line.number} begins with '#' and ends with {line.cells[-1]!r}, which is no other's tag"
                unsure = BadRow(f"{cause}: a comment, or a token?", UNSURE_MEND)
            sentence.append(line)
        elif sentence:
            yield f"{name}:{sentence[0].number}", unsure or _row(sentence, layout)
            sentence, unsure = [], None
    if comments:
        note(f"{comments:,} comment lines (#) are left out")
    if extra:
        note(f"{extra:,} lines numbered like 3-4 or 8.1 are left out: they are no words of their own")
    if layout.numbered:
        column = f"{CONLLU[layout.tags].upper()}, column" if layout.widths[0] == len(CONLLU) else "column"
        note(f"the lines are numbered: tokens are in column 2, tags in {column} {layout.tags + 1}")


def _is_token(cells: list[str]) -> bool:
    """Return whether a line is certainly a token."""
    return bool(cells) and not cells[0].startswith("#") and cells[0] != "-DOCSTART-"


def _lines(text: str) -> list[_Line]:
    raw = [line.strip(" \r") for line in text.split("\n")]
    tokens = [line for line in raw if line.strip() and not line.startswith(("#", "-DOCSTART-"))]
    counts = Counter(line.strip("\t").count("\t") for line in tokens).most_common(1)
    tabs = bool(counts) and counts[0][0] > 0 and counts[0][1] >= TABS * len(tokens)
    found = []
    for number, line in enumerate(raw, start=1):
        if not line.strip(" \t"):
            cells: list[str] = []
        elif "\t" in line and tabs:
            cells = [cell.strip(" ") for cell in line.strip("\t").split("\t")]
        else:
            # in a file with tabs, a comment is one cell
            cells = [line] if tabs else re.split(r"[ \t]+", line.strip(" \t"))
        found.append(_Line(number, cells))
    return found


def _layout(sure: list[list[str]], lines: list[_Line]) -> _Layout:
    widths = tuple(width for width, _ in Counter(map(len, sure)).most_common())
    width = widths[0] if widths else 0
    numbered = width >= 3 and _numbered(lines)
    tags = -1
    if numbered and width == len(CONLLU):
        empty = all(cells[3] in ("_", "") for cells in sure if len(cells) == width)
        tags = 4 if empty else 3
    elif numbered:
        tags = 2
    spaced = any(" " in cells[0] and not cells[0].startswith("#") for cells in sure)
    known = frozenset(cells[-1] for cells in sure)
    spans = bool(known - {"O"}) and all(TAG.fullmatch(tag) for tag in known)
    worded = all(map(_has_letter, known))
    if not spans:  # add tags of the token `#`, which is recognised within sentences
        known |= {
            line.cells[-1]
            for before, line in pairwise(lines)
            if line.cells[:1] == ["#"] and _is_token(before.cells) and len(line.cells) == len(before.cells)
        }
    return _Layout(widths, numbered, tags, known, spans, worded, spaced)


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


def _numbered(lines: list[_Line]) -> bool:
    """Return whether the first column counts from 1 in every sentence."""
    expected, found = 1, False
    for line in lines:
        first = line.cells[0] if line.cells else ""
        if not line.cells:
            expected = 1
        elif not first.startswith("#") and not re.fullmatch(r"\d+[-.]\d+", first):
            if first != str(expected):
                return False
            expected, found = expected + 1, True
    return found


def _comment(cells: list[str], layout: _Layout, within: int) -> bool:
    """Return whether a line is a comment. within: columns of the token before it in its sentence, or 0."""
    if not cells or not cells[0].startswith("#"):
        return False
    if layout.numbered or len(cells) not in layout.widths:
        return True
    if " " in cells[0] and not layout.spaced:
        return True
    token = _is_tag(cells[-1], layout) or (len(cells) == within and not layout.spans)
    return cells[0] == "#" and not token


def _is_tag(text: str, layout: _Layout) -> bool:
    return text in layout.known or TAG.fullmatch(text) is not None


def _may_be_tagged(cells: list[str], layout: _Layout) -> bool | None:
    """Return whether the last column of a line that begins with `#` may be a tag, or None if this is not certain."""
    if not cells or not cells[0].startswith("#") or _is_tag(cells[-1], layout):
        return True
    no_tag = layout.spans or (layout.worded and not _has_letter(cells[-1]))
    return False if no_tag else None


def _row(sentence: list[_Line], layout: _Layout) -> dict[str, Any] | BadRow:
    width = layout.widths[0] if layout.numbered else len(sentence[0].cells)
    for line in sentence:
        if len(line.cells) < 2:
            return BadRow(f"line {line.number} has one column", CONLL_MEND)
        if len(line.cells) != width:
            return BadRow(f"line {line.number} has {len(line.cells)} columns, others have {width}", CONLL_MEND)
    columns = [list(column) for column in zip(*(line.cells for line in sentence), strict=True)]
    row: dict[str, Any] = {"tokens": columns[1 if layout.numbered else 0], "tags": columns[layout.tags]}
    if layout.numbered and width == len(CONLLU):
        row |= dict(zip(CONLLU, columns, strict=True))
    return row
