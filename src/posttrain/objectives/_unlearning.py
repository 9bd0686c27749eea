"""Define what the objectives that forget share: two kinds of rows in one batch, and losses that keep the second kind.

New rows are the forget set. Replayed rows, if there are any, are the retain set. Their loss is plain cross-entropy, or
the divergence from the model before training (`retain`). A step's loss is

    mean over forget rows' units of forget + retain_weight x mean over retain rows' units of retain

It has two means, so that the size of one set does not change the weight of the other.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from posttrain.config.base import Config
from posttrain.data.tokens import IGNORED
from posttrain.inference.divergence import kl_nats, log_probabilities


class UnlearningConfig(Config):
    """The settings of every objective that forgets."""

    form: ClassVar[str] = "unlearning"
    supervises: ClassVar[Literal["assistant"]] = "assistant"
    retains: ClassVar[Literal["never", "may", "must"]] = "may"
    """Whether replayed rows are refused (`never`), allowed (`may`) or required (`must`)."""
    per_row: ClassVar[bool] = False
    """Whether the loss is a mean over rows, not over tokens."""
    asks_before: ClassVar[bool] = False
    """Whether the loss compares each forget row with its log-probability before training."""

    kind: str
    """Which objective: see `posttrain list objectives`."""


class RetainConfig(UnlearningConfig):
    """The settings of those that can keep a retain set."""

    retain: Literal["nll", "kl"] = "nll"
    """The loss of the retain rows: `nll`, cross-entropy; or `kl`, KL(before || now) on their supervised tokens."""
    retain_weight: float = Field(default=1.0, ge=0)
    """Weight of the retain rows' mean loss beside that of the forget rows."""


class ForgetAndRetain(NamedTuple):
    """A micro batch as the objective gets it.

    logits: (B, K, V); targets: (B, K), the token that each position should predict, -100 if it is unsupervised; old:
    (B,) bool, True for rows of the retain set; before_logps: (B,), log-probability of each forget row before training,
    None if not needed; before_logits: (R, K, V), logits of the R retain rows before training, None if not needed.
    """

    logits: Tensor
    targets: Tensor
    old: Tensor
    before_logps: Tensor | None = None
    before_logits: Tensor | None = None


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each supervised token, 0 at other positions, (B, K), in float32. logits:
    (B, K, V); targets: (B, K). Only supervised positions are put through the softmax.
    """
    asked = targets != IGNORED  # (B, K)
    said = log_probabilities(logits[asked])  # (N, V)
    nats = -said.gather(1, targets[asked][:, None])[:, 0]  # (N,)
    return nats.new_zeros(targets.shape).masked_scatter(asked, nats)


def retain_nats(rows: ForgetAndRetain, nats: Tensor, retain: str) -> Tensor:
    """Return the retain loss of each row, summed over its supervised tokens, (B,); 0 for forget rows. nats: (B, K), the
    result of `token_nats` for the same rows; retain: `nll` or `kl`.
    """
    if retain == "nll":
        return nats.sum(1) * rows.old
    summed = nats.new_zeros(len(rows.targets))
    if not bool(rows.old.any()):
        return summed
    assert rows.before_logits is not None, "retain: kl needs the logits before training"
    asked = rows.targets[rows.old] != IGNORED  # (R, K)
    before = log_probabilities(rows.before_logits[asked])  # (N, V)
    now = log_probabilities(rows.logits[rows.old][asked])  # (N, V)
    row = rows.old.nonzero()[:, 0][asked.nonzero()[:, 0]]  # (N,)
    return summed.index_add(0, row, kl_nats(before, now).to(summed))


def per_token(summed: Tensor, targets: Tensor) -> Tensor:
    """Return sums over the supervised tokens of each row, (B,), as means."""
    return summed / (targets != IGNORED).sum(1).clamp(min=1)


def one_each(targets: Tensor) -> Tensor:
    """Return one unit per row, (B,), int64; 0 for a row without a supervised token."""
    return (targets != IGNORED).any(1).long()
