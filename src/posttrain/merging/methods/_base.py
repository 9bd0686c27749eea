"""What all methods of merging have in common."""

from __future__ import annotations

from typing import ClassVar

from posttrain.config.base import Config
from posttrain.merging.stack import Stack
from posttrain.merging.values import Graded, Number, PerModel

__all__ = ["DeltaConfig", "Lines", "MergerConfig", "scale_of"]


class MergerConfig(Config):
    """A method of merging and its settings."""

    kind: str
    needs_base: ClassVar[bool] = False
    """Whether it needs the model that all others were made of."""
    may_have_base: ClassVar[bool] = False
    """Whether it does something else when it is given a base, which it does not need."""
    models_at_least: ClassVar[int] = 1
    models_at_most: ClassVar[int | None] = None
    """How many models it takes, without the base."""
    whole: ClassVar[bool] = False
    """Whether it holds a whole matrix of every model in memory."""
    surveys: ClassVar[int] = 0
    """How often all tensors are read before any is merged; see `survey` of `engine.py`."""


class Lines(Config):
    """Differences that grow with the depth of the layer (LiNeS, arXiv:2410.17146)."""

    alpha: Number
    """What those of the first layer, and of all that is before it, are multiplied by."""
    beta: Number
    """What is added to that until the last layer, evenly."""


class DeltaConfig(MergerConfig):
    """A method that adds up what the models changed of their base."""

    needs_base: ClassVar[bool] = True
    weight: PerModel = 1.0
    """How much of each model's difference from the base is added: a number, a gradient over the layers, filters, or one
    of these for each model."""
    scale: Graded = 1.0
    """What the sum of the differences is multiplied by (lambda of the papers)."""
    lines: Lines | None = None
    """Multiply the differences of each layer by alpha + beta * depth, its depth from 0 (the first layer) to 1 (the
    last), so that what early layers know is kept (LiNeS)."""


def scale_of(config: DeltaConfig, stack: Stack) -> float:
    """Return what the sum of the differences is multiplied by in a tensor: `scale`, and the growth of `lines`."""
    scale = stack.value(config.scale)
    return scale if config.lines is None else scale * (config.lines.alpha + config.lines.beta * stack.place.depth)
