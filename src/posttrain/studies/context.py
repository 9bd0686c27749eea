"""What a study hands to a method, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from posttrain.config.base import Config
from posttrain.config.change import Change

if TYPE_CHECKING:
    from posttrain.data.chat import Encoded
    from posttrain.inference.respondents import ModelRespondent, Respondent
    from posttrain.models.load import LoadedModel

__all__ = ["MethodContext", "MethodResult"]


class MethodResult(NamedTuple):
    """respondent: what takes the exam; cost: train_s, steps, tokens, peak_gib, ... as far as the method knows them;
    metrics: one line per training step; weights: where they were kept; notes: lines for the cell's card.
    """

    respondent: Respondent
    cost: Mapping[str, float] = {}
    metrics: Sequence[Mapping[str, Any]] = ()
    weights: Path | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class MethodContext:
    """One cell's surroundings.

    base: relative paths are relative to it; folder: the cell's; key: the cell's content hash;
    before: answers as the untouched model does; working: a fresh copy of that model, free to be changed;
    replay: makes (once per study) the rows of a replay config for a seed and a longest row;
    forbidden: every prompt of every exam of the study;
    examine: takes the exam in the middle of training, at a number of steps; every: how often, None for never.
    """

    change: Change
    seed: int
    base: Path
    folder: Path
    key: str
    before: ModelRespondent
    working: Callable[[], LoadedModel]
    replay: Callable[[Config, int, int], list[Encoded]]
    forbidden: frozenset[str]
    keep: Literal["none", "final", "all"] = "none"
    every: int | None = None
    examine: Callable[[Respondent, int], None] | None = None
    say: Callable[[str], None] = print
    on_step: Callable[[Mapping[str, Any]], None] = field(default=lambda _: None)
