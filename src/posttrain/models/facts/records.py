"""The records of the knowledge base: a name in two languages, and a fact that relates two names."""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Fact", "Name"]


class Name(NamedTuple):
    """One thing, as it is called in Taiwan and in English; codes, numbers and symbols are the same in both."""

    zh: str
    en: str


@dataclass(frozen=True)
class Fact:
    """`object` is the answer that is taught; every name in `also` is equally correct."""

    relation: str
    subject: Name
    object: Name
    also: tuple[Name, ...] = ()
    kind: str = ""
    """What the wording depends on: the noun of a superlative ("mountain"), the kind of an invention ("discovery")."""
