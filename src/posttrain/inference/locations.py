"""Where a text comes from, for errors. Respondents, scoring and decoding know their texts by number; the caller knows
where they come from (an item, a file's row), and says so:

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
"""So many texts are named; the others are counted."""
MANY = 3
"""A fault that so many texts have, and all of a call, is no fault of the texts: it is said once."""

_locations: ContextVar[Callable[[int], str] | None] = ContextVar("locations", default=None)


@contextmanager
def located(location: Callable[[int], str]) -> Iterator[None]:
    """While this lasts, errors about the texts of a call name their locations. Numbers count from 0."""
    before = _locations.set(location)
    try:
        yield
    finally:
        _locations.reset(before)


@contextmanager
def among(which: Callable[[int], int], what: str = "request") -> Iterator[None]:
    """While this lasts, the texts of a call are some of those of the call around it, or parts of them."""
    known = _locations.get()
    with located(lambda number: known(which(number)) if known is not None else f"{what} {which(number) + 1}"):
        yield


def location_of(what: str, number: int, own: str = "") -> str:
    """Where a text comes from; where nobody knows, its own words, or what it is and its number, such as `prompt 3`."""
    known = _locations.get()
    return known(number) if known is not None else own or f"{what} {number + 1}"


def each(what: str, texts: Sequence[A], encode: Callable[[A], B]) -> list[B]:
    """Encode every text. DataError (TemplateError) with all that cannot be encoded, each with its location."""
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
    """Raise a DataError with the problems that were found, if there are any; None: nothing is wrong with a text."""
    if problems := [problem for problem in found if problem is not None]:
        raise DataError(*listed(problems, texts))


def listed(problems: Sequence[Problem], texts: int) -> list[Problem | str]:
    """The first problems, and how many more there are; of a problem that all texts share, only the first."""
    first = problems[0]
    if len(problems) == texts >= MANY and all(p[1:] == first[1:] for p in problems):
        return [first._replace(cause=f"{first.cause} (so with all {texts} texts)")]
    more = len(problems) - LISTED
    return [*problems[:LISTED], *([f"... and {more} more"] if more > 0 else [])]
