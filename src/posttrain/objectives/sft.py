"""Supervised fine-tuning: cross-entropy on the assistant's words and the end of its turns.

The prompt is read and not learned: its labels are -100. The loss of an optimiser step is the sum over all supervised
tokens of the step divided by their number, however the step is cut into micro batches.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from posttrain.objectives._loss import Loss, TokenNll, token_cross_entropy
from posttrain.registry import register

__all__ = ["SftConfig", "sft"]


class SftConfig(TokenNll):
    """Supervised fine-tuning on conversations, prompt/completion pairs or texts."""

    form: ClassVar[str] = "tokens"
    supervises: ClassVar[Literal["assistant", "all"]] = "assistant"

    kind: Literal["sft"] = "sft"
    """Supervised fine-tuning: the loss looks at the assistant's words only."""


@register("objective", "sft", config=SftConfig)
def sft(logits: Tensor, targets: Tensor, config: SftConfig) -> Loss:
    """Return the negative log-likelihood of the supervised tokens, summed per row.

        nats_b = - sum_t log softmax(z_bt)[y_bt]   over positions with a target other than -100

    logits: (B, K, V); targets: (B, K), already shifted: the token that the position should predict, or -100.
    """
    return token_cross_entropy(logits, targets)
