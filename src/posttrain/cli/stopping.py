"""Ctrl-C and SIGTERM, the same for every verb: what is done is kept, a line says what and how to go on, no traceback.

SIGTERM unwinds a verb as Ctrl-C does, a second one kills. While training makes steps it has both to itself
(`training/signals.py`). A verb that works long says at its beginning what is kept: `when_stopped(lambda: ...)`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from posttrain.errors import Interrupted, Problem

TERMINATED = 143
"""The exit code after SIGTERM, as a shell has it: 128 + 15."""

NOT_WRITTEN = (Problem("", "stopped: nothing was written", "run the same command again"),)


@dataclass
class _Now:
    """Of the verb that runs."""

    kept: Callable[[], tuple[Problem, ...]] = lambda: (Problem("", "interrupted"),)
    terminated: bool = False


_now = _Now()


@contextmanager
def unwinding() -> Iterator[None]:
    """While the block runs, SIGTERM raises KeyboardInterrupt; the former handler comes back afterwards."""
    _now.kept, _now.terminated = _Now().kept, False
    if threading.current_thread() is not threading.main_thread():  # there Python delivers no signals
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        _now.terminated = True
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def when_stopped(kept: Callable[[], tuple[Problem, ...]]) -> None:
    """From now on this is what is said of Ctrl-C and SIGTERM: what is kept then, and how to go on."""
    _now.kept = kept


def interrupted() -> Interrupted:
    """What a verb that was stopped has to say."""
    return Interrupted(*_now.kept())


def exit_code() -> int:
    """Of a verb that was stopped."""
    return TERMINATED if _now.terminated else Interrupted.exit_code
