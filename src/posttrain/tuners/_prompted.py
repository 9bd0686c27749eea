"""Define the shared settings of parts that change tokens by their place in the prompt, without an import of torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from posttrain.config.base import Config


class AtPrompts(Config):
    """Changes of the first and the last tokens of the prompt. A row needs a prompt, and has one answer."""

    kind: str
    """Name of the tuner."""
    prefix: int = Field(0, ge=0, le=100)
    """The first p positions of the prompt are changed."""
    suffix: int = Field(8, ge=0, le=100)
    """The last s positions of the prompt are changed; in a short prompt these come first."""

    @model_validator(mode="after")
    def _somewhere(self) -> AtPrompts:
        if not self.prefix + self.suffix:
            raise ValueError("prefix and suffix are 0: no position is changed")
        return self
