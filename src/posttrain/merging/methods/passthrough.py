"""One model as it is, or multiplied: for models put together of slices, and for arithmetic on single layers."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.stack import Apply, Block, Stack
from posttrain.merging.values import PerModel
from posttrain.registry import register

__all__ = ["PassthroughConfig", "passthrough"]


class PassthroughConfig(MergerConfig):
    """One model."""

    models_at_most: ClassVar[int | None] = 1
    kind: Literal["passthrough"] = "passthrough"
    """One model as it is."""
    scale: PerModel = 1.0
    """What its numbers are multiplied by."""


@register("merger", "passthrough", config=PassthroughConfig)
def passthrough(config: PassthroughConfig, stack: Stack) -> Apply:
    """Return the function that gives the block of the model, times the scale."""
    (scale,) = stack.values(config.scale)

    def apply(block: Block) -> Tensor:
        return block.models[0] if scale == 1 else block.models[0].mul_(scale)

    return apply
