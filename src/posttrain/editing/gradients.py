"""Second moments of gradients: which directions of a layer's output the model's predictions depend on.

    G = 1/P sum_s E[g_s g_s^T]      g_s: the gradient of the predictions with respect to the output at token s, (D,)

It is one of the two factors of the curvature (`models/kfac.py`); the second moment of keys is the other. Every token of
the texts but the first and the last is a position whose prediction counts, whatever follows it there. A few times D
tokens tell a D x D matrix, so of many texts evenly drawn ones are read: a backward pass takes longer than the forward
passes that the moments of keys need.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from posttrain.editing.moments import Moment
from posttrain.editing.sites import Site, Sites
from posttrain.errors import DataError, Problem
from posttrain.models.added import at_rest
from posttrain.models.examples import Example
from posttrain.models.kfac import kfac

__all__ = ["measure_gradients"]

TIMES = 16
"""Tokens that are read for each number of an output, about."""


def measure_gradients(sites: Sites, texts: Sequence[Sequence[int]], layers: Sequence[Site]) -> dict[int, Moment]:
    """Return the second moments of the gradients of several layers' outputs (D, D), by layer.

    Raise DataError if the texts have no token but their first and last ones, and PosttrainError if a number is not
    finite.
    """
    rows = [list(text) for text in texts if len(text) > 2]
    if not rows:
        raise DataError(Problem("gradients", "the texts have no tokens to measure gradients on", "give longer texts"))
    wanted = TIMES * max(min(sites.weight(site).shape) for site in layers)
    share = min(1.0, wanted / sum(map(len, rows)))
    count = max(1, round(share * len(rows)))
    drawn = [torch.tensor(rows[i * len(rows) // count]) for i in range(count)]
    examples = [Example(ids, torch.arange(1, len(ids) - 1), ids[2:]) for ids in drawn]
    names = [site.name for site in layers]
    with at_rest(sites.model):
        found = kfac(sites.model, names, examples, skip=1)
    return {site.layer: Moment(found[site.name].outputs, found[site.name].positions) for site in layers}
