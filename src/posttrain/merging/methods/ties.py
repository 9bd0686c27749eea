"""TIES: small differences from the base are trimmed, a sign is elected for each weight, and those that agree merged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from posttrain.merging.magnitude import ALL, BINS, FINE, NONE, Cut, Top, coarse, cut_in, cuts, fine, locate
from posttrain.merging.methods._masked import ElectConfig, Share, agreed, ranks_of
from posttrain.merging.stack import Apply, Stack
from posttrain.registry import register

__all__ = ["TiesConfig", "ties"]

Group = tuple[int, float]
"""The tensors of one model that have the same density: the number of the model, and the density."""


class _Counts(NamedTuple):
    """What the first survey finds of a group. size: the numbers of its tensors; bins: those that are not empty; counts:
    of these.
    """

    size: int
    bins: Tensor
    counts: Tensor


class _Spot(NamedTuple):
    """Where the cut of a group is. rank: of it; bin: in which it is; above: the numbers in the bins above."""

    rank: int
    bin: int
    above: int


class TiesConfig(ElectConfig):
    """Trim, elect signs, merge what agrees."""

    surveys: ClassVar[int] = 2
    kind: Literal["ties"] = "ties"
    """Trim, elect signs, merge what agrees."""
    density: Share = 0.2
    """The share of each model's differences that is kept, the largest ones."""
    trim: Literal["model", "tensor"] = "model"
    """Of what they are the largest: of the whole model (of all tensors that have the same density), or of each tensor.
    """
    compat: Literal["paper", "mergekit", "peft"] = "paper"
    """paper: all differences are kept that are as large as the smallest one within the share, and the sum is divided by
    the number of models that agree. mergekit, peft: each tensor is trimmed by itself, to exactly int(density * numbers)
    differences; mergekit divides by the sum of the weights of the models that agree, and peft elects signs by the
    differences without their weights."""

    def survey(self, number: int, stack: Stack, so_far: Any) -> dict[Group, Any]:
        """Count the magnitudes of one tensor for trimming over the whole model: first those of all bins, then those
        within the bin of the cut.
        """
        if not over_model(self):
            return {}
        densities = stack.values(self.density)
        groups = {model: (model, density) for model, density in enumerate(densities) if 0 < density < 1}
        width = FINE if number else BINS
        counts = {group: torch.zeros(width, dtype=torch.int64) for group in groups.values()}
        for block in stack.blocks() if groups else ():
            changes = block.differences()
            for model, group in groups.items():
                if number:
                    fine(changes[model], so_far[group].bin, counts[group])
                else:
                    coarse(changes[model], counts[group])
        if number:
            return counts
        full = {group: torch.nonzero(own).view(-1) for group, own in counts.items()}
        size = stack.rows * stack.columns
        return {group: _Counts(size, full[group], own[full[group]]) for group, own in counts.items()}

    def surveyed(self, number: int, parts: Iterable[dict[Group, Any]], so_far: Any) -> dict[Group, Any]:
        """Join what the tensors have given: to the bins of the cuts first, then to the cuts."""
        counts: dict[Group, Tensor] = {}
        sizes: dict[Group, int] = {}
        for part in parts:
            for group, own in part.items():
                if number:
                    counts.setdefault(group, torch.zeros(FINE, dtype=torch.int64)).add_(own)
                else:
                    counts.setdefault(group, torch.zeros(BINS, dtype=torch.int64)).index_add_(0, own.bins, own.counts)
                    sizes[group] = sizes.get(group, 0) + own.size
        if number:
            return {group: cut_in(*_Spot(*so_far[group]), own) for group, own in counts.items()}
        found = {}
        for group, own in counts.items():
            (rank,) = ranks_of([group[1]], sizes[group])
            found[group] = _Spot(rank, *locate(own, rank))
        return found


def over_model(config: TiesConfig) -> bool:
    """Return whether differences are trimmed over the whole model."""
    return config.trim == "model" and config.compat == "paper"


@register("merger", "ties", config=TiesConfig, paper="arXiv:2306.01708")
def ties(config: TiesConfig, stack: Stack) -> Apply:
    """Return the function that merges a block: base + scale * mean of those w_i trim(model_i - base) that have the sign
    of their sum. A sum of zero counts as positive.
    """
    densities = stack.values(config.density)
    if over_model(config):
        ends = {0.0: NONE, 1.0: ALL}
        found: list[Cut] = [
            ends[density] if density in ends else stack.survey[model, density]
            for model, density in enumerate(densities)
        ]
    else:
        size = stack.rows * stack.columns
        ranks = [[rank] for rank in ranks_of(densities, size)]
        found = [own[0] for own in cuts(lambda: (block.differences() for block in stack.blocks()), ranks, size)]
    tops = [Top(cut, exact=config.compat != "paper") for cut in found]

    def thin(first: int, changes: Tensor) -> None:
        for own, top in zip(changes, tops, strict=True):
            top.keep_(own)

    return agreed(config, stack, thin, compat=config.compat)
