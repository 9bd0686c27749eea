"""Token classification: cross-entropy on the tag of each token of a sentence (names, parts of speech).

The tokenizer may cut a token into pieces. One of them stands for the token; the others are read but not learned. It is
the first piece that has a character of the token, as in BERT's taggers. For a model that reads from left to right it is
the last piece, since at the first one the model has read only a part of the token: it cannot distinguish "bank" from
"banks", or 臺 from 臺北.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.data.tokens import IGNORED
from posttrain.objectives._loss import ClassWeights, Labels, Loss, check_labels, weights_for
from posttrain.registry import register

__all__ = ["TokenClassificationConfig", "token_classification"]


class TokenClassificationConfig(Config):
    """Tagged tokens."""

    form: ClassVar[str] = "tags"

    kind: Literal["token_classification"] = "token_classification"
    """A tag for each token."""
    labels: Labels = None
    """Names of the tags, in the order of the outputs; those of the training rows, sorted, when not given."""
    class_weights: ClassWeights | None = None
    """What a token's loss is multiplied by, per tag: `balanced`, or `{O: 0.2}`."""
    piece: Literal["first", "last", "start"] | None = None
    """Which of a token's pieces its tag is learned at: the first or the last that holds a character of it; `start`: the
    first one, even a bare space. When not given: what the model was trained with; else `last` for a model that reads
    from left to right, `first` for others."""

    @model_validator(mode="after")
    def _labels_are_tags(self) -> TokenClassificationConfig:
        check_labels(self.labels, self.class_weights, least=2)
        return self


@register("objective", "token_classification", config=TokenClassificationConfig)
def token_classification(logits: Tensor, targets: Tensor, config: TokenClassificationConfig) -> Loss:
    """Return the loss of each sentence.

        nats = - sum over its tokens t of: w_{y_t} log softmax(z_t)[y_t]

    logits: (B, T, C); targets: (B, T), the tag's index at one piece of each token, -100 elsewhere. A step's loss is
    divided by the number of its tokens, not by the sum of their weights. metrics: accuracy.
    """
    asked = targets != IGNORED  # (B, T)
    chosen = logits[asked]  # (N, C)
    weights = weights_for(config.labels, config.class_weights, logits)
    each = functional.cross_entropy(chosen, targets[asked], weight=weights, reduction="none")  # (N,)
    right = (chosen.detach().argmax(1) == targets[asked]).to(each)
    row = asked.nonzero()[:, 0]
    zeros = each.new_zeros(len(targets))
    return Loss(zeros.index_add(0, row, each), asked.sum(1), {"accuracy": zeros.detach().index_add(0, row, right)})
