"""Show the progress of long work and exams: a live line on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from posttrain.cli.options import console, quiet, talk
from posttrain.cli.plain import fitted
from posttrain.language import placed, translate
from posttrain.models.meter import clock

if TYPE_CHECKING:
    from posttrain.models.meter import Doing
    from posttrain.studies.events import ExamEvent


LINE_EVERY_S = 10.0
"""Least seconds between two progress lines if stderr is not a terminal."""


class Live:
    """A line about the present work. On a terminal each line replaces the last; elsewhere some lines are printed."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty() and not quiet()
        self.last = self.shown = time.monotonic()

    def show(self, line: str) -> None:
        """Show a line, which is already translated; an empty line only clears the last one."""
        now = time.monotonic()
        if self.live:
            self.shown = now
            self.clear()
            sys.stderr.write(fitted(line, console().width - 1))
            sys.stderr.flush()
        elif now - self.last >= LINE_EVERY_S and line:
            self.last = now
            if not quiet():  # as it is: it may hold names that are words of the catalogue, too
                print(line, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.clear()
        talk(line)

    def clear(self) -> None:
        """Clear the live line on the terminal."""
        if self.live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Works(Live):
    """Shows the present work. head: what the work belongs to, such as an exam of a model."""

    head = ""

    def __call__(self, work: Doing) -> None:
        self._show("" if work.ends else str(work))

    def exam(self, event: ExamEvent) -> None:
        """Show the beginning or the progress of an exam."""
        self.head = f"{event.exam} on {event.model}"
        columns = [f"{event.done:,}/{event.total:,}", f"{event.tokens_per_s:,.0f} tokens/s"]
        columns += [f"{clock(event.left_s)} left"] if event.left_s is not None else []
        self._show("  ".join(columns) if event.total else "")

    def say(self, line: str) -> None:
        """Print a line that stays, and drop the head: the work before it is finished."""
        self.head = ""
        super().say(line)

    def _show(self, words: str) -> None:
        """Show the words after the head; clear the line if there are no words."""
        self.show(placed(translate(self.head), translate(words)) if self.head and words else translate(words))


@contextmanager
def shown_works() -> Iterator[Works]:
    """Show the progress of long work within the block."""
    from posttrain.models.meter import listening

    works = Works()
    with listening(works):
        try:
            yield works
        finally:
            works.clear()
