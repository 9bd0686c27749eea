"""Long work below a verb that has no display of its own: a live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from posttrain.cli.options import console, quiet, talk
from posttrain.cli.plain import fitted
from posttrain.language import translate

if TYPE_CHECKING:
    from posttrain.models.meter import Doing

__all__ = ["shown_works"]

LINE_EVERY_S = 10.0
"""Seconds between two lines off a terminal."""


class _Works:
    def __init__(self) -> None:
        self.live = sys.stderr.isatty() and not quiet()
        self.last = time.monotonic()

    def __call__(self, work: Doing) -> None:
        now = time.monotonic()
        if self.live:
            self.clear()
            sys.stderr.write("" if work.ends else fitted(translate(str(work)), console().width - 1))
            sys.stderr.flush()
        elif now - self.last >= LINE_EVERY_S and not work.ends:
            self.last = now
            talk(str(work))

    def clear(self) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextmanager
def shown_works() -> Iterator[None]:
    """While this lasts, long work is shown."""
    from posttrain.models.meter import listening

    works = _Works()
    with listening(works):
        try:
            yield
        finally:
            works.clear()
