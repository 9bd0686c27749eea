"""How `posttrain chat` shows answers while they are generated: as running text, in columns, or only when complete."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from posttrain.cli.options import console
from posttrain.cli.plain import plain

if TYPE_CHECKING:
    from rich.live import Live


SHOWN_S = 0.1
"""Least seconds between two drawings of the columns."""


class Hidden:
    """Shows nothing of a turn: the complete answers are printed as JSON later. Base class of the displays of a turn."""

    def begin(self, number: int) -> None:
        """Begin the answer of a model. number: the model's index."""

    def put(self, text: str) -> None:
        """Show the next piece of its answer."""

    def done(self, end: str = "") -> None:
        """Finish its answer. end: a sign for an incomplete answer, or empty."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the turn."""


class Flow(Hidden):
    """Shows the answers as they come, one model after the other; always as text, never as markup."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def begin(self, number: int) -> None:
        """Write the model's name if there are several models."""
        if len(self.names) > 1:
            self._write(f"{plain(self.names[number])}: ")

    def put(self, text: str) -> None:
        """Write the text to the screen or the pipe immediately."""
        self._write(plain(text))

    def done(self, end: str = "") -> None:
        """End the line."""
        self._write(f"{end}\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class Columns(Hidden):
    """Shows several models side by side on a terminal, in a table that grows. While it grows, only its last lines
    are shown; afterwards the whole table stays on the screen.
    """

    def __init__(self, names: Sequence[str]) -> None:
        from rich.live import Live

        self.names, self.texts = names, [""] * len(names)
        self.number, self.shown = 0, 0.0
        self.console = console(stderr=False)
        self.live: Live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()
        if any(self.texts):
            self.console.print(self.table(self.texts), soft_wrap=False)

    def begin(self, number: int) -> None:
        """Write to the model's column from now on."""
        self.number = number

    def put(self, text: str) -> None:
        """Add text to the column, and draw the table again if the last drawing is `SHOWN_S` seconds ago."""
        self.texts[self.number] += plain(text)
        if time.monotonic() - self.shown >= SHOWN_S:
            self.shown = time.monotonic()
            self.live.update(self.table(self.tails()), refresh=True)

    def done(self, end: str = "") -> None:
        """Finish the column and draw the table again."""
        self.texts[self.number] += end
        self.live.update(self.table(self.tails()), refresh=True)

    def tails(self) -> list[str]:
        """Return the last lines of each text, as many as fit on the screen."""
        from rich.text import Text

        width = max(self.console.width // max(len(self.names), 1) - 4, 8)
        room = max(self.console.height - 6, 1)
        wrapped = [Text(text).wrap(self.console, width, overflow="fold") for text in self.texts]
        return ["\n".join(line.plain for line in lines[-room:]) for lines in wrapped]

    def table(self, texts: Sequence[str]) -> Any:
        """Return a table of the texts side by side, under the models' names."""
        from rich.table import Table
        from rich.text import Text

        made = Table(expand=True, show_lines=True)
        for name in self.names:
            made.add_column(Text(plain(name)), ratio=1, overflow="fold")
        made.add_row(*(Text(text) for text in texts))
        return made


def display_of(names: Sequence[str], *, json: bool) -> Hidden:
    """Return the display for these models: columns need several models and a terminal. json: show nothing."""
    if json:
        return Hidden()
    return Columns(names) if len(names) > 1 and sys.stdout.isatty() else Flow(names)
