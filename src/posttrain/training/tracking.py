"""Join the trackers of one training into one callback of the Trainer; see `trackers.py`."""

from __future__ import annotations

import copy
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partialmethod
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback

from posttrain.errors import ConfigError, Problem
from posttrain.training.trackers import LOGS, TRACKERS, Tracker, callback_of, chosen_trackers

__all__ = ["Tracked", "environment_of", "open_trackers"]


@contextmanager
def environment_of(values: dict[str, str]) -> Iterator[None]:
    """Set these environment variables during the block, except those that the user has set."""
    own = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for key in own:
            os.environ.pop(key, None)


class Inner(NamedTuple):
    """A callback of transformers with its tracker. values: the environment variables for its calls."""

    callback: TrainerCallback
    values: dict[str, str]
    tracker: Tracker


class Tracked(TrainerCallback):
    """A callback that passes the beginning, the numbers and the end of a training to several callbacks. It does not
    pass checkpoints, so that no tracker uploads weights.
    """

    def __init__(self, logs: Path, run: str) -> None:
        self.logs, self.run = logs, run
        self.inner: list[Inner] = []
        self.began = False

    def _tell(self, event: str, args: Any, state: Any, control: Any, **rest: Any) -> None:
        own = copy.copy(args)
        own.output_dir, own.run_name = str(self.logs), self.run
        for one in self.inner:
            with environment_of(one.values):
                methodcaller(event, own, state, control, **rest)(one.callback)

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Make the trackers open their runs."""
        self.began = True
        self._tell("on_init_end", args, state, control, **rest)
        self._tell("on_train_begin", args, state, control, **rest)

    on_log = partialmethod(_tell, "on_log")
    """Pass the numbers of a step or of a validation."""
    on_step_end = partialmethod(_tell, "on_step_end")
    """Pass how many steps are done."""
    on_train_end = partialmethod(_tell, "on_train_end")
    """Pass the end of the training; an interruption after saving counts as the end."""

    def close(self) -> None:
        """End the runs of the trackers, however training ended, so that the next cell of a study gets its own run."""
        if not self.began:
            return
        for one in self.inner:
            if one.tracker.finish:
                with environment_of(one.values):
                    vars(importlib.import_module(one.tracker.modules[0]))[one.tracker.finish]()


def open_trackers(names: Sequence[str], logs: Path | None, say: Callable[[str], None], *, fresh: bool) -> Tracked:
    """Open trackers as one callback of a training.

    logs: the folder for their files, `trackers/` of a run or a subfolder of it; fresh: whether training starts from the
    beginning, so that the files of an earlier start are removed. Raise ConfigError if there is no folder.
    """
    chosen = chosen_trackers(names)
    if not chosen:
        return Tracked(Path(), "")
    if logs is None:
        raise ConfigError(Problem("report_to", "the training has no folder for what trackers write", "give output"))
    if fresh:
        shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True, exist_ok=True)
    tracked = Tracked(logs, " ".join(part for part in logs.absolute().parts[-3:] if part != LOGS))
    for name in chosen:
        tracker = TRACKERS[name]
        values = {key: path.format(logs=logs.absolute()) for key, path in tracker.paths} | dict(tracker.defaults)
        late = tracker.once and tracker.modules[0] in sys.modules
        with environment_of(values):
            inner = callback_of(name)
        asked = [key for key in values if key in os.environ]
        online = f"; {tracker.online} sends them" if tracker.online else ""
        where = "where this process's first training has it" if late else f"in {logs}"
        say(f"{name}: as {' and '.join(asked)} says" if asked else f"{name}: what it writes is {where}{online}")
        tracked.inner.append(Inner(inner, values, tracker))
    return tracked
