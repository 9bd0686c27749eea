"""How much a training has learned of the new rows, for its last lines and its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from posttrain.training.config import TrainConfig

__all__ = ["Learned", "hardly_learned", "learned_of"]

HARDLY = 0.25
"""A loss that fell by a smaller share of itself has hardly fallen."""
KNOWN_NATS = 0.5
"""Rows with a smaller loss at the beginning were known already, in nats."""
TO_BE_SAID = {"sft", "text_classification", "token_classification", "extractive_qa"}
"""Objectives whose rows the model shall be able to say. Running text is not learned by heart, unlearning does not lower
the loss of its rows, and losses of pairs begin at log 2 whatever is learned."""


class Learned(NamedTuple):
    """The loss on the new rows in the first step and in the last that read any, in nats per unit of the objective."""

    first: float
    last: float


def learned_of(history: Sequence[Mapping[str, Any]]) -> Learned | None:
    """Compare the entries of metrics.jsonl; None with fewer than two steps that read new rows."""
    losses = [float(entry["loss_new_nats"]) for entry in history if entry.get("loss_new_nats")]
    return Learned(losses[0], losses[-1]) if len(losses) > 1 else None


def hardly_learned(config: TrainConfig, history: Sequence[Mapping[str, Any]]) -> str:
    """A sentence for runs whose loss on the new rows hardly fell, with the settings to raise; else empty."""
    found = learned_of(history)
    kind = config.objective.model_dump()["kind"]
    if found is None or kind not in TO_BE_SAID or found.first < KNOWN_NATS:
        return ""
    if found.last <= (1 - HARDLY) * found.first:
        return ""
    rate = max((float(entry["learning_rate"]) for entry in history if "learning_rate" in entry), default=None)
    optimizer = config.optimizer
    length = (
        f"optimizer.max_steps (now {optimizer.max_steps})"
        if optimizer.max_steps is not None
        else f"optimizer.epochs (now {3 if optimizer.epochs is None else optimizer.epochs:g})"
    )
    now = f" (now {rate:g})" if rate is not None else ""
    return f"your rows were hardly learned: raise optimizer.learning_rate{now} or {length}"
