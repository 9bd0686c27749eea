"""Long work below a verb, and exams: a live line on a terminal, a line now and then elsewhere."""

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
"""Seconds between two lines off a terminal."""


class Live:
    """One line about what goes on: written anew each time on a terminal, printed now and then elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty() and not quiet()
        self.last = self.shown = time.monotonic()

    def show(self, line: str) -> None:
        """line: in the language spoken; empty where nothing is to be said."""
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
        """A line that stays."""
        self.clear()
        talk(line)

    def clear(self) -> None:
        """Nothing half-written on the screen."""
        if self.live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Works(Live):
    """Shows what goes on. head: what it is done for, such as an exam of a model."""

    head = ""

    def __call__(self, work: Doing) -> None:
        self._show("" if work.ends else str(work))

    def exam(self, event: ExamEvent) -> None:
        """An exam begins or goes on."""
        self.head = f"{event.exam} on {event.model}"
        columns = [f"{event.done:,}/{event.total:,}", f"{event.tokens_per_s:,.0f} tokens/s"]
        columns += [f"{clock(event.left_s)} left"] if event.left_s is not None else []
        self._show("  ".join(columns) if event.total else "")

    def say(self, line: str) -> None:
        """A line that stays; what went on before it is over."""
        self.head = ""
        super().say(line)

    def _show(self, words: str) -> None:
        """Nothing is shown for no words."""
        self.show(placed(translate(self.head), translate(words)) if self.head and words else translate(words))


@contextmanager
def shown_works() -> Iterator[Works]:
    """While this lasts, long work is shown."""
    from posttrain.models.meter import listening

    works = Works()
    with listening(works):
        try:
            yield works
        finally:
            works.clear()
