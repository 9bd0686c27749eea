"""Keep a stateful respondent's state on disk with its answers, so that a killed exam continues from there."""

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
"""Seconds between two stored states. After a kill, the items after the last stored state are asked again."""


class StateFile:
    """A file with a respondent's state after the first items of an exam.

    It does nothing for a respondent without a state, and stores nothing without a path. `items` maps each item's key to
    everything that its answer depends on, in the order of the items.
    """

    def __init__(self, path: Path | None, respondent: Respondent, items: Mapping[str, str]) -> None:
        self.path = path if respondent.stateful else None
        self.respondent, self.items = respondent, items
        self.kept_s = time.monotonic()

    def resume(self, done: MutableMapping[str, Any]) -> None:
        """Put the respondent into the state for the remaining items: the stored state, or the state of `reset`. `done`
        holds answers by item. Answers that came after the restored state are removed from it.
        """
        order = list(self.items)
        answered = next((i for i, key in enumerate(order) if key not in done), len(order))
        if not self.respondent.stateful or answered == len(order):
            return
        self.respondent.reset()
        for key in order[self._restored(answered) :]:
            done.pop(key, None)

    def _restored(self, most: int) -> int:
        """Restore the stored state and return the number of items before it. Return 0 if there is no stored state of
        the first items, of at most `most` of them."""
        try:
            with safe_open(self.path or "", "pt") as file:
                notes = file.metadata() or {}
                count = int(notes.get("count", 0))
                if count > most or notes.get("items") != self._digest(count):
                    return 0
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):  # there is no file, or it is incomplete
            return 0
        self.respondent.restore(State(json.loads(notes["values"]), tensors))
        return count

    def keep(self, count: int) -> None:
        """Write the state after the first `count` items, unless the last write was less than `KEEP_S` seconds ago."""
        if self.path is None or time.monotonic() - self.kept_s < KEEP_S:
            return
        values, tensors = self.respondent.state()
        notes = {"count": str(count), "items": self._digest(count), "values": json.dumps(values)}
        with whole_file(self.path) as temporary:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, notes)
        self.kept_s = time.monotonic()

    def remove(self) -> None:
        """Delete the file after every item is answered."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _digest(self, count: int) -> str:
        return hashlib.sha256("\n".join(list(self.items.values())[:count]).encode()).hexdigest()
