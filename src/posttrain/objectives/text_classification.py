"""Text classification: cross-entropy on the class of a text (or of a pair), or one yes or no per class.

The model gets a head with one output per label. The head reads a decoder's last token, or the state that the encoder's
family of models uses.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.objectives._loss import ClassWeights, Labels, Loss, check_labels, weights_for
from posttrain.registry import register

__all__ = ["TextClassificationConfig", "text_classification"]


class TextClassificationConfig(Config):
    """Labelled texts."""

    form: ClassVar[str] = "classes"

    kind: Literal["text_classification"] = "text_classification"
    """A class for each text."""
    labels: Labels = None
    """Names of the classes, in the order of the outputs; those of the training rows, sorted, when not given."""
    multi_label: bool = False
    """A text may have several labels, or none: each is a question of its own."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """With `multi_label`: a label is said when its probability is at least this."""
    class_weights: ClassWeights | None = None
    """What a row's loss is multiplied by, per class: `balanced`, or `{spam: 3.0}`. With `multi_label`: the weight
    of the rows that have the label."""

    @model_validator(mode="after")
    def _labels_are_classes(self) -> TextClassificationConfig:
        check_labels(self.labels, self.class_weights, least=1 if self.multi_label else 2)
        return self


@register("objective", "text_classification", config=TextClassificationConfig)
def text_classification(logits: Tensor, targets: Tensor, config: TextClassificationConfig) -> Loss:
    """Return the loss of each text.

        one label:       nats = - w_y log softmax(z)[y]
        several labels:  nats = - 1/C sum_c ( w_c y_c log sigmoid(z_c) + (1 - y_c) log sigmoid(-z_c) )

    logits: (B, C); targets: indices of classes, (B,), or with `multi_label` 0 and 1, (B, C). A step's loss is divided
    by the number of its texts, not by the sum of their weights. metrics: accuracy.
    """
    weights = weights_for(config.labels, config.class_weights, logits)
    if config.multi_label:
        each = functional.binary_cross_entropy_with_logits(
            logits, targets.to(logits), pos_weight=weights, reduction="none"
        )
        nats = each.mean(1)
        right = ((logits.detach().sigmoid() >= config.threshold) == (targets > 0)).all(1)
    else:
        nats = functional.cross_entropy(logits, targets, weight=weights, reduction="none")
        right = logits.detach().argmax(1) == targets
    return Loss(nats, targets.new_ones(len(targets)).long(), {"accuracy": right.to(nats)})
