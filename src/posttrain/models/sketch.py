"""A sketch of a model's weights: a few numbers of each parameter, by which a model with any part changed is known.

Fingerprints of bases read some numbers of each parameter, so that they cost nothing; a change of the others passes. The
deltas of edits are exact for one base alone, so their folder holds a sketch of it, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["differs", "sketch"]

SKETCHES = 4
"""Sums of each parameter in a sketch."""
SAME = 0.01
"""The share of a parameter's norm by which its sums may differ: ten times what rounding to bfloat16 does."""
ROWS = 4096
"""Rows of a parameter that are turned into float32 at a time."""


def sketch(model: PreTrainedModel) -> dict[str, list[float]]:
    """Return a few numbers of every parameter, of which each depends on all of the parameter's numbers: its norm, and
    `SKETCHES` sums s^T W c with random signs s and c (W: the parameter as a matrix of rows). If W changes by D, a sum
    changes by about the norm of D, so a change of any part of a parameter is seen; rounding to bfloat16 changes it by
    a thousandth of the norm of W.
    """
    found: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    signs: dict[int, Tensor] = {}

    def random_signs(count: int) -> Tensor:
        if count not in signs:
            signs[count] = torch.randint(0, 2, (count, SKETCHES), generator=generator.manual_seed(count)) * 2.0 - 1.0
        return signs[count]

    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters(), key=itemgetter(0)):
            table = parameter.detach().reshape(len(parameter) if parameter.dim() > 1 else 1, -1)
            sums, square = torch.zeros(SKETCHES, dtype=torch.float64), 0.0
            rows, columns = random_signs(len(table)), random_signs(table.shape[1]).to(table.device)
            for first in range(0, len(table), ROWS):
                part = table[first : first + ROWS].float()
                sums += ((part @ columns).cpu().double() * rows[first : first + ROWS]).sum(0)
                square += float(part.square().sum(dtype=torch.float64))
            found[name] = [square**0.5, *sums.tolist()]
    return found


def differs(known: Mapping[str, Sequence[float]] | None, model: PreTrainedModel) -> str | None:
    """Return the first parameter of a model that is another than when its sketch was made; None if none is, or if there
    is no sketch. Parameters that only one of them has do not count.
    """
    if known is None:
        return None
    found = sketch(model)
    for name in sorted(known.keys() & found.keys()):
        one, other = known[name], found[name]
        far = max(abs(a - b) for a, b in zip(one, other, strict=True))
        if not far <= SAME * max(one[0], other[0]):
            return name
    return None
