"""Count how many parameters a tuner makes trainable."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Moved(NamedTuple):
    """The numbers of trainable parameters and of all parameters. A tied matrix counts once."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Return trainable parameters / all parameters, 0 to 1."""
        return self.trainable / max(self.total, 1)

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters move ({self.share:.2%})"


def count_moved(model: nn.Module) -> Moved:
    """Count a model's parameters, and those that require a gradient."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Moved(sum(n for n, moves in sizes if moves), sum(n for n, _ in sizes))
