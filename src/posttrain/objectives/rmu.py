"""RMU, representation misdirection for unlearning. Li et al. 2024, arXiv:2403.03218.

    L = mean over forget rows of mean_t mse(h_l(t), c u)
        + alpha x mean over retain rows of mean_t mse(h_l(t), h_l before(t))

h_l(t) is the hidden state after block l at token t. u is a random unit vector, drawn once (entries uniform in [0, 1),
then normalised). c is the length that the states of forget rows should reach, so that later blocks cannot use them. mse
is a mean over the D entries of a state, as in the authors' code; their paper writes the sum, which is D times as large
in both parts. The authors train only three matrices, the MLP's output projections of blocks l - 2, l - 1 and l:
`tuner: {kind: freeze, ...}`. Nothing after block l has a gradient.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.config.base import Config
from posttrain.objectives._loss import Loss
from posttrain.registry import register

__all__ = ["RmuConfig", "direction", "rmu"]


class RmuConfig(Config):
    """Lead the hidden states of forget rows astray and hold those of retain rows."""

    form: ClassVar[str] = "representations"
    supervises: ClassVar[Literal["assistant"]] = "assistant"

    kind: Literal["rmu"] = "rmu"
    """Representation misdirection."""
    layer: int = Field(ge=0)
    """The block whose output is led astray, counted from 0; not the last one."""
    steering: float = Field(default=6.5, gt=0)
    """Length c of the target vector; has to be larger than the states are long (training prints how long they are)."""
    alpha: float = Field(default=1200.0, ge=0)
    """Weight of the retain rows."""
    tokens: Literal["all", "answer"] = "all"
    """Whose states: every token's, or only those from which the answer's tokens are predicted."""
    seed: int = 0
    """Seed of the direction u."""


def direction(size: int, seed: int) -> Tensor:
    """Return a random unit vector, (size,), float32, from entries drawn in [0, 1). It is the same on every device."""
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


@register("objective", "rmu", config=RmuConfig, paper="arXiv:2403.03218")
def rmu(states: Tensor, mask: Tensor, old: Tensor, unit: Tensor, before: Tensor | None, config: RmuConfig) -> Loss:
    """Return the mean squared errors of the hidden states of each row; one unit per row.

        nats_b = mean over masked t, and over D, of (h_bt - c u)^2         forget rows
        nats_b = mean over masked t, and over D, of (h_bt - before_bt)^2   retain rows; alpha is applied to their mean

    states: (B, T, D); mask: (B, T) bool, True for tokens that count; old: (B,) bool, True for rows of the retain set;
    unit: (D,), u; before: (R, T, D), states of the R retain rows before training, None if there are none. metrics:
    state_length, the mean length of a row's states.
    """
    states = states if states.dtype == torch.float64 else states.float()
    target = (config.steering * unit.to(states)).expand_as(states)
    if before is not None:
        target = target.index_put((old.nonzero()[:, 0],), before.to(states))
    squared = (states - target).pow(2).mean(-1) * mask  # (B, T)
    count = mask.sum(1)
    lengths = (states.detach().norm(dim=-1) * mask).sum(1) / count.clamp(min=1)
    return Loss(squared.sum(1) / count.clamp(min=1), (count > 0).long(), {"state_length": lengths})
