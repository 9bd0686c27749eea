"""The tables of typer's help, nothing cut: rich ends what does not fit with "…", and Chinese has no spaces to wrap at.

typer gives long name, short name, negative, type and help a column each, which leaves the help a fifth of a terminal of
80 columns. Here the names share a column that is as wide as the longest of them, and the rest is folded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType


OPTION_CELLS = 5
"""typer's columns of options are names, short names, negatives and their short names, type, help; one more in front
(an asterisk) where one is required. Commands have fewer."""
WIDE = 18
"""A list of choices that is longer stands one below the other."""


class HelpTable(Table):
    """A table of typer's help, as `typer.rich_utils` makes it."""

    def add_column(self, *arguments: Any, **settings: Any) -> None:
        """A column that folds what is too long."""
        super().add_column(*arguments, **{"overflow": "fold", **settings})

    def add_row(self, *cells: RenderableType | None, **settings: Any) -> None:
        """A row; of options the names in one cell."""
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
    """A cell of names or of a type, which typer makes of text."""
    if isinstance(cell, Text):
        return cell
    assert cell is None or isinstance(cell, str)
    return Text(cell or "")


def _kind(text: Text) -> Text:
    """What is typed after an option; a long list of choices has a line for each."""
    if len(text) <= WIDE or "|" not in text.plain:
        return text
    parts = text.split("|")
    return Text("|\n").join(parts)


def _one_text(cell: RenderableType | None) -> RenderableType | None:
    """What an option does, and its default behind it, which typer puts into columns that cut."""
    if not isinstance(cell, Columns):
        return cell
    parts = [part for part in cell.renderables if isinstance(part, Text)]
    return Text(" ", overflow="fold").join(parts) if len(parts) == len(cell.renderables) else cell
