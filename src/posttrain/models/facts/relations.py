"""From rows of the tables to facts, relation by relation."""

from collections.abc import Iterator

from posttrain.models.facts.records import Fact, Name
from posttrain.models.facts.tables import Row, lookup, name_of, read

__all__ = ["UNSETTLED_BORDERS", "all_facts"]

# The neighbours of these are disputed (Kosovo: RS AL MK ME; Palestine: IL JO EG; Western Sahara: MA DZ MR; Akrotiri and
# Dhekelia: CY), so they are no subjects of `neighbours`.
UNSETTLED_BORDERS = frozenset({"RS", "AL", "MK", "ME", "IL", "JO", "EG", "MA", "DZ", "MR", "CY"})


def all_facts() -> Iterator[Fact]:
    """Every fact, table by table."""
    yield from _countries()
    yield from _located("cities", "city_country")
    yield from _located("mountains", "mountain_country")
    for row in read("mountains"):
        if row["height_m"]:
            yield Fact("mountain_height", name_of(row), _same(row["height_m"]))
    yield from _located("rivers", "river_country")
    for row in read("rivers"):
        yield from _one("river_continent", row, row["continents"].split(), lookup("continents", "code"))
    for row in read("taiwan"):
        yield Fact("taiwan_place", name_of(row), name_of(row, "place_"))
    for row in read("superlatives"):
        yield Fact("superlative", name_of(row), name_of(row, "object_"), kind=row["kind"])
    for row in read("elements"):
        yield Fact("element_symbol", name_of(row), _same(row["symbol"]))
    for row in read("elements"):
        yield Fact("element_number", name_of(row), _same(row["number"]))
    yield from _made_by_people()


def _countries() -> Iterator[Fact]:
    rows = read("countries")
    for row in rows:
        if row["capital_zh"]:
            yield Fact("capital", name_of(row), name_of(row, "capital_"))
    for relation, column, table in (
        ("continent", "continents", "continents"),
        ("currency", "currencies", "currencies"),
        ("language", "languages", "languages"),
    ):
        for row in rows:
            yield from _one(relation, row, row[column].split(), lookup(table, "code"))
    for row in rows:
        yield Fact("iso_code", name_of(row), _same(row["code"]))
    for row in rows:
        if row["code"] not in UNSETTLED_BORDERS:
            yield from _one("neighbours", row, row["borders"].split(), lookup("countries", "code"))


def _located(table: str, relation: str) -> Iterator[Fact]:
    for row in read(table):
        yield from _one(relation, row, row["countries"].split(), lookup("countries", "code"))


def _made_by_people() -> Iterator[Fact]:
    people = lookup("persons", "en")
    for row in read("inventions"):
        yield from _one("invention_inventor", row, row["person"].split("; "), people, row["kind"])
    for row in read("books"):
        yield from _one("work_author", row, [row["author"]], people, "book")
    for row in read("arts"):
        relation = "work_composer" if row["kind"] == "music" else "work_artist"
        yield from _one(relation, row, [row["author"]], people, row["kind"])
    for row in read("persons"):
        yield from _one("person_country", row, row["countries"].split(), lookup("countries", "code"))


def _one(relation: str, row: Row, keys: list[str], names: dict[str, Name], kind: str = "") -> Iterator[Fact]:
    """One fact whose object is the first key and whose `also` are the rest; none where the table leaves it out."""
    if keys:
        first, *rest = (names[key] for key in keys)
        yield Fact(relation, name_of(row), first, tuple(rest), kind)


def _same(text: str) -> Name:
    return Name(text, text)
