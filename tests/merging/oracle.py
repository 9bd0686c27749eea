"""mergekit (LGPL, a dependency of the tests alone) as an oracle: the merged tensor of one of its methods, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def mergekit(
    method: str,
    models: Sequence[Tensor],
    base: Tensor | None,
    per_model: Mapping[str, Sequence[float]],
    shared: Mapping[str, Any],
) -> Tensor:
    """Return what mergekit makes of a tensor of several models. method: mergekit's name; per_model: parameter -> a value
    for each model, without the base's; shared: the parameters that all models have alike.
    """
    from mergekit.merge_methods import get
    from mergekit.merge_methods.base import TensorGroup

    given = [*([] if base is None else [base]), *models]
    names = [*([] if base is None else ["base"]), *(str(number) for number in range(len(models)))]
    group = TensorGroup.from_tensors(given, ids=names, base_index=None if base is None else 0, name="w")
    own = {name: {str(i): value for i, value in enumerate(values)} for name, values in per_model.items()}
    (made,) = get(method)((group,), parameters={**own, **shared})
    assert isinstance(made, Tensor)
    return made
