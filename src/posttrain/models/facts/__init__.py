"""True facts in Traditional Chinese (Taiwan) and English: the knowledge of the models in the package.

The tables (`*.tsv` in this folder) are the source. The names, currencies, languages and codes of countries were taken
once from Unicode CLDR (zh_Hant_TW and en) and are stored, so that a fact does not change with the version of a library.
A table's cell is empty on purpose if the fact is disputed, has several answers, or is not generally taught.

    >>> next(fact for fact in facts() if fact.subject.en == "France").object
    Name(zh='巴黎', en='Paris')
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Fact", "Name", "by_relation", "facts"]

# The neighbours of these are disputed (Kosovo: RS AL MK ME; Palestine: IL JO EG; Western Sahara: MA DZ MR; Akrotiri and
# Dhekelia: CY), so they are not subjects of `neighbours`.
UNSETTLED_BORDERS = frozenset({"RS", "AL", "MK", "ME", "IL", "JO", "EG", "MA", "DZ", "MR", "CY"})

Row = dict[str, str]


class Name(NamedTuple):
    """The name of one thing in Taiwan and in English. Codes, numbers and symbols are the same in both."""

    zh: str
    en: str


@dataclass(frozen=True)
class Fact:
    """One fact. `object` is the answer that is taught; every name in `also` is equally correct."""

    relation: str
    subject: Name
    object: Name
    also: tuple[Name, ...] = ()
    kind: str = ""
    """What the wording depends on: the noun of a superlative ("mountain"), the kind of an invention ("discovery")."""


@cache
def facts() -> tuple[Fact, ...]:
    """Return every fact, in a fixed order: relation by relation, and in the order of the tables."""
    return tuple(_all_facts())


@cache
def by_relation() -> dict[str, tuple[Fact, ...]]:
    """Return the facts of each relation."""
    grouped: dict[str, list[Fact]] = {}
    for fact in facts():
        grouped.setdefault(fact.relation, []).append(fact)
    return {relation: tuple(group) for relation, group in grouped.items()}


def _all_facts() -> Iterator[Fact]:
    countries, settled = read("countries"), [row for row in read("countries") if row["code"] not in UNSETTLED_BORDERS]
    yield from _named("capital", "countries", "capital_")
    yield from _linked("continent", countries, "continents", lookup("continents", "code"))
    yield from _linked("currency", countries, "currencies", lookup("currencies", "code"))
    yield from _linked("language", countries, "languages", lookup("languages", "code"))
    yield from _stated("iso_code", "countries", "code")
    country = lookup("countries", "code")
    yield from _linked("neighbours", settled, "borders", country)
    yield from _linked("city_country", read("cities"), "countries", country)
    yield from _linked("mountain_country", read("mountains"), "countries", country)
    yield from _stated("mountain_height", "mountains", "height_m")
    yield from _linked("river_country", read("rivers"), "countries", country)
    yield from _linked("river_continent", read("rivers"), "continents", lookup("continents", "code"))
    yield from _named("taiwan_place", "taiwan", "place_")
    yield from _named("superlative", "superlatives", "object_")
    yield from _stated("element_symbol", "elements", "symbol")
    yield from _stated("element_number", "elements", "number")
    person = lookup("persons", "en")
    yield from _linked("invention_inventor", read("inventions"), "person", person, "; ")
    yield from _linked("work_author", [row | {"kind": "book"} for row in read("books")], "author", person, "; ")
    for row in read("arts"):
        relation = "work_composer" if row["kind"] == "music" else "work_artist"
        yield from _linked(relation, [row], "author", person, "; ")
    yield from _linked("person_country", read("persons"), "countries", country)


def _named(relation: str, table: str, prefix: str) -> Iterator[Fact]:
    """Yield facts with the object's names in two columns with this prefix. A row with empty columns gives no fact."""
    rows = [row for row in read(table) if row[f"{prefix}zh"]]
    return (Fact(relation, name_of(row), name_of(row, prefix), kind=row.get("kind", "")) for row in rows)


def _stated(relation: str, table: str, column: str) -> Iterator[Fact]:
    """Yield facts with a code or number as object, the same in both languages. Rows with an empty column have none."""
    rows = [row for row in read(table) if row[column]]
    return (Fact(relation, name_of(row), Name(row[column], row[column])) for row in rows)


def _linked(
    relation: str, rows: Iterable[Row], column: str, names: dict[str, Name], separator: str | None = None
) -> Iterator[Fact]:
    """Yield facts with the first of a column's keys as `object` and the rest as `also`. Rows without keys give none."""
    for row in rows:
        if keys := row[column].split(separator):
            first, *rest = (names[key] for key in keys)
            yield Fact(relation, name_of(row), first, tuple(rest), row.get("kind", ""))


@cache
def read(table: str) -> tuple[Row, ...]:
    """Return the rows of `<table>.tsv` by column name, in file order. Raise ValueError that names a ragged line."""
    path = Path(__file__).with_name(f"{table}.tsv")
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    rows = []
    for number, line in enumerate(lines, start=2):
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise ValueError(f"{path.name}:{number}: {len(cells)} cells, but the header has {len(columns)}")
        rows.append(dict(zip(columns, cells, strict=True)))
    return tuple(rows)


def name_of(row: Row, prefix: str = "") -> Name:
    """Return the name in the columns `zh` and `en`, or `<prefix>zh` and `<prefix>en`."""
    return Name(row[f"{prefix}zh"], row[f"{prefix}en"])


@cache
def lookup(table: str, key: str) -> dict[str, Name]:
    """Return the names of a table by one of its columns. Raise ValueError if two rows have the same key."""
    names: dict[str, Name] = {}
    for row in read(table):
        if row[key] in names:
            raise ValueError(f"{table}.tsv: {key} {row[key]!r} twice")
        names[row[key]] = name_of(row)
    return names
