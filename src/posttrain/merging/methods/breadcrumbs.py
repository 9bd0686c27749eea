"""Model Breadcrumbs: the largest and the smallest differences from the base are masked, the others added."""

from __future__ import annotations

from typing import Literal

from posttrain.merging.methods._masked import Share, SumConfig, summed, windowed
from posttrain.merging.stack import Apply, Stack
from posttrain.registry import register

__all__ = ["BreadcrumbsConfig", "breadcrumbs"]


class BreadcrumbsConfig(SumConfig):
    """Mask outliers and small differences, add the others."""

    kind: Literal["breadcrumbs"] = "breadcrumbs"
    """Mask outliers and small differences, add the others."""
    density: Share = 0.14
    """The share of each tensor's differences that is kept (gamma less beta of the paper)."""
    gamma: Share = 0.01
    """The share of the largest ones that is dropped (1 less gamma of the paper); fewer where not so many are left."""


@register("merger", "breadcrumbs", config=BreadcrumbsConfig, paper="arXiv:2312.06795")
def breadcrumbs(config: BreadcrumbsConfig, stack: Stack) -> Apply:
    """Return the function that merges a block: base + scale * sum_i w_i mask_i (model_i - base)."""
    return summed(config, stack, windowed(stack, stack.values(config.density), stack.values(config.gamma)))
