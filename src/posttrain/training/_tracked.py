"""The trackers of one training, seen by the Trainer as one callback; see `trackers.py`."""

from __future__ import annotations

import copy
import importlib
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback

from posttrain.training.trackers import environment_of

__all__ = ["Tracked"]


class Inner(NamedTuple):
    """A callback of transformers; values: its environment; end: module and function that close its run."""

    callback: TrainerCallback
    values: dict[str, str]
    end: tuple[str, str] | None


class Tracked(TrainerCallback):
    """Hands on the beginning, the numbers and the end of a training. Checkpoints are not handed on: no tracker uploads
    weights.
    """

    def __init__(self, logs: Path, run: str) -> None:
        self.logs, self.run = logs, run
        self.inner: list[Inner] = []
        self.began = False

    def add(self, callback: TrainerCallback, values: dict[str, str], end: tuple[str, str] | None) -> None:
        """One more tracker."""
        self.inner.append(Inner(callback, values, end))

    def _tell(self, event: str, args: Any, state: Any, control: Any, **rest: Any) -> None:
        own = copy.copy(args)
        own.output_dir, own.run_name = str(self.logs), self.run
        for one in self.inner:
            with environment_of(one.values):
                methodcaller(event, own, state, control, **rest)(one.callback)

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Trackers open their runs."""
        self.began = True
        self._tell("on_init_end", args, state, control, **rest)
        self._tell("on_train_begin", args, state, control, **rest)

    def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """The numbers of a step, or of a validation."""
        self._tell("on_log", args, state, control, **rest)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """How far the training is."""
        self._tell("on_step_end", args, state, control, **rest)

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Training came to its end, or was interrupted after saving."""
        self._tell("on_train_end", args, state, control, **rest)

    def close(self) -> None:
        """End the runs, however training ended, so that the next cell of a study gets runs of its own."""
        if not self.began:
            return
        for one in self.inner:
            if one.end is not None:
                module, name = one.end
                with environment_of(one.values):
                    importlib.import_module(module).__dict__[name]()
