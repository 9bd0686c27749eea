"""FT: fine-tune one matrix on each edit, as the baseline of ROME does. arXiv:2202.05262, appendix E.1.

Adam on the output matrix of one layer, edit after edit. As published, all tokens of the answer are predicted from the
prompt's last token, so only the first one is learned as it will be said; `ft_m` learns the answer token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from posttrain.editing.editors._answers import prompt_last
from posttrain.editing.editors._base import EditContext, Figures
from posttrain.editing.editors._tuned import TunedConfig, tune_each
from posttrain.editing.edits import Edit
from posttrain.registry import register

__all__ = ["FtConfig", "ft"]


class FtConfig(TunedConfig):
    """Fine-tune one matrix on each edit."""

    kind: Literal["ft"] = "ft"
    """FT."""


@register("editor", "ft", config=FtConfig, paper="arXiv:2202.05262")
def ft(config: FtConfig, context: EditContext, edits: Sequence[Edit]) -> list[Figures]:
    """Train on one edit after another."""
    return tune_each(config, context, edits, prompt_last)
