"""Ctrl-C and SIGTERM during training: finish the step, save, stop. A second Ctrl-C stops at once.

Before the first step and after the last one there is nothing to finish: both stop at once, and it is said what is kept.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from posttrain.errors import Interrupted, Problem, Terminated

__all__ = ["Stoppable", "stop_on_signal", "tells_what_is_kept"]


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


class _Term(KeyboardInterrupt):
    """SIGTERM, as an exception that no library takes for an error of its own."""


@contextmanager
def tells_what_is_kept(folder: Path, *, resume: bool = True) -> Iterator[None]:
    """While the block runs, SIGTERM unwinds it as Ctrl-C does (a second one kills), and both say what of the run in
    `folder` is kept: Terminated or Interrupted. `stop_on_signal` within has signals to itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise _Term

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Term as stop:
        raise Terminated(_kept(folder, resume)) from stop
    except KeyboardInterrupt as stop:
        raise Interrupted(_kept(folder, resume)) from stop
    except Interrupted as stop:  # what was under way has said what is kept of it
        raise (Terminated(*stop.problems) if asked else stop) from stop.__cause__
    finally:
        signal.signal(signal.SIGTERM, former)


def _kept(folder: Path, resume: bool) -> Problem:
    """What a run that was stopped between two steps, or outside of them, has left."""
    from posttrain.training.checkpoints import checkpoints_in

    again = "run the same command to go on" if resume else "run the same command without --restart to go on"
    saved = checkpoints_in(folder / "checkpoints")
    if (folder / "result.json").is_file():
        return Problem("", f"stopped: the finished run in {folder} is as it was")
    if saved:
        return Problem("", "stopped", f"step {max(saved)} is saved in {saved[max(saved)]}; {again}")
    metrics = folder / "metrics.jsonl"
    begun = metrics.is_file() and metrics.stat().st_size > 0
    return Problem("", f"stopped before {'a step was saved' if begun else 'the first step'}: nothing is kept")
