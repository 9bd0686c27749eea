"""LoReFT: a low-rank change of hidden states at a few positions of the prompt. Wu et al. 2024, arXiv:2404.03592.

    Phi(h) = h + R^T (W h + b - R h),   R, W: (r, d),   b: (r,),   the rows of R orthonormal

It is put after chosen layers, at the first p and the last s positions of the prompt. Nothing is computed for the tokens
of the answer, so decoding is as fast as without it. W = R and b = 0 at the start, so that the outputs are exactly those
of the original model. (The authors' code draws W at random.) It depends on positions, and no weights have this effect:
it cannot be merged. `models/marks.py` says how training and inference know the positions.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from transformers import PreTrainedModel

from posttrain.models.added import attach
from posttrain.models.loreft import Loreft
from posttrain.registry import register
from posttrain.tuners._prompted import AtPrompts

__all__ = ["LoreftConfig", "loreft"]


class LoreftConfig(AtPrompts):
    """Train changes of hidden states in low-rank subspaces."""

    kind: Literal["loreft"] = "loreft"
    """Low-rank linear subspace ReFT."""
    rank: int = Field(8, ge=1)
    """Rank r: dimensions of each subspace."""
    share: Literal["all", "ends", "none"] = "all"
    """Which positions share parameters: `all` of a layer (the paper's tied); `ends`: the prefix and the suffix have
    their own; `none`: each position has its own (the paper's untied)."""
    layers: list[int] | None = None
    """Only after layers with these numbers; negative ones count from the output (`[-1, -2]`: the top two). All when
    left out."""
    seed: int = 0
    """Seed of R at the start."""


@register("tuner", "loreft", config=LoreftConfig, paper="arXiv:2404.03592")
def loreft(model: PreTrainedModel, config: LoreftConfig) -> PreTrainedModel:
    """Freeze the model, put the changes into it (in place), and return the same model. A new head is trained too.

    Raise PosttrainError for layers that do not exist, a rank above the width, and models whose layers do not give
    hidden states.
    """
    attach(model, Loreft(model, config.model_dump(exclude={"kind"})))
    return model
