"""What a text is called in an error: the location that the caller knows (an exam's item, a file's row), or its number.

Respondents, scoring and decoding know their texts by number. Who asks knows where they come from, and says so:

    with placed(lambda number: items[number].location):
        respondent.answers([item.prompt for item in items])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from posttrain.errors import DataError, Problem

__all__ = ["among", "each", "listed", "place_of", "placed"]

A = TypeVar("A")
B = TypeVar("B")

LISTED = 20
"""Texts that are named; the others are counted."""
MANY = 3
"""So many texts, all of them with one fault, are no fault of the texts: it is said once."""

_places: ContextVar[Callable[[int], str] | None] = ContextVar("places", default=None)


@contextmanager
def placed(location: Callable[[int], str]) -> Iterator[None]:
    """While this lasts, errors about the texts of a call name their places; number counts from 0."""
    before = _places.set(location)
    try:
        yield
    finally:
        _places.reset(before)


@contextmanager
def among(which: Callable[[int], int], what: str = "request") -> Iterator[None]:
    """While this lasts, the texts of a call are some of those of the call around it, or parts of them."""
    known = _places.get()
    with placed(lambda number: known(which(number)) if known is not None else f"{what} {which(number) + 1}"):
        yield


def place_of(what: str, number: int, own: str = "") -> str:
    """Where a text comes from; where nobody knows, its own words, or what it is and its number, such as `prompt 3`."""
    known = _places.get()
    return known(number) if known is not None else own or f"{what} {number + 1}"


def each(what: str, texts: Sequence[A], encode: Callable[[A], B]) -> list[B]:
    """Every text encoded. DataError (TemplateError) with all that cannot be, each with its location."""
    made: list[B] = []
    problems: list[Problem] = []
    kind: type[DataError] = DataError
    for number, text in enumerate(texts):
        try:
            made.append(encode(text))
        except DataError as error:
            kind = type(error)
            problems += [p._replace(location=place_of(what, number, p.location)) for p in error.problems]
    if problems:
        raise kind(*listed(problems, len(texts)))
    return made


def listed(problems: Sequence[Problem], texts: int) -> list[Problem | str]:
    """The first problems, and how many more there are; one of all texts alike by itself, said of the first."""
    first = problems[0]
    if len(problems) == texts >= MANY and all(p[1:] == first[1:] for p in problems):
        return [first._replace(cause=f"{first.cause} (so with all {texts} texts)")]
    more = len(problems) - LISTED
    return [*problems[:LISTED], *([f"... and {more} more"] if more > 0 else [])]
