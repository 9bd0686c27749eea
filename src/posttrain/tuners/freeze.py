"""Freezing: the layers nearest to the output move, or parameters chosen by name, and nothing else.

This is the oldest cheap tuner. Lower layers hold what languages share, and upper layers hold what a task needs (Howard
and Ruder 2018, arXiv:1801.06146; Lee et al. 2019, arXiv:1911.03090: a quarter of the layers is nearly enough). The
trained parameters are float32.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from posttrain.config.base import Config
from posttrain.errors import ConfigError, Problem
from posttrain.models.layers import layers_of
from posttrain.registry import register
from posttrain.tuners._parts import float_masters, head_of, is_causal, norms_of

__all__ = ["FreezeConfig", "freeze", "matching"]

NAMED = 12
"""The number of parameter names that a message lists."""


class FreezeConfig(Config):
    """Train the layers nearest to the output, or parameters by name."""

    kind: Literal["freeze"] = "freeze"
    """Some parameters move, the others are frozen."""
    top: int | None = Field(None, ge=0)
    """How many layers, counted from the output; 2 when nothing else is chosen."""
    head: bool = False
    """The output head too. A head that is tied to the embeddings moves them. New heads (classification, tagging,
    answer spans) move in any case."""
    norms: bool = False
    """Normalisation layers too, all of them."""
    pattern: str | list[str] = Field(default_factory=list)
    """Parameters by full name: one pattern such as `*.mlp.*` or a list; after `re:` a regular expression."""

    @model_validator(mode="after")
    def _patterns_are_readable(self) -> FreezeConfig:
        for pattern in self.patterns:
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ValueError(f"pattern '{pattern}': {error}") from error
        return self

    @property
    def patterns(self) -> list[str]:
        """Return `pattern` as a list."""
        return [self.pattern] if isinstance(self.pattern, str) else self.pattern


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names that match a pattern: a shell pattern of the whole name, or, after `re:`, a regular expression.
    A regular expression may match any part of a name.
    """
    if pattern.startswith("re:"):
        return [name for name in names if re.search(pattern[3:], name)]
    return fnmatch.filter(names, pattern)


@register("tuner", "freeze", config=FreezeConfig)
def freeze(model: PreTrainedModel, config: FreezeConfig) -> PreTrainedModel:
    """Freeze all but the chosen parameters, in place; return the same model.

    Raise ConfigError when the model has fewer layers than `top`, a pattern matches no name, or nothing is chosen.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = layers_of(model) if config.top or not config.patterns else []
    top = config.top
    if top is None:
        top = 0 if config.head or config.norms or config.patterns else min(2, len(layers))
    problems = []
    if top > len(layers):
        problems.append(Problem("tuner.top", f"{top} layers are asked for, the model has {len(layers)}"))
    chosen = {name for layer in layers[len(layers) - top :] for name in names if name.startswith(f"{layer}.")}
    for pattern in config.patterns:
        found = matching(names, pattern)
        if not found:
            listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
            problems.append(Problem("tuner.pattern", f"'{pattern}' is the name of no parameter", f"there are {listed}"))
        chosen.update(found)
    if config.head or not is_causal(model):
        chosen.update(head_of(model))
    if config.norms:
        chosen.update(norms_of(model))
    if not chosen and not problems:
        problems.append(Problem("tuner", "nothing would move", "give top, head, norms or pattern"))
    if problems:
        raise ConfigError(*problems)
    return float_masters(model, chosen)
