"""Distillation: learn a teacher's whole distribution over the next token. Hinton et al. 2015, arXiv:1503.02531.

    L = mean over supervised tokens of (1 - w) T^2 D(teacher, student) + w (-log p(token))

Both distributions are softmax(logits / T). The factor T^2 keeps the gradient's size when T changes. D is one of these:
KL(teacher || student) (`forward`: the student covers every token that the teacher may choose), KL(student || teacher)
(`reverse`: the student chooses only tokens that are likely for the teacher), or the generalised Jensen-Shannon
divergence of GKD (Agarwal et al. 2023, arXiv:2306.13649):

    JSD = beta KL(teacher || M) + (1 - beta) KL(student || M),   M = beta teacher + (1 - beta) student
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.config.base import Config
from posttrain.data.tokens import IGNORED
from posttrain.inference.divergence import kl_nats, log_probabilities
from posttrain.objectives._loss import Loss, token_cross_entropy
from posttrain.registry import register

__all__ = ["DistillConfig", "distill", "divergence"]


class DistillConfig(Config):
    """Learn from a teacher's distribution on the assistant's words."""

    form: ClassVar[str] = "distilling"
    supervises: ClassVar[Literal["assistant"]] = "assistant"

    kind: Literal["distill"] = "distill"
    """Distillation from a teacher."""
    teacher: str
    """Hub id (in the local cache), folder, adapter folder, or pocket:base / pocket:chat; of the same vocabulary."""
    direction: Literal["forward", "reverse", "jsd"] = "forward"
    """Which divergence."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share of the mixture M; for `jsd` only."""
    temperature: float = Field(default=1.0, gt=0)
    """T: above 1 shows more of what the teacher finds unlikely."""
    nll_weight: float = Field(default=0.0, ge=0, le=1)
    """w, the share of plain cross-entropy on the rows' own tokens."""


def divergence(student: Tensor, teacher: Tensor, config: DistillConfig) -> Tensor:
    """Return D of log-probabilities: (..., V) -> (...), in nats."""
    if config.direction == "forward":
        return kl_nats(teacher, student)
    if config.direction == "reverse":
        return kl_nats(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(config.beta), student + math.log1p(-config.beta))
    return config.beta * kl_nats(teacher, mixture) + (1 - config.beta) * kl_nats(student, mixture)


@register("objective", "distill", config=DistillConfig, paper="arXiv:1503.02531")
def distill(logits: Tensor, teacher_logits: Tensor, targets: Tensor, config: DistillConfig) -> Loss:
    """Return the loss of each row, summed over its supervised tokens.

    logits, teacher_logits: (B, K, V); targets: (B, K), -100 if unsupervised. If one model pads its output to more
    entries than the other, D leaves out the entries that only one model has. metrics: teacher_divergence, D itself.
    """
    asked = targets != IGNORED  # (B, K)
    width = min(logits.shape[-1], teacher_logits.shape[-1])
    student = log_probabilities(logits[asked][:, :width] / config.temperature)  # (N, V)
    teacher = log_probabilities(teacher_logits[asked][:, :width] / config.temperature)
    apart = divergence(student, teacher, config)  # (N,)
    row = asked.nonzero()[:, 0]
    summed = apart.new_zeros(len(targets)).index_add(0, row, apart)  # (B,)
    nats = (1 - config.nll_weight) * config.temperature**2 * summed
    if config.nll_weight:
        nats = nats + config.nll_weight * token_cross_entropy(logits, targets).nats.to(nats)
    return Loss(nats, asked.sum(1), {"teacher_divergence": summed.detach()})
