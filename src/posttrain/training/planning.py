"""The plan of a run with fixed rows: how many steps there are, and which rows they read."""

from __future__ import annotations

from collections.abc import Container
from itertools import islice

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.models.logits import core_of
from posttrain.models.memory import activation_bytes, is_large
from posttrain.retention.selection import ReplayConfig
from posttrain.training.assembly import bare_forms
from posttrain.training.batches import Forms
from posttrain.training.config import TrainConfig
from posttrain.training.precision import Lowered
from posttrain.training.steps import FixedRows, Material, RowPlan

__all__ = ["plan_of", "rows_read", "tokens_at_once"]

ACTIVATIONS = 768 * 2**20
"""Bytes of activations that a forward pass of training may keep on a CPU."""
FEW_ACTIVATIONS = 448 * 2**20
"""The same for a large model, and in bfloat16 with blocks written out, where half as much per token is kept: 290 and
700 tokens of SmolLM2-135M. More of them are no faster."""


def plan_of(config: TrainConfig, material: Material, forms: Forms) -> FixedRows:
    """The steps of a run over these rows."""
    new_tokens = [forms.new.tokens_of(row) for row in material.new]
    old_tokens = [forms.old.tokens_of(row) for row in material.old]
    replay = config.replay
    plan = RowPlan(
        [forms.new.size(row) for row in material.new],
        [forms.old.size(row) for row in material.old],
        config.batch,
        share=replay.share_of(sum(new_tokens), sum(old_tokens)) if isinstance(replay, ReplayConfig) else 0.0,
        seed=config.seed,
        tokens=[*new_tokens, *old_tokens],
        mixed=forms.mixed,
    )
    optimizer = config.optimizer
    steps = optimizer.max_steps or plan.steps_in(3.0 if optimizer.epochs is None else optimizer.epochs)
    return FixedRows(plan, [*material.new, *material.old], steps)


def rows_read(config: TrainConfig, material: Material, tokenizer: PreTrainedTokenizerBase) -> Container[int]:
    """The indices of the old rows that the steps of a run read, where a form asks for them; else of all."""
    if not isinstance(config.replay, ReplayConfig) or config.replay.loss != "kl":
        return range(len(material.old))
    steps = plan_of(config, material, bare_forms(config, tokenizer))
    new = len(material.new)
    return {row - new for step in islice(steps.plan, steps.total) for micro in step.micro_batches for row in micro}


def tokens_at_once(model: PreTrainedModel | PeftModel, lowered: Lowered) -> int | None:
    """Padded tokens that go through the model together: on a CPU as many as their activations may have bytes, elsewhere
    whole micro batches (None)."""
    if model.device.type != "cpu":
        return None
    core, low = core_of(model), lowered.token_bytes()
    room = FEW_ACTIVATIONS if low is not None or is_large(core) else ACTIVATIONS
    return max(1, room // max(1, activation_bytes(core) if low is None else low))
