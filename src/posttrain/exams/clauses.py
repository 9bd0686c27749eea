"""Cut an answer into clauses, so that "not Sydney" and "it is Melbourne" are judged separately.

The rules use punctuation and connectives, in English and Chinese; there is no parser and no model. A clause records its
sentence, its item number in a numbered or bulleted list, whether its sentence is a question, and what joins it to the
clause before.

These rules cannot read table cells and braces, so a table or a JSON answer is first turned into sentences. The answer

    {"capital": "Ottawa", "largest_city": "Toronto"}

becomes "capital is Ottawa" and "largest city is Toronto". A cell of a table is combined with its heading and the first
cell of its row: "Country Canada Capital is Ottawa". Other text stays unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.exams.normalising import folded, json_in

__all__ = ["Clause", "as_sentences", "clauses_of", "without_echo"]


@dataclass(frozen=True)
class Clause:
    """A piece of a sentence.

    raw: as written; text: folded; sentence: number of its sentence in the answer, from 0; item: number of its item in a
    list, from 1, or 0 outside a list; asks: the sentence ends in a question mark; glue: the punctuation between it and
    the clause before in the same sentence (a comma, 、, a bracket), or empty.
    """

    raw: str
    text: str
    sentence: int
    item: int
    asks: bool
    glue: str


_DEGREE = re.compile(r"(?<=\d)\s*[°℃℉]")
_ASIDE = re.compile(
    r"\s*,\s*(?:however|of course|in fact|actually|indeed|though|therefore|in turn|on the other hand)\s*,\s*", re.I
)
_MARKS = re.compile(r"\*\*|__|`|^#+ ", re.MULTILINE)
_ITEM = re.compile(r"^\s*(?:(\d{1,2})\s*[.)、]\s*(?!\d)|[-*•+]\s+)(?=\S)")
_ABBREVIATION = re.compile(
    r"(?:^|[^\w])(?:\w|mr|mrs|ms|dr|st|mt|jr|sr|vs|approx|ca|cf|no|prof|gen|capt|u\.s|d\.c|e\.g|i\.e)$", re.I
)
_END = re.compile(r"[。！？!?]+[”\"」』’']*|\.{2,}|…+|\.(?=[\s”\"」』’'*)]|$)")
_GLUE = re.compile(r"(?<!\d),|,(?!\d{3})|[，、;；:：()（）]|(?<=\s)[-–](?=\s)|—+|(?<=\w)/(?=[^\W\d])")
_TIE = re.compile(
    r"\b(?=(?:(?<!everyone )(?<!everybody )(?<!everything )(?<!anything )(?<!\ball )but|however|although|though|"
    r"whereas|while|yet|because|since)\b)"
    r"|\b(?=(?:and|as) (?:its?|the|in|he|she|they|this|that|is|was|has|have|not|never|also|there|now|died|became|went|"
    r"took|\w{3,}ed)\b)"
    r"|(?=但|不[过過]|然而|可是|(?<![从從因反進进])而(?![且已言後后])|[虽雖]然|其[实實]|因[为為]|所以)",
    re.I,
)
_LONE_TIE = re.compile(r"(?:but|however|although|though|yet|and|or|但是?|不[过過]|然而|可是|而|其[实實]|和|或)", re.I)


def without_echo(answer: str, prompt: str) -> str:
    """Return the answer without repetitions of the question, as a question or between quotation marks."""
    core = prompt.strip().rstrip("?？。.！! ")
    if len(core) < 4:
        return answer
    words = r"\s+".join(re.escape(word) for word in core.split())
    quoted = rf"[\"“「『'‘]\s*{words}\s*[?？.。!！]*\s*[\"”」』'’]"
    return re.sub(rf"{quoted}|{words}\s*[?？]+", " ", answer, flags=re.I)


def clauses_of(answer: str, keep: Sequence[str] = ()) -> list[Clause]:
    """Return the clauses of the answer in order, without clauses that have no word. keep: texts that are never cut,
    with any punctuation ("March 3, 1998").
    """
    found: list[Clause] = []
    sentence = item = 0
    answer = _ASIDE.sub(" actually ", answer)  # "The capital, however, is" is one clause
    for line in _DEGREE.sub(" ", _MARKS.sub("", answer)).splitlines():
        marker = _ITEM.match(line)
        if marker and marker[1] and int(marker[1]) != item + 1:  # "54. That is..." does not begin a list
            marker = None
        item = (item + 1 if marker else 0) if line.strip() else item
        for text, asks in _sentences(line[marker.end() :] if marker else line, keep):
            for raw, glue in _pieces(text, keep):
                found.append(Clause(raw.strip(), folded(raw), sentence, item, asks, glue))
            sentence += 1
    return [clause for clause in found if clause.text]


def _within(text: str, keep: Sequence[str]) -> set[int]:
    """Return the indices inside texts that must not be cut."""
    found = (m for one in keep if one.strip() for m in re.finditer(re.escape(one.strip()), text, re.IGNORECASE))
    return {at for m in found for at in range(m.start() + 1, m.end())}


def _sentences(line: str, keep: Sequence[str]) -> Iterator[tuple[str, bool]]:
    start, whole = 0, _within(line, keep)
    for end in _END.finditer(line):
        if end.start() in whole and end.end() in whole:
            continue
        if end.group() == "." and _ABBREVIATION.search(line[start : end.start()]) and line[end.end() :].strip():
            continue
        yield line[start : end.start()], any(mark in end.group() for mark in "?？")
        start = end.end()
    if line[start:].strip():
        yield line[start:], False


def _pieces(sentence: str, keep: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (piece, the punctuation before it). A piece that is only a connective is joined to the next one."""
    start, glue, carried = 0, "", ""
    cuts = sorted([(m.start(), m.end(), m.group().strip()) for m in _GLUE.finditer(sentence)])
    cuts += [(m.start(), m.start(), "") for m in _TIE.finditer(sentence) if m.start()]
    whole = _within(sentence, keep)
    cuts = [cut for cut in cuts if cut[0] not in whole]
    for left, right, mark in [*sorted(cuts), (len(sentence), len(sentence), "")]:
        piece = carried + sentence[start:left]
        if _LONE_TIE.fullmatch(piece.strip()):
            carried = piece + " "
        elif piece.strip():
            yield piece, glue
            glue, carried = mark, ""
        else:
            glue = mark or glue
        start = max(start, right)
    if carried.strip():
        yield carried, glue


_RULE = re.compile(r"^[\s|:-]*-[\s|:-]*$")
_TABLE = re.compile(r"(?:^[ \t]*\|.+\|[ \t]*(?:\n|\Z)){2,}", re.MULTILINE)
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def as_sentences(answer: str) -> str:
    """Return the answer with its tables as sentences, or the whole answer as sentences if it is JSON."""
    value = json_in(answer) if answer.lstrip()[:1] in ("{", "[", "`") else None
    if value is not None:
        return "\n".join(_leaves(value, ""))
    return _TABLE.sub(lambda found: "\n".join(_rows(found.group())) + "\n", answer) if "|" in answer else answer


def _leaves(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, re.sub(r"[_\s]+", " ", str(name)).strip())
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key)
    elif value is not None:
        yield _is(key, value if isinstance(value, str) else json.dumps(value))


def _is(subject: str, value: str) -> str:
    """Return one sentence. A line break ends it, so that the whole value is kept."""
    value = " ".join(value.split())
    if not subject:
        return value
    return f"{subject}是{value}" if _CHINESE.search(subject) else f"{subject} is {value}"


def _rows(table: str) -> Iterator[str]:
    """Yield a sentence for every cell, about the first cell of its row; a table without a rule line has no heading."""
    lines = [line for line in table.splitlines() if line.strip()]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if not _RULE.match(line)]
    heading = rows[0] if len(lines) > 1 and _RULE.match(lines[1]) and len(rows) > 1 else []
    for cells in rows[1:] if heading else rows:
        (first, of), *others = zip(cells, heading + [""] * (len(cells) - len(heading)), strict=False)
        row = f"{of} {first}".strip()
        yield from (_is(f"{row} {name}".strip(), cell) for cell, name in others if cell)
        if not others:
            yield row
