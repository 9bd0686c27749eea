"""FT-L: FT that holds every weight near its start. Zhu et al. 2020, arXiv:2012.00363; Meng et al. 2022, appendix E.1.

    |W - W_0|_inf <= epsilon

After each step every number of the matrix is brought back to within epsilon of what it was before the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from posttrain.editing.editors._answers import prompt_last
from posttrain.editing.editors._base import EditContext, Figures
from posttrain.editing.editors._tuned import TunedConfig, tune_each
from posttrain.editing.edits import Edit
from posttrain.registry import register

__all__ = ["FtLConfig", "ft_l"]


class FtLConfig(TunedConfig):
    """FT within a small cube around the start."""

    kind: Literal["ft_l"] = "ft_l"
    """FT-L."""
    epsilon: float = Field(5e-4, gt=0)
    """Largest change of a weight; 5e-4 for GPT-2 XL, 5e-5 for GPT-J."""


@register("editor", "ft_l", config=FtLConfig, paper="arXiv:2012.00363")
def ft_l(config: FtLConfig, context: EditContext, edits: Sequence[Edit]) -> list[Figures]:
    """Train on one edit after another."""

    def hold(weight: Tensor, start: Tensor) -> None:
        weight.copy_(weight.clamp(start - config.epsilon, start + config.epsilon))

    return tune_each(config, context, edits, prompt_last, hold)
