"""Synaptic intelligence: hold parameters that lowered the loss of earlier tasks. Zenke, Poole & Ganguli 2017.

    omega_i += - g_i d theta_i          at every step; g is the task's gradient before penalties and clipping
    Omega_i += max(omega_i, 0) / ((theta_i - theta_i^start)^2 + xi)                      at the end of the task
    c sum_i Omega_i (theta_i - theta*_i)^2                                               arXiv:1703.04200, eq. 3-5

For small steps, omega summed over parameters is the fall of the loss. SI needs no pass over data. It does not know what
the model could do before the first task; in that task it only records. A parameter with a negative omega raised the
loss in total. A negative importance would push it away without limit, so it counts as zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.registry import register
from posttrain.retention.penalty._base import PenaltyContext, Trainable, copies, moved_to, whole
from posttrain.retention.penalty._kept import Kept, MemoryConfig, Quadratic, earlier_of, leave, take_up

__all__ = ["Si", "SiConfig"]


class SiConfig(MemoryConfig):
    """What brought earlier tasks' losses down is held."""

    kind: Literal["si"] = "si"
    """strength x sum of Omega (theta - theta*)^2."""
    strength: float = Field(default=0.03, gt=0)
    """The pull after one step, as a share of the loss's push; with `scale: absolute` c, 0.1 to 1 in the
    paper."""
    xi: float = Field(default=1e-3, gt=0)
    """Keeps importances of parameters that hardly moved bounded; 0.001 to 0.1 in the paper."""


@register("penalty", "si", config=SiConfig, paper="arXiv:1703.04200")
class Si(Quadratic):
    """A penalty that observes every step of a task, for a run that starts from the present parameters."""

    def __init__(self, config: SiConfig, context: PenaltyContext) -> None:
        earlier = earlier_of(config, context)
        super().__init__(config.strength, take_up(earlier, "si", context.trainable) if earlier is not None else None)
        self.config = config
        self.start = copies(context.trainable, context.held)
        self.omega = {name: torch.zeros_like(tensor) for name, tensor in self.start.items()}
        self.before: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        if self.kept is not None:
            context.say(f"si: holds what {self.kept.tasks} earlier tasks have left in {earlier}")
        else:
            context.say("si: a first task; nothing is held, it is only recorded which parameters this task needs")

    def observe(self, trainable: Trainable, scale: float = 1.0) -> None:
        """Keep the step's gradient and the parameters before the step."""
        for name, parameter in trainable.items():
            if parameter.grad is not None:
                self.gradients[name] = parameter.grad.detach() * scale
                self.before[name] = parameter.detach().clone()

    def stepped(self, trainable: Trainable) -> None:
        """Update the running sums: omega += - g d theta."""
        for name, gradient in self.gradients.items():
            moved = trainable[name].detach() - self.before[name]
            self.omega[name] = moved_to(self.omega[name], moved).sub_(gradient * moved)
        self.gradients, self.before = {}, {}

    def state(self) -> dict[str, Tensor]:
        """Return the running sums."""
        return {name: whole(tensor) for name, tensor in self.omega.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the running sums."""
        self.omega = {name: state[name].to(tensor) for name, tensor in self.omega.items()}

    def save(self, trainable: Trainable, path: Path) -> None:
        """Write the importances of this task plus those of earlier tasks, with the centre at the end of this task."""
        end = copies(trainable)
        importance = {}
        for name, omega in self.omega.items():
            moved = whole(end[name]) - whole(self.start[name]).to(end[name].device)
            importance[name] = whole(omega).clamp(min=0) / (moved.square() + self.config.xi)
            if self.kept is not None:
                importance[name] += whole(self.kept.importance[name]).to(importance[name])
        leave(path, "si", Kept(importance, end, tasks=(self.kept.tasks if self.kept is not None else 0) + 1))
