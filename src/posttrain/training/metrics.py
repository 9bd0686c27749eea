"""Record the numbers of a run: metrics.jsonl, sums over micro batches, and how much was learned of the new rows.

metrics.jsonl has one line per optimiser step and per validation, appended as they happen. This module needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from posttrain.models.disk import append, write_whole
from posttrain.training.config import TrainConfig

if TYPE_CHECKING:
    from posttrain.objectives._loss import Loss

__all__ = ["Learned", "MetricsLog", "Sums", "hardly_learned", "learned_of"]

PENALTY = "penalty_"
"""Prefix of the names of metrics that come from penalties."""
HARDLY = 0.25
"""Share of its first value by which a loss must fall. If it falls by less, the rows were hardly learned."""
KNOWN_NATS = 0.5
"""Nats per unit. If the first loss is below this, the model knew the rows already."""
TO_BE_SAID = {"sft", "text_classification", "token_classification", "extractive_qa"}
"""Objectives with rows that the model should be able to produce after training.

Other objectives are left out: running text is not learned by heart, unlearning does not lower the loss of its rows, and
losses of pairs begin at log 2 whatever is learned.
"""


class MetricsLog:
    """The history of a run in memory, and in a file if a path is given."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []

    def read(self, step: int) -> None:
        """Read the lines up to a step into `history`. A last line that a kill has cut short is left out."""
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
        """Continue after `step`: keep the lines up to it and remove later ones, which a killed run wrote."""
        self.read(step)
        if self.path is not None and write:
            write_whole(self.path, "".join(json.dumps(entry) + "\n" for entry in self.history), flush=True)

    def add(self, entry: dict[str, Any]) -> None:
        """Append one line to the history and to the file."""
        self.history.append(entry)
        if self.path is not None:
            append(self.path, json.dumps(entry) + "\n")

    @property
    def wall_s(self) -> float:
        """Return the seconds of training so far, over all sessions of the run."""
        return float(self.history[-1]["wall_s"]) if self.history else 0.0


@dataclass
class Sums:
    """The sums over a step or a validation: nats of new rows, nats of replayed rows, and metrics. Metrics of penalties
    are summed over all rows, other metrics over new rows.
    """

    new: float = 0.0
    old: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, loss: Loss, nats: list[float], old: list[bool]) -> None:
        """Add the losses of a micro batch. nats: the loss of each row; old: whether each row is a replayed one."""
        for value, is_old in zip(nats, old, strict=True):
            if is_old:
                self.old += value
            else:
                self.new += value
        for name, values in loss.metrics.items():
            counted = [name.startswith(PENALTY) or not is_old for is_old in old]
            taken = sum(v for v, counts in zip(values.detach().tolist(), counted, strict=True) if counts)
            self.metrics[name] = self.metrics.get(name, 0.0) + taken

    def means(self, new_units: int, old_units: int) -> dict[str, float]:
        """Return the metrics per unit: those of penalties over all units, the others over units of new rows."""
        both = max(new_units + old_units, 1)
        return {k: v / (both if k.startswith(PENALTY) else max(new_units, 1)) for k, v in self.metrics.items()}

    @staticmethod
    def total(parts: Sequence[Sums]) -> Sums:
        """Add up the sums of all processes."""
        names = sorted({name for part in parts for name in part.metrics})
        metrics = {name: sum(part.metrics.get(name, 0.0) for part in parts) for name in names}
        return Sums(sum(part.new for part in parts), sum(part.old for part in parts), metrics)


class Learned(NamedTuple):
    """The loss on the new rows in the first and in the last step that read any, in nats per unit of the objective."""

    first: float
    last: float


def learned_of(history: Sequence[Mapping[str, Any]]) -> Learned | None:
    """Return the first and last loss from the entries of metrics.jsonl; None if fewer than two steps read new rows."""
    losses = [float(entry["loss_new_nats"]) for entry in history if entry.get("loss_new_nats")]
    return Learned(losses[0], losses[-1]) if len(losses) > 1 else None


def hardly_learned(config: TrainConfig, history: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence with the settings to raise if the loss on the new rows hardly fell, else an empty string."""
    found = learned_of(history)
    kind = config.objective.model_dump()["kind"]
    if found is None or kind not in TO_BE_SAID or found.first < KNOWN_NATS or found.last <= (1 - HARDLY) * found.first:
        return ""
    rate = max((float(entry["learning_rate"]) for entry in history if "learning_rate" in entry), default=None)
    optimizer = config.optimizer
    length = (
        f"optimizer.max_steps (now {optimizer.max_steps})"
        if optimizer.max_steps is not None
        else f"optimizer.epochs (now {3 if optimizer.epochs is None else optimizer.epochs:g})"
    )
    now = f" (now {rate:g})" if rate is not None else ""
    return f"your rows were hardly learned: raise optimizer.learning_rate{now} or {length}"
