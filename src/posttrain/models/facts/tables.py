"""Readers for the TSV tables beside this file: one header line, UTF-8, one entity or one statement a line."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Name", "Row", "lookup", "name_of", "read"]

Row = dict[str, str]


class Name(NamedTuple):
    """One thing, as it is called in Taiwan and in English; codes, numbers and symbols are the same in both."""

    zh: str
    en: str


@cache
def read(table: str) -> tuple[Row, ...]:
    """The rows of `<table>.tsv` by column name, in file order; a ragged line is an error that names it."""
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
    """The name in the columns `zh` and `en`, or `<prefix>zh` and `<prefix>en`."""
    return Name(row[f"{prefix}zh"], row[f"{prefix}en"])


@cache
def lookup(table: str, key: str) -> dict[str, Name]:
    """The names of a table by one of its columns; two rows with one key are an error."""
    names: dict[str, Name] = {}
    for row in read(table):
        if row[key] in names:
            raise ValueError(f"{table}.tsv: {key} {row[key]!r} twice")
        names[row[key]] = name_of(row)
    return names
