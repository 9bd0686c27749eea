"""Handle Ctrl-C and SIGTERM during training: finish the step, save, stop. A second Ctrl-C stops at once.

Before the first step and after the last one there is no step to finish; `what_is_kept` describes what is on disk then.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from posttrain.errors import Interrupted, Problem

__all__ = ["Stoppable", "stop_on_signal", "what_is_kept"]


class Stoppable(Protocol):
    """An object that checks a flag after each step."""

    stop_asked: bool
    resting: bool
    """True while other work runs between two steps and everything is saved: a signal then stops it at once."""


@contextmanager
def stop_on_signal(target: Stoppable) -> Iterator[None]:
    """Make SIGINT and SIGTERM set `target.stop_asked` during the block; restore the former handlers afterwards. Python
    delivers signals to the main thread only; in other threads this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        Interrupted.terminated |= number == signal.SIGTERM
        if target.resting or (target.stop_asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        target.stop_asked = True

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def what_is_kept(folder: Path, *, resume: bool = True) -> Problem:
    """Describe what is on disk after a run in `folder` was stopped before its first step or after its last."""
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
