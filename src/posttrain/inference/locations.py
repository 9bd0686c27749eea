"""Name the location of a text in errors.

Respondents, scoring and decoding know their texts by index. The caller knows where they come from (an item, a file's
row), and states it:

    with located(lambda number: items[number].location):
        respondent.answers([item.prompt for item in items])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from posttrain.errors import DataError, Problem

__all__ = ["among", "each", "listed", "located", "location_of", "refuse"]

A = TypeVar("A")
B = TypeVar("B")

LISTED = 20
"""Largest number of texts that an error names; further texts are only counted."""
MANY = 3
"""From this number of texts on, a problem that all texts of a call share is reported once. Such a problem is not a
fault of the texts.
"""

_locations: ContextVar[Callable[[int], str] | None] = ContextVar("locations", default=None)


@contextmanager
def located(location: Callable[[int], str]) -> Iterator[None]:
    """Within this block, errors about the texts of a call name their locations. Indices count from 0."""
    before = _locations.set(location)
    try:
        yield
    finally:
        _locations.reset(before)


@contextmanager
def among(which: Callable[[int], int], what: str = "request") -> Iterator[None]:
    """Within this block, the texts of a call are some of the texts of the enclosing call, or parts of them. `which`
    maps an index of the inner call to an index of the outer call.
    """
    known = _locations.get()
    with located(lambda number: known(which(number)) if known is not None else f"{what} {which(number) + 1}"):
        yield


def location_of(what: str, number: int, own: str = "") -> str:
    """Return the location of a text. If no location is known, return `own`, or else the kind of the text and its
    number, such as `prompt 3`.
    """
    known = _locations.get()
    return known(number) if known is not None else own or f"{what} {number + 1}"


def each(what: str, texts: Sequence[A], encode: Callable[[A], B]) -> list[B]:
    """Encode every text. Raise DataError (TemplateError) that names every text that cannot be encoded. Each problem has
    the location of its text.
    """
    made: list[B] = []
    problems: list[Problem] = []
    kind: type[DataError] = DataError
    for number, text in enumerate(texts):
        try:
            made.append(encode(text))
        except DataError as error:
            kind = type(error)
            problems += [p._replace(location=location_of(what, number, p.location)) for p in error.problems]
    if problems:
        raise kind(*listed(problems, len(texts)))
    return made


def refuse(found: Iterable[Problem | None], texts: int) -> None:
    """Raise DataError with the problems that were found, if there are any. None stands for a text without a problem."""
    if problems := [problem for problem in found if problem is not None]:
        raise DataError(*listed(problems, texts))


def listed(problems: Sequence[Problem], texts: int) -> list[Problem | str]:
    """Return the first problems, and how many more there are; only the first of a problem that all texts share."""
    first = problems[0]
    if len(problems) == texts >= MANY and all(p[1:] == first[1:] for p in problems):
        return [first._replace(cause=f"{first.cause} (so with all {texts} texts)")]
    more = len(problems) - LISTED
    return [*problems[:LISTED], *([f"... and {more} more"] if more > 0 else [])]
