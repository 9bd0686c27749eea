"""The plan of a run from its configuration and rows: how many steps, and which rows they read."""

from __future__ import annotations

from collections.abc import Container
from itertools import islice
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from posttrain.retention.selection import ReplayConfig
from posttrain.training.assembly import bare_forms
from posttrain.training.batches import Forms
from posttrain.training.config import TrainConfig
from posttrain.training.steps import RowPlan

if TYPE_CHECKING:
    from posttrain.training.run import Material

__all__ = ["plan_of", "rows_read"]


def plan_of(config: TrainConfig, material: Material, forms: Forms) -> tuple[RowPlan, int]:
    """The plan of a run and the number of its steps."""
    share = 0.0
    if isinstance(config.replay, ReplayConfig):
        new_tokens = sum(forms.new.tokens_of(row) for row in material.new)
        share = config.replay.share_of(new_tokens, sum(forms.old.tokens_of(row) for row in material.old))
    plan = RowPlan(
        [forms.new.size(row) for row in material.new],
        [forms.old.size(row) for row in material.old],
        config.batch,
        share=share,
        seed=config.seed,
        tokens=[
            *(forms.new.tokens_of(row) for row in material.new),
            *(forms.old.tokens_of(row) for row in material.old),
        ],
        mixed=forms.mixed,
    )
    optimizer = config.optimizer
    return plan, optimizer.max_steps or plan.steps_in(3.0 if optimizer.epochs is None else optimizer.epochs)


def rows_read(config: TrainConfig, material: Material, tokenizer: PreTrainedTokenizerBase) -> Container[int]:
    """Numbers of the rows that the steps of a run read, where a form wants to know; else all."""
    if not isinstance(config.replay, ReplayConfig) or config.replay.loss != "kl":
        return range(len(material.new) + len(material.old))
    plan, steps = plan_of(config, material, bare_forms(config, tokenizer))
    return {row for step in islice(plan, steps) for micro in step.micro_batches for row in micro}
