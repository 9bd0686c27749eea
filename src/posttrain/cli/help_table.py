"""Tables of typer's help in which no text is cut.

By default, rich cuts text that does not fit and adds "…", and Chinese text has no spaces where a line could break.
typer also gives long name, short name, negative, type and help a column each, so that only a fifth of a terminal of 80
columns is left for the help. Here the names share one column, as wide as the longest of them, and the rest is folded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType


OPTION_CELLS = 5
"""A row with more cells than this is a row of options.

typer's columns of options are names, short names, negatives and their short names, type, help; there is one more in
front (an asterisk) if an option is required. Rows of commands have fewer cells.
"""
WIDE = 18
"""A list of choices that is longer than this many characters has one choice per line."""


class HelpTable(Table):
    """A table of typer's help, as `typer.rich_utils` makes it."""

    def add_column(self, *arguments: Any, **settings: Any) -> None:
        """Add a column that folds long text."""
        super().add_column(*arguments, **{"overflow": "fold", **settings})

    def add_row(self, *cells: RenderableType | None, **settings: Any) -> None:
        """Add a row; in a row of options, put the names into one cell."""
        if len(cells) <= OPTION_CELLS:
            super().add_row(*cells, **settings)
            return
        *front, long, short, negative, short_negative, kind, told = cells
        if not self.columns:
            for _ in front:
                self.add_column()
            self.add_column(no_wrap=True)
            self.add_column()
            self.add_column(ratio=1)
        names = Text("\n").join(
            Text(", ").join(part for part in pair if part)
            for pair in ((_text(long), _text(short)), (_text(negative), _text(short_negative)))
            if any(pair)
        )
        super().add_row(*front, names, _kind(_text(kind)), _one_text(told), **settings)


def _text(cell: RenderableType | None) -> Text:
    """Return a cell with names or a type as Text; typer gives text or nothing."""
    if isinstance(cell, Text):
        return cell
    assert cell is None or isinstance(cell, str)
    return Text(cell or "")


def _kind(text: Text) -> Text:
    """Return the type of an option's value; a long list of choices gets one line per choice."""
    if len(text) <= WIDE or "|" not in text.plain:
        return text
    parts = text.split("|")
    return Text("|\n").join(parts)


def _one_text(cell: RenderableType | None) -> RenderableType | None:
    """Return an option's help and default as one text; typer puts them into columns that would cut them."""
    if not isinstance(cell, Columns):
        return cell
    parts = [part for part in cell.renderables if isinstance(part, Text)]
    return Text(" ", overflow="fold").join(parts) if len(parts) == len(cell.renderables) else cell
