"""The base, and a weighted sum of what each model changed of it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from posttrain.merging.methods._base import DeltaConfig, scale_of
from posttrain.merging.stack import Apply, Block, Stack, moved
from posttrain.registry import register

__all__ = ["TaskArithmeticConfig", "task_arithmetic"]


class TaskArithmeticConfig(DeltaConfig):
    """Task vectors added to the base."""

    kind: Literal["task_arithmetic"] = "task_arithmetic"
    """Task vectors, added."""
    normalize: bool = False
    """Divide by the sum of the weights."""


@register("merger", "task_arithmetic", config=TaskArithmeticConfig, paper="arXiv:2212.04089")
def task_arithmetic(config: TaskArithmeticConfig, stack: Stack) -> Apply:
    """Return the function that adds weighted differences: base + scale * sum_i w_i (model_i - base)."""
    weights = stack.values(config.weight)
    scale = scale_of(config, stack) / ((sum(weights) or 1.0) if config.normalize else 1.0)
    weights = [scale * weight for weight in weights]

    def apply(block: Block) -> Tensor:
        assert block.base is not None
        return moved(block.base, block.models, weights)

    return apply
