"""Penalties that are a function of each weight alone, and remember nothing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from posttrain.retention.penalty._base import ParameterPenalty, Trainable, add_gradient, moving, total

__all__ = ["Memoryless"]


class Memoryless(ParameterPenalty):
    """strength x the sum over all weights of `value`, whose derivative is `slope`; both elementwise."""

    def __init__(self, strength: float, value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> None:
        self.strength, self.value, self.slope_of = strength, value, slope

    def slope(self, trainable: Trainable, step: float) -> float:
        """Sum up the slopes at the weights as they are: these penalties act before any step."""
        moved = [(p, m) for p in trainable.values() if (m := moving(p)) is not None]
        return total([(self.slope_of(p.detach()).abs() * m).sum() for p, m in moved])

    def add_gradients(self, trainable: Trainable, scale: float = 1.0) -> float:
        """Add the slope at each weight."""
        parts = []
        for parameter in trainable.values():
            theta = parameter.detach()
            parts.append(self.value(theta).sum())
            add_gradient(parameter, self.slope_of(theta), self.strength * scale)
        return self.strength * total(parts)
