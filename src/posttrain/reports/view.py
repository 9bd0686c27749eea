"""The parts of a page: sections of panels. A panel has at most one chart and one table.

Every table of the report is a `Table` of this module. The page's templates and `tables_out.py` (terminal, CSV, LaTeX,
plain pages) draw it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from posttrain.reports import numbers
from posttrain.reports.charts import Chart
from posttrain.reports.texts import Message, Words

__all__ = ["Entry", "Head", "Line", "Panel", "Section", "Table", "heads_of", "number_table", "numeric"]


class Entry(NamedTuple):
    """One number or word in a table, and how it is drawn."""

    text: Words = numbers.MISSING
    below: tuple[Words, ...] = ()
    """Smaller lines below it, such as its interval."""
    kind: str = ""
    """CSS classes of its cell."""
    colour: str = ""
    """Hex colour behind it."""
    bar: int | None = None
    """A share in per cent, drawn as a bar below it."""
    stack: tuple[float, ...] = ()
    """Shares in per cent, drawn as one bar instead of the text."""
    sign: str = ""
    """A sign after it, for a loss or a score that no test could call a loss."""
    title: Message | None = None
    """Its tooltip."""
    link: tuple[str, str, str] | None = None
    """(model, method, score) of the answers that a click on it shows."""
    value: float | None = None
    """The number with all its digits."""
    best: bool = False


class Head(NamedTuple):
    """The head of a column. below: a smaller line below it; group: neighbouring columns with the same group share a
    heading; kind: its CSS class; unseen: it is invisible, and only screen readers read it.
    """

    name: Words
    below: Words = ""
    group: Words = ""
    kind: str = ""
    unseen: bool = False


class Line(NamedTuple):
    """A row of a table. small: a small text next to its first label; kind: its CSS class; under: its heading."""

    labels: tuple[Words, ...]
    entries: tuple[Entry, ...]
    icon: Markup = Markup()
    small: str = ""
    kind: str = ""
    under: Words = ""


class Table(NamedTuple):
    """A table. label: its description for screen readers; heads: the heads of the labels, then those of the entries."""

    label: Words
    heads: tuple[Head, ...]
    lines: tuple[Line, ...]
    kind: str = "plain"
    labels: int = 1
    """How many of the columns are labels."""

    @property
    def groups(self) -> list[tuple[Words, int]]:
        """Return (heading, number of its columns) for the columns of entries; nothing if all have the same heading."""
        found = [(name, len(list(heads))) for name, heads in groupby(self.heads[self.labels :], lambda h: h.group)]
        return found if len(found) > 1 else []

    def edge(self, column: int) -> bool:
        """Whether a column of entries, by its index from 0, is the first of its group."""
        heads = self.heads[self.labels :]
        return column == 0 or heads[column].group != heads[column - 1].group


class Panel(NamedTuple):
    """A part of a section; it shows title, notes, legend, chart, table, list, text and small print in this order."""

    title: Words = ""
    icon: Markup = Markup()
    small: Words = ""
    """A small text next to the title."""
    notes: tuple[Words, ...] = ()
    keys: tuple[tuple[str, Words], ...] = ()
    """A legend: the CSS class of each sign, and its meaning."""
    chart: Chart | None = None
    table: Table | None = None
    items: tuple[tuple[Words, ...], ...] = ()
    """A list; every item consists of sentences."""
    text: str = ""
    """A text that is shown unchanged, such as that of a file."""
    below: tuple[Words, ...] = ()
    """Sentences of small print."""
    folded: bool = False
    """Whether only its title is shown until a reader opens it."""
    kind: str = ""
    """Its CSS class."""


class Section(NamedTuple):
    """A section of the page. name: its HTML id; nav: the key of its name in the list of sections; part: the name of its
    own part of the template, which is drawn after its panels.
    """

    name: str
    title: Words
    panels: tuple[Panel, ...] = ()
    nav: str = ""
    part: str = ""


def heads_of(first: Words, rest: Iterable[Words]) -> tuple[Head, ...]:
    """Return the heads of a table of numbers: `first` for the labels, `rest` for the columns of numbers."""
    return (Head(first), *(Head(name, kind="n") for name in rest))


def numeric(value: float | None, write: Callable[[float], Words], *below: Words, kind: str = "n") -> Entry:
    """Return the entry of a number, or an entry with a dash for None. below: smaller lines below the number."""
    return Entry(kind=kind) if value is None else Entry(write(value), below, kind, value=value)


def fixed_column(values: Sequence[float | None]) -> list[Entry]:
    """Return the entries of a column of numbers, all with the same number of decimals."""
    write = partial(numbers.fixed, places=numbers.digits(value for value in values if value is not None))
    return [numeric(value, write) for value in values]


def number_table(
    label: Words,
    heads: Sequence[Head],
    columns: Sequence[Head],
    rows: Sequence[tuple[tuple[Words, ...], Sequence[float | None], str]],
    better: Sequence[bool | None],
) -> Table:
    """Return a table of numbers in which each column has one number of decimals and its best value is marked.

    rows: (labels, values, kind); better: for each column, True if higher is better, False if lower is better, else
    None. Values that are equal as printed are all best. Rows of the kind `reference` do not compete. A single competing
    value is not marked.
    """
    found = [fixed_column(values) for values in zip(*(values for _, values, _ in rows), strict=True)]
    competes = [kind != "reference" for *_, kind in rows]
    for column, up in zip(found, better, strict=False):  # without rows there are no columns
        rivals = [entry for entry, one in zip(column, competes, strict=True) if one and entry.value is not None]
        if up is not None and len(rivals) > 1:
            best = (max if up else min)(rivals, key=lambda entry: entry.value or 0.0).text
            for i, one in enumerate(competes):
                column[i] = column[i]._replace(best=one and column[i].text == best)
    lines = tuple(Line(row[0], tuple(column[i] for column in found), kind=row[2]) for i, row in enumerate(rows))
    return Table(label, (*heads, *(head._replace(kind="n") for head in columns)), lines, "plain", len(heads))
