"""The mean of models, drawn to the base as far as the angles between their changes say (Model Stock).

The nearest point to the centre of all models that training could have given is on the line from the base to the mean.
The wider the angles between what the models changed, the nearer it is to the base.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.methods._sphere import summed
from posttrain.merging.stack import Apply, Block, Stack, moved
from posttrain.registry import register

__all__ = ["ModelStockConfig", "model_stock"]

SINGULAR = 1e-6
"""Where 1 + (k - 1) cos is nearer to 0 than this, there is no such point, and the base is taken."""


class ModelStockConfig(MergerConfig):
    """A point between the base and the mean of the models."""

    needs_base: ClassVar[bool] = True
    models_at_least: ClassVar[int] = 2
    kind: Literal["model_stock"] = "model_stock"
    """Between base and mean, by angles."""
    per: Literal["tensor", "row"] = "tensor"
    """What has angles of its own: each tensor, or each of its output rows (mergekit's `filter_wise`)."""
    compat: Literal["paper", "mergekit"] = "paper"
    """`mergekit`: products of two lengths below 1e-6 count as 1e-6, which draws small changes to the base; rows are of
    the last dimension, not of all but the first."""


@register("merger", "model_stock", config=ModelStockConfig, paper="arXiv:2403.19522")
def model_stock(config: ModelStockConfig, stack: Stack) -> Apply:
    """Return the function that makes a block: t mean + (1 - t) base, t = k cos / (1 + (k - 1) cos), where cos is the
    mean cosine of the angles between what each pair of the k models changed (0 where one changed nothing).
    """
    count = len(stack.models)
    least = 1e-6 if config.compat == "mergekit" else 0.0
    if config.per == "tensor" or len(stack.shape) < 2:
        share = float(_share(stack.products(less_base=True), least))
        return summed([share / count] * count)
    columns = stack.shape[-1] if config.compat == "mergekit" else stack.columns

    def apply(block: Block) -> Tensor:
        assert block.base is not None
        base = block.base.view(-1, columns)
        first, *others = block.models.view(count, -1, columns)
        changes = [one - base for one in (first, *others)]
        products = torch.empty(count, count, len(base), 1, dtype=torch.float64)
        for i, left in enumerate(changes):
            for j, right in enumerate(changes[: i + 1]):
                products[i, j] = products[j, i] = (left * right).sum(1, keepdim=True).double()
        rest = (1 - _share(products, least)).float()
        mean = moved(first, others, [1 / count] * len(others))
        return mean.addcmul_(base.sub_(mean), rest).view(block.base.shape)

    return apply


def _share(products: Tensor, least: float) -> Tensor:
    """Return t, given the inner products of the changes (k, k, ...)."""
    count = len(products)
    lengths = [products[i, i].sqrt() for i in range(count)]
    cosines = []
    for i in range(count):
        for j in range(i):
            both = (lengths[i] * lengths[j]).clamp(min=least)
            cosines.append(torch.where(both > 0, products[i, j] / both, 0.0).clamp(-1, 1))
    cosine = torch.stack(cosines).mean(0)
    below = 1 + (count - 1) * cosine
    singular = below.abs() < SINGULAR
    return torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, below))
