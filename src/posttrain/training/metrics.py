"""metrics.jsonl: one line per optimiser step and per validation, appended as they happen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.models.disk import append, write_whole

__all__ = ["MetricsLog"]


class MetricsLog:
    """The history of a run in memory, and in a file where a path is given."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []

    def read(self, step: int) -> None:
        """Read the lines up to a step into `history`; a last line that a kill has cut short is left out."""
        self.history = []
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path and self.path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if entry["step"] <= step:
                self.history.append(entry)

    def take_up(self, step: int, *, write: bool = True) -> None:
        """Go on after `step`: keep the lines up to it and remove later ones, which a killed run had written."""
        self.read(step)
        if self.path is not None and write:
            write_whole(self.path, "".join(json.dumps(entry) + "\n" for entry in self.history), flush=True)

    def add(self, entry: dict[str, Any]) -> None:
        """Append one line."""
        self.history.append(entry)
        if self.path is not None:
            append(self.path, json.dumps(entry) + "\n")

    @property
    def wall_s(self) -> float:
        """Seconds of training so far, over all sessions of the run."""
        return float(self.history[-1]["wall_s"]) if self.history else 0.0
