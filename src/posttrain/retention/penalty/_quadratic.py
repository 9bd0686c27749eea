"""strength x unit x (sum of importance x (theta - center)^2 + rest), added to the gradients."""

from __future__ import annotations

from typing import ClassVar

from posttrain.models.memory import set_aside
from posttrain.retention.penalty._base import ParameterPenalty, Trainable, add_pull, files_of, moved_to, moving, total
from posttrain.retention.penalty._kept import Kept

__all__ = ["Quadratic"]


class Quadratic(ParameterPenalty):
    """Each parameter is pulled back by its own spring; kept: None where nothing is to be held yet; unit: 1/2 where the
    formula says lambda / 2."""

    remembers: ClassVar[bool] = True

    def __init__(self, strength: float, kept: Kept | None, unit: float = 1.0) -> None:
        self.strength = strength
        self.unit = unit
        self.kept = kept

    def slope(self, trainable: Trainable, step: float) -> float:
        """2 unit x importance x step."""
        sums = []
        for name, parameter in trainable.items():
            moved = moving(parameter)
            if self.kept is not None and moved is not None:
                importance = moved_to(self.kept.importance[name], parameter)
                sums.append((importance * moved).sum())
        return 2 * self.unit * step * total(sums)

    def add_gradients(self, trainable: Trainable, scale: float = 1.0) -> float:
        """2 strength x unit x importance x (theta - center)."""
        if self.kept is None:
            return 0.0
        factor = self.strength * self.unit
        importances, centers, values = self.kept.importance, self.kept.center, []
        files = files_of(trainable)
        for name, parameter in trainable.items():
            importances[name] = moved_to(importances[name], parameter, importances[name].dtype)  # as coarse as it is
            centers[name] = moved_to(centers[name], parameter)
            values.append(add_pull(parameter, centers[name], 2 * factor * scale, importances[name]))
            set_aside((centers[name], importances[name]), files)
        return factor * (total(values) + self.kept.rest)
