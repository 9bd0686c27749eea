"""Handle Ctrl-C and SIGTERM in every verb: finished work is kept, and a line says what is kept and how to continue.

No traceback is printed. SIGTERM stops a verb as Ctrl-C does; a second SIGTERM kills it. While training makes steps, it
handles both signals itself (`training/signals.py`). A verb that works long says at its beginning what is kept:
`when_stopped(lambda: ...)`.
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
"""The exit code after SIGTERM, as in a shell: 128 + 15."""

NOT_WRITTEN = (Problem("", "stopped: nothing was written", "run the same command again"),)
"""The message of a stopped verb that writes its result only at its end."""


@dataclass
class _Now:
    """The state of the running verb. kept: returns the message if it is stopped."""

    kept: Callable[[], tuple[Problem, ...]] = lambda: (Problem("", "interrupted"),)


_now = _Now()


@contextmanager
def unwinding() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt within the block. The former handler is restored afterwards."""
    _now.kept, Interrupted.terminated = _Now().kept, False
    if threading.current_thread() is not threading.main_thread():  # Python delivers no signals to other threads
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        Interrupted.terminated = True
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def when_stopped(kept: Callable[[], tuple[Problem, ...]]) -> None:
    """Set the function that returns the message after Ctrl-C and SIGTERM: what is kept, and how to continue."""
    _now.kept = kept


def interrupted() -> Interrupted:
    """Return the error of a verb that was stopped."""
    return Interrupted(*_now.kept())


def exit_code() -> int:
    """Return the exit code of a verb that was stopped: 143 after SIGTERM, otherwise that of Interrupted."""
    return TERMINATED if Interrupted.terminated else Interrupted.exit_code
