"""Causal language modelling: cross-entropy on every token, for pretraining and continued pretraining.

Every token of a row except the first is predicted from the tokens before it. A prompt counts like an answer.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from posttrain.objectives._loss import Loss, TokenNll, token_cross_entropy
from posttrain.registry import register

__all__ = ["ClmConfig", "clm"]


class ClmConfig(TokenNll):
    """Causal language modelling on texts or whole conversations."""

    form: ClassVar[str] = "tokens"
    supervises: ClassVar[Literal["assistant", "all"]] = "all"

    kind: Literal["clm"] = "clm"
    """Causal language modelling: the loss looks at every token."""


@register("objective", "clm", config=ClmConfig)
def clm(logits: Tensor, targets: Tensor, config: ClmConfig) -> Loss:
    """Return the negative log-likelihood of every token after the first, summed per row.

        nats_b = - sum_{t >= 1} log softmax(z_b,t-1)[x_bt]   over the tokens x of the row, padding excepted

    logits: (B, K, V); targets: (B, K), already shifted: the row's next token, or -100 after the end of the row.
    """
    return token_cross_entropy(logits, targets)
