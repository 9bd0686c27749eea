"""A stateful respondent's state on the disk, beside what it has answered, so that a killed exam goes on from there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from posttrain.inference.protocol import Respondent, State
from posttrain.models.disk import whole_file

__all__ = ["StateFile"]

KEEP_S = 20.0
"""Seconds between two states: what is asked after the last one is asked again after a kill."""


class StateFile:
    """A respondent's state after the first items of an exam. Nothing is done for one without a state; without a path
    nothing is kept. items: in the order in which they are asked, each item's key, and all that its answer depends on.
    """

    def __init__(self, path: Path | None, respondent: Respondent, items: Mapping[str, str]) -> None:
        self.path = path if respondent.stateful else None
        self.respondent, self.items = respondent, items
        self.kept_s = time.monotonic()

    def resume(self, done: MutableMapping[str, Any]) -> None:
        """Put the respondent into the state in which the rest is asked: the one that was kept, or the state of `reset`.
        Answers that came after that state leave `done`, which holds them by item."""
        order = list(self.items)
        answered = next((i for i, key in enumerate(order) if key not in done), len(order))
        if not self.respondent.stateful or answered == len(order):
            return
        self.respondent.reset()
        for key in order[self._restored(answered) :]:
            done.pop(key, None)

    def _restored(self, most: int) -> int:
        """Restore the state that was kept; after how many items it was, 0 where it is not of the first `most` here."""
        try:
            with safe_open(self.path or "", "pt") as file:
                notes = file.metadata() or {}
                count = int(notes.get("count", 0))
                if count > most or notes.get("items") != self._digest(count):
                    return 0
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):  # there is none, or no whole one
            return 0
        self.respondent.restore(State(json.loads(notes["values"]), tensors))
        return count

    def keep(self, count: int) -> None:
        """Write the state after the first `count` items, unless that was done a moment ago."""
        if self.path is None or time.monotonic() - self.kept_s < KEEP_S:
            return
        values, tensors = self.respondent.state()
        notes = {"count": str(count), "items": self._digest(count), "values": json.dumps(values)}
        with whole_file(self.path) as temporary:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, notes)
        self.kept_s = time.monotonic()

    def remove(self) -> None:
        """Every item is answered: the state is of no use."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _digest(self, count: int) -> str:
        return hashlib.sha256("\n".join(list(self.items.values())[:count]).encode()).hexdigest()
