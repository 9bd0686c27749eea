"""RAM+: as RAM, and what one model alone changed is strengthened, the more of its changes it shares with others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.merging.methods.ram import ChangesConfig, contributions
from posttrain.merging.stack import Apply, Block, Stack
from posttrain.registry import register

__all__ = ["RamPlusConfig", "ramplus_tl"]

Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RamPlusConfig(ChangesConfig):
    """Average each weight over the models that changed it, strengthen what only one changed."""

    surveys: ClassVar[int] = 1
    kind: Literal["ramplus_tl"] = "ramplus_tl"
    """Average each weight over the models that changed it, strengthen what only one changed."""
    r: Positive = 0.1
    """How much it is strengthened: a model's unique changes are multiplied by 1 + r * min(shared / unique, alpha)."""
    alpha: Positive = 0.2
    """At most so large counts the ratio of a model's shared changes to its unique ones."""
    ratio: Literal["tensor", "model"] = "tensor"
    """Whether that ratio is of each tensor (tl, tensor-local; mergekit), or of the whole model (RAM+ of the paper)."""

    def survey(self, number: int, stack: Stack, so_far: Any) -> Tensor | None:
        """Count a tensor's shared and unique changes, for the ratio of the whole model."""
        return shared_unique(self, stack) if self.ratio == "model" else None

    def surveyed(self, number: int, parts: Iterable[Tensor | None], so_far: Any) -> Tensor | None:
        """Add up the counts of all tensors."""
        total: Tensor | None = None
        for part in parts:
            if part is not None:
                total = part if total is None else total + part
        return total


def shared_unique(config: RamPlusConfig, stack: Stack) -> Tensor:
    """Return how many changes of each model others have, too, and how many only it has: (2, models), float64."""
    counts = torch.zeros(2, len(stack.models), dtype=torch.float64)
    for block in stack.blocks():
        changes, count = contributions(block, config.epsilon)
        has = changes.sign_().abs_().flatten(1)
        every = has.sum(1, dtype=torch.float64)
        unique = has.mul_(_once(count).view(-1)).sum(1, dtype=torch.float64)
        counts += torch.stack([every - unique, unique])
    return counts


def _once(count: Tensor) -> Tensor:
    """Return 1 where one model has a change, 0 where several have; 1 where none has. In the count's place."""
    return count.neg_().add_(2).clamp_(min=0, max=1)


@register("merger", "ramplus_tl", config=RamPlusConfig, paper="arXiv:2601.13572")
def ramplus_tl(config: RamPlusConfig, stack: Stack) -> Apply:
    """Return the function that merges a block: as `ram`, but what only model i changed is times 1 + r * ratio_i."""
    shared, unique = stack.survey if config.ratio == "model" else shared_unique(config, stack)
    more = (config.r * (shared / unique.clamp(min=1)).clamp(max=config.alpha)).tolist()
    scale = stack.value(config.scale)

    def apply(block: Block) -> Tensor:
        assert block.base is not None
        changes, count = contributions(block, config.epsilon)
        extra = changes[0] * more[0]
        for own, times in zip(changes[1:], more[1:], strict=True):
            extra.add_(own, alpha=times)
        total = changes[0]
        for own in changes[1:]:
            total.add_(own)
        total.div_(count.clamp(min=1)).add_(extra.mul_(_once(count)))
        return block.base.add_(total, alpha=scale)

    return apply
