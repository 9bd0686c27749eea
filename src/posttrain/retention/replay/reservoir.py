"""Replay a reservoir: a uniform sample of the rows of all earlier tasks, for any number of tasks.

Algorithm R (Vitter 1985, doi:10.1145/3147.3165): the first `size` rows fill the reservoir. For row number t after them
a random index below t is drawn; if it is below `size`, the row replaces the row at that index. At any time every row
seen so far is in the reservoir with the same probability, size / t, and neither the number of tasks nor their lengths
have to be known in advance. As rehearsal for a stream of tasks: Chaudhry et al. 2019, arXiv:1902.10486.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from posttrain.data.readers import record_of
from posttrain.data.records import Conversation
from posttrain.errors import ConfigError, MissingError, Problem
from posttrain.models.disk import write_whole
from posttrain.registry import register
from posttrain.retention.selection import ReplayConfig, ReplayContext, Task, prompts_collide

__all__ = ["RESERVOIR", "Reservoir", "ReservoirReplayConfig", "reservoir"]

RESERVOIR = "reservoir.json"
"""File in the folder of a run: the reservoir after the run's task."""


@dataclass
class Reservoir:
    """At most `size` rows of all rows that were offered.

    The random index of a row depends only on the seed and on the row's number, so a stream may be interrupted and
    continued. seen: number of rows that were offered; rows: the rows that are in the reservoir.
    """

    size: int
    seed: int
    seen: int = 0
    rows: list[Conversation] = field(default_factory=list)

    def offer(self, row: Conversation) -> None:
        """Offer the next row of the stream."""
        self.seen += 1
        if len(self.rows) < self.size:
            self.rows.append(row)
            return
        index = random.Random(f"reservoir {self.seed} {self.seen}").randrange(self.seen)
        if index < self.size:
            self.rows[index] = row

    def write(self, path: Path) -> None:
        """Write the reservoir to a file."""
        rows = []
        for row in self.rows:
            said = [m.for_template() | ({} if m.train is None else {"train": m.train}) for m in row.messages]
            tools = {"tools": list(row.tools)} if row.tools else {}
            rows.append({"messages": said, "place": row.location, **tools})
        state = {"size": self.size, "seed": self.seed, "seen": self.seen, "rows": rows}
        write_whole(path, json.dumps(state, ensure_ascii=False, indent=0) + "\n")

    @classmethod
    def read(cls, path: Path) -> Reservoir:
        """Read a file that `write` made. Raise MissingError if it does not exist."""
        if not path.is_file():
            cause = "the earlier run has left no reservoir"
            raise MissingError(Problem(str(path), cause, "train the earlier task with replay {kind: reservoir}, too"))
        state = json.loads(path.read_text(encoding="utf-8"))
        rows = [record_of(row, row["place"]) for row in state["rows"]]
        return cls(state["size"], state["seed"], state["seen"], [row for row in rows if isinstance(row, Conversation)])


class ReservoirReplayConfig(ReplayConfig):
    """An even sample of all earlier tasks' rows."""

    of_tasks: ClassVar[bool] = True

    kind: Literal["reservoir"] = "reservoir"
    """Rows of earlier tasks, kept in a reservoir."""
    size: int = Field(default=200, gt=0)
    """How many rows the reservoir holds."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Replayed tokens over all tokens of a training step."""

    def leave(self, rows: Sequence[Conversation], task: Task, seed: int) -> None:
        """Offer the rows of the task to the reservoir and write it."""
        assert task.folder is not None, "whoever calls this has one"
        kept = Reservoir(self.size, seed) if task.earlier is None else self.of(task.earlier)
        for row in rows:
            kept.offer(row)
        kept.write(task.folder / RESERVOIR)

    def of(self, folder: Path) -> Reservoir:
        """Return the reservoir of a run. Raise ConfigError if it has another size."""
        found = Reservoir.read(folder / RESERVOIR)
        if found.size != self.size:
            cause = f"the earlier run's reservoir holds {found.size} rows, not {self.size}"
            raise ConfigError(Problem("replay.size", cause, f"give size: {found.size}"))
        return found


@register("replay", "reservoir", config=ReservoirReplayConfig, paper="arXiv:1902.10486")
def reservoir(config: ReservoirReplayConfig, context: ReplayContext) -> list[Conversation]:
    """Return the rows of the earlier tasks' reservoir, without those that an exam asks; none in the first task."""
    if context.task.earlier is None:
        context.say("replay from a reservoir: there is no earlier task, so nothing is replayed")
        return []
    kept = config.of(context.task.earlier)
    asked = {id(row) for row in prompts_collide(kept.rows, context.forbidden)}
    rows = [row for row in kept.rows if id(row) not in asked]
    left_out = f" ({len(asked)} asked by the exam left out)" if asked else ""
    context.say(f"replay from a reservoir: {len(rows)} rows of {kept.seen} seen in earlier tasks{left_out}")
    return rows
