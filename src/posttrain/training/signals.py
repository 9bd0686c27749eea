"""Ctrl-C and SIGTERM during training: finish the step, save, stop. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

__all__ = ["Stoppable", "stop_on_signal"]


class Stoppable(Protocol):
    """Something that looks at a flag after each step."""

    stop_asked: bool
    resting: bool
    """Somebody else's work is done between two steps, everything is saved: a signal stops it at once."""


@contextmanager
def stop_on_signal(target: Stoppable) -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM set `target.stop_asked`; the former handlers come back afterwards.

    Outside the main thread Python delivers no signals, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if target.resting or (target.stop_asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        target.stop_asked = True

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
