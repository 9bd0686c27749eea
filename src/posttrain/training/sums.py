"""Sums over the micro batches of a step or of a validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.objectives._loss import Loss

__all__ = ["Sums"]

PENALTY = "penalty_"


@dataclass
class Sums:
    """The losses of a step or a validation, added up: nats of new and of replayed rows, and metrics. Metrics of
    penalties are sums over all rows, the others over new ones."""

    new: float = 0.0
    old: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, loss: Loss, nats: list[float], old: list[bool]) -> None:
        """Add a micro batch."""
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
        """The metrics per unit."""
        both = max(new_units + old_units, 1)
        return {k: v / (both if k.startswith(PENALTY) else max(new_units, 1)) for k, v in self.metrics.items()}

    @staticmethod
    def total(parts: Sequence[Sums]) -> Sums:
        """Add up the sums of all processes."""
        names = sorted({name for part in parts for name in part.metrics})
        return Sums(
            sum(part.new for part in parts),
            sum(part.old for part in parts),
            {name: sum(part.metrics.get(name, 0.0) for part in parts) for name in names},
        )
