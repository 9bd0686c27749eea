"""FT-M: fine-tune one matrix on each edit, token by token. Zhang et al. 2024, arXiv:2401.01286.

Adam on the output matrix of one layer, edit after edit, with the usual cross-entropy over the answer. It is the strong
one of the two simple baselines (KnowEdit).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from posttrain.editing.editors._answers import answers_of
from posttrain.editing.editors._base import EditContext, Figures
from posttrain.editing.editors._tuned import TunedConfig, tune_each
from posttrain.editing.edits import Edit
from posttrain.registry import register

__all__ = ["FtMConfig", "ft_m"]


class FtMConfig(TunedConfig):
    """Fine-tune one matrix on each edit, token by token."""

    kind: Literal["ft_m"] = "ft_m"
    """FT-M."""


@register("editor", "ft_m", config=FtMConfig, paper="arXiv:2401.01286")
def ft_m(config: FtMConfig, context: EditContext, edits: Sequence[Edit]) -> list[Figures]:
    """Train on one edit after another."""
    return tune_each(config, context, edits, answers_of)
