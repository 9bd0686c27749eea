"""On-policy self-distillation: a prompt put into the weights. Shenfeld et al. 2026, arXiv:2601.19897.

The student answers a prompt x in its own words, y ~ pi(. | x). The teacher is the same model with the demonstration c
in its prompt. At every token of its own answer, the student learns the teacher's distribution over the next token:

    L = mean over tokens t of y:  D(teacher(. | c, x, y_<t), student(. | x, y_<t))

D is KL(student || teacher) at alpha 1, KL(teacher || student) at alpha 0, else a Jensen-Shannon divergence

    alpha KL(teacher || M) + (1 - alpha) KL(student || M),   M = alpha teacher + (1 - alpha) student

With top_k, both distributions are cut to the student's k likeliest tokens and one outcome for all others. Gradients
flow through the student's distributions only, not through the sampling. Since every token is the student's own,
behaviour that the demonstration does not concern stays as it is.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.config.base import Config
from posttrain.inference.divergence import kl_nats, log_probabilities, of_others
from posttrain.objectives._loss import Loss
from posttrain.registry import register

__all__ = ["SdftConfig", "apart", "sdft"]


class SdftConfig(Config):
    """Learn from oneself, shown the demonstration, on one's own answers."""

    form: ClassVar[str] = "on_policy"
    supervises: ClassVar[Literal["assistant"]] = "assistant"

    kind: Literal["sdft"] = "sdft"
    """On-policy self-distillation."""
    teacher: Literal["base", "ema", "live"] = "base"
    """The model before training, a running mean of the weights (`ema_rate`), or the model as it is."""
    ema_rate: float = Field(default=0.01, gt=0, le=1)
    """How far the running mean follows the weights in each step; for `ema` only."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """1: KL(student || teacher); 0: KL(teacher || student); between: Jensen-Shannon."""
    top_k: int = Field(default=0, ge=0)
    """Compare so many of the student's likeliest tokens, and the rest as one; 0: all."""
    samples: int = Field(default=4, gt=0)
    """Answers of the student to each prompt in each step."""
    max_new_tokens: int = Field(default=48, gt=0)
    """Tokens of an answer, at most."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the student's sampling; 0: its likeliest answer, once."""
    template: str = (
        "{prompt}\n\nThis is a correct answer to the question:\n{demonstration}\n\nNow answer the question yourself."
    )
    """What the teacher reads in place of the user's last words."""
    template_zh: str = "{prompt}\n\n這是這個問題的正確回答：\n{demonstration}\n\n現在請你自己回答這個問題。"
    """The same where the prompt is in Chinese."""


def apart(student: Tensor, teacher: Tensor, config: SdftConfig) -> Tensor:
    """Return D of log-probabilities: (N, V) -> (N,), in nats."""
    if 0 < config.top_k < student.shape[-1]:
        chosen = student.detach().topk(config.top_k, -1).indices
        student, teacher = (one.gather(-1, chosen) for one in (student, teacher))  # (N, k)
        student, teacher = (torch.cat([one, of_others(one)[:, None]], -1) for one in (student, teacher))  # (N, k + 1)
    if config.alpha == 1:
        return kl_nats(student, teacher)
    if config.alpha == 0:
        return kl_nats(teacher, student)
    weights = student.new_tensor([config.alpha, 1 - config.alpha]).log()
    mixture = torch.logaddexp(teacher + weights[0], student + weights[1])
    return config.alpha * kl_nats(teacher, mixture) + (1 - config.alpha) * kl_nats(student, mixture)


@register("objective", "sdft", config=SdftConfig, paper="arXiv:2601.19897")
def sdft(logits: Tensor, teacher_logits: Tensor, row: Tensor, rows: int, config: SdftConfig) -> Loss:
    """Return the loss of each answer, summed over its tokens.

    logits, teacher_logits: (N, V), at all positions of all answers; row: (N,), the index of the answer that each
    position belongs to; rows: the number of answers. There are no metrics, as the loss is the divergence itself.
    """
    student = log_probabilities(logits)
    nats = apart(student, log_probabilities(teacher_logits).to(student), config)
    return Loss(nats.new_zeros(rows).index_add(0, row, nats), torch.bincount(row, minlength=rows))
