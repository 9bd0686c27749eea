"""What a page is made of: sections of panels, and in a panel at most one chart and one table.

Every table of the project is a `Table` of this module, whatever it is about: the page's templates and `tables_out.py`
(terminal, CSV, LaTeX, plain pages) all draw it from here.
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
    """A number or a word of a table, and how it is drawn."""

    text: Words = numbers.MISSING
    below: tuple[Words, ...] = ()
    """Smaller lines under it, such as its interval."""
    kind: str = ""
    """CSS classes of its cell."""
    colour: str = ""
    """Hex colour behind it."""
    bar: int | None = None
    """A share in per cent, drawn as a bar under it."""
    stack: tuple[float, ...] = ()
    """Shares in per cent, drawn as one bar in its place."""
    sign: str = ""
    title: Message | None = None
    link: tuple[str, str, str] | None = None
    """(model, method, group) of the answers behind it."""
    value: float | None = None
    """The number with all its digits."""
    best: bool = False


class Head(NamedTuple):
    """The head of a column. group: columns of the same group stand under one heading; below: a smaller line under it;
    unseen: it is only read aloud."""

    name: Words
    below: Words = ""
    group: Words = ""
    kind: str = ""
    unseen: bool = False


class Line(NamedTuple):
    """A row. small: beside its first label; kind: its CSS class; under: the heading that it stands under."""

    labels: tuple[Words, ...]
    entries: tuple[Entry, ...]
    icon: Markup = Markup()
    small: str = ""
    kind: str = ""
    under: Words = ""


class Table(NamedTuple):
    """label: what it is, for those who do not see it; heads: those of the labels, then those of the entries."""

    label: Words
    heads: tuple[Head, ...]
    lines: tuple[Line, ...]
    kind: str = "plain"
    labels: int = 1
    """How many of the columns are labels."""

    @property
    def groups(self) -> list[tuple[Words, int]]:
        """Headings over the columns and how many columns each has; none where they all have the same."""
        found = [(name, len(list(heads))) for name, heads in groupby(self.heads[self.labels :], lambda h: h.group)]
        return found if len(found) > 1 else []

    def edge(self, column: int) -> bool:
        """Whether an entry's column is the first of its group."""
        heads = self.heads[self.labels :]
        return column == 0 or heads[column].group != heads[column - 1].group


class Panel(NamedTuple):
    """A part of a section: title, notes, legend, chart, table, list and text, small print, in this order."""

    title: Words = ""
    icon: Markup = Markup()
    small: Words = ""
    """Beside the title."""
    notes: tuple[Words, ...] = ()
    keys: tuple[tuple[str, Words], ...] = ()
    """A legend: CSS class of each sign, and what it stands for."""
    chart: Chart | None = None
    table: Table | None = None
    items: tuple[tuple[Words, ...], ...] = ()
    """A list; every item is a row of sentences."""
    text: str = ""
    """As it is in a file."""
    below: tuple[Words, ...] = ()
    """Sentences of small print."""
    folded: bool = False
    """Whether only its title is shown until a reader opens it."""
    kind: str = ""
    """Its CSS class."""


class Section(NamedTuple):
    """A section of the page. name: its id; nav: key of its name in the list of sections; part: a template of its own
    that is drawn after its panels."""

    name: str
    title: Words
    panels: tuple[Panel, ...] = ()
    nav: str = ""
    part: str = ""


def heads_of(first: Words, rest: Iterable[Words]) -> tuple[Head, ...]:
    """Return the heads of a table of numbers: of its labels, and of its columns."""
    return (Head(first), *(Head(name, kind="n") for name in rest))


def numeric(value: float | None, write: Callable[[float], Words], *below: Words, kind: str = "n") -> Entry:
    """Return the entry of a number, and a dash where there is none."""
    return Entry(kind=kind) if value is None else Entry(write(value), below, kind, value=value)


def fixed_column(values: Sequence[float | None]) -> list[Entry]:
    """Return the entries of numbers that all have the same number of decimals."""
    write = partial(numbers.fixed, places=numbers.digits(value for value in values if value is not None))
    return [numeric(value, write) for value in values]


def number_table(
    label: Words,
    heads: Sequence[Head],
    columns: Sequence[Head],
    rows: Sequence[tuple[tuple[Words, ...], Sequence[float | None], str]],
    better: Sequence[bool | None],
) -> Table:
    """Return a table of numbers in which every column has one precision and its best row is marked.

    rows: (labels, values, kind); better: per column whether higher (True) or lower is better, None where neither is.
    Ties as printed are all best. Rows of the kind `reference` do not compete; a row alone is not the best.
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
