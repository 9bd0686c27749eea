"""Pull every trained parameter towards its start. Li, Grandvalet & Davoine 2018, arXiv:1802.01483.

    alpha / 2 |theta - theta_0|^2  +  beta / 2 |theta_new|^2

theta_0 are the parameters where training starts. theta_new are parameters that no file contained, such as those of a
new head; their random start is not worth keeping. All directions have the same weight, also those that do not affect
the model's outputs; `ewc` measures which ones matter.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.models.memory import set_aside
from posttrain.registry import register
from posttrain.retention.penalty._base import (
    ParameterPenalty,
    PenaltyContext,
    StrengthConfig,
    Trainable,
    add_pull,
    copies,
    files_of,
    moved_to,
    moving,
    total,
)

__all__ = ["L2SpConfig", "l2_sp"]


class L2SpConfig(StrengthConfig):
    """Half the squared distance from the start."""

    kind: Literal["l2_sp"] = "l2_sp"
    """strength / 2 x |theta - theta_0|^2."""
    strength: float = Field(default=0.01, gt=0)
    """The pull after one step, as a share of the loss's push; with `scale: absolute` alpha, nats per squared unit of
    distance."""
    head_strength: float = Field(default=0.01, ge=0)
    """beta, for the parameters of a new head, which are pulled towards zero: nats per squared unit, whatever
    `scale` says."""


class L2Sp(ParameterPenalty):
    """An L2-SP penalty. It keeps a copy of the parameters at their start."""

    def __init__(self, strength: float, head_strength: float, start: dict[str, Tensor], fresh: frozenset[str]) -> None:
        self.strength = strength
        self.head_strength = head_strength
        self.start = {name: tensor for name, tensor in start.items() if name not in fresh}

    def slope(self, trainable: Trainable, step: float) -> float:
        """Return `step` for each trained weight that has a start, summed up."""
        moved = [m for name, p in trainable.items() if name in self.start and (m := moving(p)) is not None]
        return step * total([m.sum(dtype=torch.float64) for m in moved])

    def add_gradients(self, trainable: Trainable, scale: float = 1.0) -> float:
        """Add alpha (theta - theta_0), and beta theta for a new head."""
        values, files = [], files_of(trainable)
        for name, parameter in trainable.items():
            center, strength = None, self.head_strength
            if name in self.start:
                self.start[name] = center = moved_to(self.start[name], parameter)
                strength = self.strength
            values.append(0.5 * strength * add_pull(parameter, center, strength * scale))
            set_aside(() if center is None else (center,), files)
        return total(values)


@register("penalty", "l2_sp", config=L2SpConfig, paper="arXiv:1802.01483")
def l2_sp(config: L2SpConfig, context: PenaltyContext) -> ParameterPenalty:
    """Return the penalty for a run that starts from the present parameters."""
    fresh = context.fresh & context.trainable.keys()
    if fresh:
        context.say(f"l2_sp: {len(fresh)} new tensors are pulled towards zero, the others towards their start")
    return L2Sp(config.strength, config.head_strength, copies(context.trainable, context.held), frozenset(fresh))
