"""FISH Mask: train the few parameters that matter most to the task. Sung, Nair & Raffel 2021, arXiv:2111.09839.

    F_i = mean over rows of (d log p(row) / d theta_i)^2,   mask = the largest F_i;   w' = w + mask * values

F is computed with the model before training. The result is saved as an adapter of indices and values, which can be
merged.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from transformers import PreTrainedModel

from posttrain.config.base import Config
from posttrain.models.added import attach
from posttrain.models.sparse import SparseChange
from posttrain.registry import register

__all__ = ["FishmaskConfig", "fishmask"]


class FishmaskConfig(Config):
    """Train a fixed sparse mask of the model's own parameters."""

    kind: Literal["fishmask"] = "fishmask"
    """FISH Mask."""
    share: float = Field(0.005, gt=0, le=1)
    """Of the model's parameters, those that move."""
    rows: int = Field(128, ge=1)
    """Rows of the task that the Fisher information is measured on, at most; drawn by the seed."""
    fisher: Literal["empirical", "sampled", "random"] = "empirical"
    """`empirical`: from the rows' own targets; `sampled`: from targets drawn from the model; `random`: a random mask,
    to compare with."""
    seed: int = 0
    """Seed of the rows and draws, or of the random mask."""


@register("tuner", "fishmask", config=FishmaskConfig, paper="arXiv:2111.09839")
def fishmask(model: PreTrainedModel, config: FishmaskConfig) -> PreTrainedModel:
    """Freeze the model, put a sparse change into it (in place), and return the same model. A new head is trained too.

    The trainer gives the added part the training rows before the first step (`training/assembly.py`); until then the
    mask is random.
    """
    attach(model, SparseChange(model, config.model_dump(exclude={"kind"})))
    return model
