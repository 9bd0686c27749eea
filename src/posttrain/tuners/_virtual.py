"""Define the shared settings of PEFT's virtual tokens, without an import of torch or PEFT."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from posttrain.config.base import Config


class VirtualTokens(Config):
    """Virtual tokens that take positions of the model in front of every row."""

    recomputable: ClassVar[bool] = True
    """Whether layers may be run again in the backward pass (activation checkpointing)."""

    tokens: int = Field(16, ge=1)
    """Virtual tokens P in front of every row."""
    seed: int = 0
    """Seed of the start."""
