"""Task vectors of models trained by reinforcement learning: leading directions and the rest, merged apart (ResMerge).

A task vector is t_i = H_i + R_i, with H_i its leading singular direction. The rests R_i agree more or less in
direction; merged, they are A = c^b |R| q, with q the mean of their directions, c how well they agree with it (1: all
alike), |R| their mean length, and b between two bounds, the smaller the more they agree. Where c is what chance would
give (1 / sqrt(N)), A is their mean. Leading directions conflict, so only a little of them is put back, and only where
they agree: C = rho S |A| H / |H|, with H their mean and S the mean of the cosines between them, negative ones counted
as 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.merging.methods._matrix import MatrixConfig, by_matrix, svd
from posttrain.merging.stack import Apply, Stack, inner
from posttrain.registry import register

__all__ = ["ResmergeConfig", "resmerge"]

KNOWN = re.compile(r"attn|attention|[qkvo]_proj|mlp|ffn|feed_forward|gate_proj|up_proj|down_proj")
"""Attention and feed-forward matrices. In all others the agreement of the rests counts as 0 for the choice of b."""
SHORT = 1e-8
"""What is at most this long has no direction."""


class ResmergeConfig(MatrixConfig):
    """Leading directions and rests of task vectors, merged apart."""

    kind: Literal["resmerge"] = "resmerge"
    """For models trained by reinforcement learning."""
    leading: int = Field(default=1, ge=1)
    """How many singular directions of each task vector are its leading part."""
    rho: float = Field(default=0.2, ge=0)
    """The length of the leading part that is put back, at most, as a share of the merged rests'."""
    beta_min: float = Field(default=0.7, ge=0)
    """b where the rests agree fully: the smaller it is, the longer is what they are merged to."""
    beta_max: float = Field(default=1.0, ge=0)
    """b where they do not agree at all."""


@register("merger", "resmerge", config=ResmergeConfig, paper="arXiv:2606.02252")
def resmerge(config: ResmergeConfig, stack: Stack) -> Apply:
    """Return the function that gives rows of base + scale * (A + C), made of all w_i (model_i - base)."""
    known = KNOWN.search(stack.place.name.lower()) is not None
    return by_matrix(config, stack, lambda changes: _merged(changes, config, known))


def _merged(changes: Sequence[Tensor], config: ResmergeConfig, known: bool) -> Tensor:
    count = len(changes)
    heads, rests = torch.stack(list(changes)), torch.stack(list(changes))
    for head in heads:
        left, values, right = svd(head, config.leading)
        head.copy_((left * values) @ right)
    rests.sub_(heads)
    between_rests, between_heads = inner(rests.flatten(1)), inner(heads.flatten(1))
    of_rests, length = _rests(between_rests, config, known)
    of_heads = torch.full((count,), 1.0 / count, dtype=torch.float64)
    mean = float((of_heads @ between_heads @ of_heads).clamp(min=0).sqrt())
    if mean > SHORT:
        agreed = float(_pairs(between_heads.clamp(min=0)))
        of_heads *= config.rho * agreed * length / mean
    else:
        of_heads.zero_()
    merged = torch.einsum("k,krc->rc", of_rests.float(), rests)
    return merged.add_(torch.einsum("k,krc->rc", of_heads.float(), heads))


def _rests(products: Tensor, config: ResmergeConfig, known: bool) -> tuple[Tensor, float]:
    """Return the weights of the rests, and the length of what they are merged to, given their inner products."""
    count = len(products)
    lengths = products.diagonal().clamp(min=0).sqrt()
    weights = torch.full((count,), 1.0 / count, dtype=torch.float64)
    directed = torch.where(lengths > SHORT, 1 / lengths.clamp(min=SHORT), 0.0)
    together = float((directed @ products @ directed).clamp(min=0).sqrt())
    agreed = min(together / count, 1.0)
    if agreed > 1 / count**0.5:
        score = ((_pairs(products) + 1) / 2 + (agreed + 1) / 2) / 2 if known else 0.0
        beta = config.beta_max - (config.beta_max - config.beta_min) * score
        weights = directed * (agreed**beta * float(lengths.mean()) / together)
    return weights, float((weights @ products @ weights).clamp(min=0).sqrt())


def _pairs(products: Tensor) -> float:
    """Return the mean cosine of all pairs, given their inner products; 1 if there is one alone."""
    count = len(products)
    if count == 1:
        return 1.0
    lengths = products.diagonal().clamp(min=0).sqrt()
    both = torch.outer(lengths, lengths)
    cosines = torch.where(both > SHORT**2, products / both.clamp(min=SHORT**2), 0.0)
    return float(cosines.triu(1).sum()) / (count * (count - 1) / 2)
