"""How `posttrain chat` shows answers while they are made: as they flow, in columns, or not before they are whole."""

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
"""Columns are drawn again at most so often."""


class Hidden:
    """Shows nothing of one turn: the answers are printed as JSON when they are whole."""

    def begin(self, place: int) -> None:
        """The model in this place begins."""

    def put(self, text: str) -> None:
        """The next words of its answer."""

    def done(self, end: str = "") -> None:
        """Its answer is whole, or is `end`ed by a sign that it is not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """The turn is over."""


class Flow(Hidden):
    """The words as they come, one model after the other; always as text, never as markup."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def begin(self, place: int) -> None:
        """Several models are named."""
        if len(self.names) > 1:
            self._write(f"{plain(self.names[place])}: ")

    def put(self, text: str) -> None:
        """On the screen, or in the pipe, at once."""
        self._write(plain(text))

    def done(self, end: str = "") -> None:
        """A line end."""
        self._write(f"{end}\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class Columns(Hidden):
    """Several models side by side on a terminal: a table that grows. While it does, its last lines are shown; the whole
    stays on the screen afterwards.
    """

    def __init__(self, names: Sequence[str]) -> None:
        from rich.live import Live

        self.names, self.texts = names, [""] * len(names)
        self.place, self.shown = 0, 0.0
        self.console = console(stderr=False)
        self.live: Live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()
        if any(self.texts):
            self.console.print(self.table(self.texts), soft_wrap=False)

    def begin(self, place: int) -> None:
        """Its column is written to."""
        self.place = place

    def put(self, text: str) -> None:
        """The table is drawn anew, but not for every token."""
        self.texts[self.place] += plain(text)
        if time.monotonic() - self.shown >= SHOWN_S:
            self.shown = time.monotonic()
            self.live.update(self.table(self.tails()), refresh=True)

    def done(self, end: str = "") -> None:
        """The whole column."""
        self.texts[self.place] += end
        self.live.update(self.table(self.tails()), refresh=True)

    def tails(self) -> list[str]:
        """Of each text the last lines that fit on the screen."""
        from rich.text import Text

        width = max(self.console.width // max(len(self.names), 1) - 4, 8)
        room = max(self.console.height - 6, 1)
        wrapped = [Text(text).wrap(self.console, width, overflow="fold") for text in self.texts]
        return ["\n".join(line.plain for line in lines[-room:]) for lines in wrapped]

    def table(self, texts: Sequence[str]) -> Any:
        """Texts side by side under the models' names."""
        from rich.table import Table
        from rich.text import Text

        made = Table(expand=True, show_lines=True)
        for name in self.names:
            made.add_column(Text(plain(name)), ratio=1, overflow="fold")
        made.add_row(*(Text(text) for text in texts))
        return made


def display_of(names: Sequence[str], *, json: bool) -> Hidden:
    """What suits these models and where the answers go."""
    if json:
        return Hidden()
    return Columns(names) if len(names) > 1 and sys.stdout.isatty() else Flow(names)
