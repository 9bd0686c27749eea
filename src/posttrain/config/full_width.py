"""Full-width signs where YAML needs ASCII: `study：tiny`, `seeds: ［0，1］`.

Chinese input methods write them; the parser takes them for letters and reports an error in a later line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from posttrain.errors import Problem

__all__ = ["in_text", "in_value"]


class _Wide(NamedTuple):
    """Signs of one kind: their name, what to write instead, and the ASCII sign for each."""

    name: str
    mend: str
    signs: dict[int, str]


KINDS = (
    _Wide("the full-width colon ：", "write : and a space", {ord("："): ": "}),
    _Wide("full-width brackets", "write [ ] or { }", dict(zip(map(ord, "［］｛｝【】"), "[]{}[]", strict=True))),
    _Wide("the full-width comma ，", "write , and a space", {ord("，"): ", ", ord("、"): ", "}),
    _Wide("full-width quotation marks", 'write "', dict.fromkeys(map(ord, "“”＂「」『』"), '"')),
)
"""In the order in which they are tried."""
SPACE = {0x3000: " "}
"""The full-width space, which is replaced together with signs of any kind."""
MOST_TRIED = 20
"""How many lines before the reported one are tried, and how many problems are reported."""


def in_text(text: str, line: int, name: str, fault: Callable[[str], int | None]) -> list[Problem]:
    """Problems for the full-width signs because of which a text is not YAML; empty when they are not the reason.

    line: where the parser failed, which is after the sign; fault: returns the line where the parser fails on a text,
    None when it succeeds. A sign is the reason when the parser gets further with the ASCII sign instead.
    """
    lines = text.split("\n")
    problems: list[Problem] = []
    at: int | None = line
    while at is not None and len(problems) < MOST_TRIED:
        for number, changed, kinds in _changes(lines, at):
            tried = [*lines[:number], changed, *lines[number + 1 :]]
            reached = fault("\n".join(tried))
            if reached is None or reached > at:
                lines, at = tried, reached
                location = f"{name}:{number + 1}" if name else ""
                problems += [Problem(location, f"not valid YAML: {kind.name}", kind.mend) for kind in kinds]
                break
        else:
            break
    return sorted(problems, key=lambda problem: int(problem.location.rpartition(":")[2] or 0))


def _changes(lines: list[str], at: int) -> Iterator[tuple[int, str, list[_Wide]]]:
    """(index, the line with ASCII signs, their kinds) for the lines from `at` (1-based) upwards, the nearest first."""
    tried = 0
    for number in range(min(at, len(lines)) - 1, -1, -1):
        kinds = [kind for kind in KINDS if any(ord(sign) in kind.signs for sign in lines[number])]
        tried += bool(kinds)
        for kind in kinds:
            yield number, lines[number].translate({**kind.signs, **SPACE}), [kind]
        if len(kinds) > 1:
            every = {code: sign for kind in kinds for code, sign in kind.signs.items()}
            yield number, lines[number].translate({**every, **SPACE}), kinds
        if tried == MOST_TRIED:
            return


def in_value(text: object, reads: Callable[[str], object], *, listed: bool) -> tuple[str, str] | None:
    """(cause, mend) when a refused value or key would be a mapping or a list with ASCII signs, or is in full-width
    quotation marks; listed: it is an item of a list."""
    if not isinstance(text, str):
        return None
    for kind in KINDS:
        changed = text.translate({**kind.signs, **SPACE})
        if all(ord(sign) not in kind.signs for sign in text):
            continue
        whole = kind is KINDS[-1] and {ord(text[0]), ord(text[-1])} <= kind.signs.keys()
        apart = kind is KINDS[2] and listed
        if whole or apart or isinstance(reads(changed), dict | list):
            return f"{kind.name} in {text!r}", kind.mend
    return None
