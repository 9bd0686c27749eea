"""Define what objectives share: their result, cross-entropy of tokens, compared answers, labels and class weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.data.tokens import IGNORED


class Loss(NamedTuple):
    """The result of an objective: sums, not means, so that the parts of an optimiser step can be added, then divided.

    nats: the loss of each row, shape (B,), with a gradient;
    units: the divisor of each row, shape (B,), integers; a step's sum of nats is divided by its sum of units. It is the
    number of the row's supervised tokens, or 1 for a pair, a document or a graded answer;
    metrics: further sums per row, shape (B,) each, without gradient; they are divided like the loss when logged.
    """

    nats: Tensor
    units: Tensor
    metrics: Mapping[str, Tensor] = {}


class TokenNll(Config):
    """An objective that is `token_cross_entropy` of its rows and nothing else, so that it may be computed token by
    token, without the logits of all positions at once."""


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Loss:
    """Return the cross-entropy of the supervised tokens, summed per row, computed in float32.

        nats_b = sum over positions t with y_bt != -100 of: logsumexp(z_bt) - z_bt[y_bt]

    logits: (B, K, V), float; targets: (B, K), the token that each position should predict, -100 if it is unsupervised.
    Only supervised positions are put through the softmax.
    """
    asked = targets != IGNORED  # (B, K)
    # float64 stays float64 (exactness tests), half precision is raised to float32
    chosen = logits[asked]  # (N, V)
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    nats = functional.cross_entropy(chosen, targets[asked], reduction="none")  # (N,)
    row = asked.nonzero()[:, 0]  # (N,)
    return Loss(nats.new_zeros(len(targets)).index_add(0, row, nats), asked.sum(1))


class Pairs(NamedTuple):
    """Log-probabilities of the chosen and the rejected answers, in nats, summed over their tokens, (B,) each, and the
    numbers of these tokens, (B,) each, integers. The token that ends an answer is one of its tokens."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def per_token(self) -> Pairs:
        """Return the same with means over tokens instead of sums."""
        chosen, rejected = self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens
        return self._replace(chosen=chosen, rejected=rejected)


def pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Return metrics of rewards or scores, (B,) each: both, their difference, and whether the chosen one is higher."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "margin": chosen - rejected,
        "accuracy": (chosen > rejected).to(torch.float32),
    }


def _names(value: Any) -> Any:
    """Return numbers and truth values as names, as YAML may have `labels: [0, 1]`."""
    if not isinstance(value, list | tuple):
        return value
    return tuple((str(v).lower() if isinstance(v, bool) else str(v)) if isinstance(v, bool | int) else v for v in value)


Labels = Annotated[tuple[str, ...] | None, BeforeValidator(_names)]
"""Names of the classes, in the order of the outputs."""

ClassWeights = Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]]
"""A weight for each class, or `balanced`: N / (C x rows of the class), as in scikit-learn."""


def check_labels(labels: tuple[str, ...] | None, weights: object, *, least: int) -> None:
    """Raise ValueError for a repeated label, for fewer than `least` labels, or for a weight of an unknown label."""
    if labels is None:
        return
    if len(set(labels)) < len(labels):
        raise ValueError("labels: a name stands twice")
    if len(labels) < least:
        raise ValueError(f"labels: at least {least} are needed")
    others = [name for name in weights if name not in labels] if isinstance(weights, dict) else []
    if others:
        raise ValueError(f"class_weights: '{others[0]}' is none of the labels {', '.join(labels)}")


def balanced(labels: Sequence[str], seen: Iterable[str]) -> dict[str, float]:
    """Return the weight N / (C n_c) of each class. n_c of the N labels in `seen` are of the class. C is the number of
    classes that occur. A class that does not occur has the weight 1.
    """
    counts = Counter(seen)
    total, classes = sum(counts.values()), sum(counts[label] > 0 for label in labels)
    return {label: total / (classes * counts[label]) if counts[label] else 1.0 for label in labels}


def weights_for(labels: Sequence[str] | None, weights: str | Mapping[str, float] | None, like: Tensor) -> Tensor | None:
    """Return the weights in the order of the outputs, (C,), on the device and with the dtype of `like`, or None."""
    if weights is None:
        return None
    assert labels is not None, "labels are resolved before training"
    assert not isinstance(weights, str), "weights are resolved before training"
    return torch.tensor([weights.get(label, 1.0) for label in labels], dtype=like.dtype, device=like.device)
