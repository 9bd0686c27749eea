"""Extractive question answering: where in the text the answer begins and ends. Devlin et al. 2018, arXiv:1810.04805.

A text that is longer than the model's window is read in overlapping windows. A window without the answer has the null
answer as its target: [CLS], or, if the tokenizer has none, an end token after the text.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.objectives._loss import Loss
from posttrain.registry import register

__all__ = ["ExtractiveQaConfig", "extractive_qa"]


class ExtractiveQaConfig(Config):
    """Questions about texts that hold the answer."""

    form: ClassVar[str] = "spans"

    kind: Literal["extractive_qa"] = "extractive_qa"
    """The place of the answer in a text."""
    doc_stride: int = Field(128, ge=0)
    """Tokens that two windows of a long text share; at most half of a window."""
    max_answer_tokens: int = Field(30, ge=1)
    """The longest answer that is considered when the model is used."""
    null_answers: bool | None = None
    """Whether the model may say that the text holds no answer; when not given: whether a training row has none."""
    null_threshold: float = 0.0
    """The null answer is said when its score is above the best span's by more than this."""


@register("objective", "extractive_qa", config=ExtractiveQaConfig, paper="arXiv:1810.04805")
def extractive_qa(
    start_logits: Tensor, end_logits: Tensor, targets: Tensor, real: Tensor, config: ExtractiveQaConfig
) -> Loss:
    """Return the loss of each window, which is the mean of its two cross-entropies.

        nats = - 1/2 (log softmax(s)[first] + log softmax(e)[last])

    start_logits, end_logits: s and e, (B, T); targets: (B, 2), indices of the answer's first and last token; real:
    (B, T) bool, False at padding. The softmax leaves out padding, so that a window's loss does not depend on the other
    windows of its batch. metrics: accuracy, whether both indices are right.
    """
    start = start_logits.masked_fill(~real, float("-inf"))
    end = end_logits.masked_fill(~real, float("-inf"))
    first = functional.cross_entropy(start, targets[:, 0], reduction="none")
    last = functional.cross_entropy(end, targets[:, 1], reduction="none")
    right = (start.detach().argmax(1) == targets[:, 0]) & (end.detach().argmax(1) == targets[:, 1])
    nats = (first + last) / 2
    return Loss(nats, targets.new_ones(len(targets)), {"accuracy": right.to(nats)})
