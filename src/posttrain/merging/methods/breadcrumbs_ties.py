"""Model Breadcrumbs with TIES: the largest and the smallest differences are masked, those that agree in sign merged."""

from __future__ import annotations

from typing import ClassVar, Literal

from posttrain.merging.methods._masked import ElectConfig, Share, agreed, windowed
from posttrain.merging.stack import Apply, Stack
from posttrain.registry import register

__all__ = ["BreadcrumbsTiesConfig", "breadcrumbs_ties"]


class BreadcrumbsTiesConfig(ElectConfig):
    """Mask outliers and small differences, elect signs, merge what agrees."""

    usual: ClassVar[bool] = False
    kind: Literal["breadcrumbs_ties"] = "breadcrumbs_ties"
    """Mask outliers and small differences, elect signs, merge what agrees."""
    density: Share = 0.14
    """The share of each tensor's differences that is kept (gamma less beta of the paper)."""
    gamma: Share = 0.01
    """The share of the largest ones that is dropped (1 less gamma of the paper); fewer where not so many are left."""
    compat: Literal["paper", "mergekit"] = "paper"
    """The sum of what agrees is divided by the number of models that agree (paper, of TIES), or not divided; with
    normalize by the sum of their weights (mergekit)."""


@register("merger", "breadcrumbs_ties", config=BreadcrumbsTiesConfig, paper="arXiv:2312.06795")
def breadcrumbs_ties(config: BreadcrumbsTiesConfig, stack: Stack) -> Apply:
    """Return the function that merges a block: as `ties`, but with the masks of `breadcrumbs`."""
    thin = windowed(stack, stack.values(config.density), stack.values(config.gamma))
    return agreed(config, stack, thin, compat=config.compat)
