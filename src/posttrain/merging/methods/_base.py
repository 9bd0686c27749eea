"""What all methods of merging have in common."""

from __future__ import annotations

from typing import ClassVar

from posttrain.config.base import Config
from posttrain.merging.values import PerModel

__all__ = ["DeltaConfig", "MergerConfig"]


class MergerConfig(Config):
    """A method of merging and its settings."""

    kind: str
    needs_base: ClassVar[bool] = False
    """Whether it needs the model that all others were made of."""
    takes_base: ClassVar[bool] = False
    """Whether it makes use of a base where there is one; true of all that need it."""
    models_at_least: ClassVar[int] = 1
    models_at_most: ClassVar[int | None] = None
    """How many models it takes, without the base."""
    surveys: ClassVar[int] = 0
    """How often all tensors are read before any is merged; see `survey` of `engine.py`."""


class DeltaConfig(MergerConfig):
    """A method that adds up what the models changed of their base."""

    needs_base: ClassVar[bool] = True
    takes_base: ClassVar[bool] = True
    weight: PerModel = 1.0
    """How much of each model's difference from the base is added: a number, a gradient over the layers, filters, or one
    of these for each model."""
    scale: PerModel = 1.0
    """What the sum of the differences is multiplied by (lambda of the papers)."""
