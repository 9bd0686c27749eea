from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from posttrain import registry
from posttrain.merging.engine import in_memory
from posttrain.merging.methods.task_arithmetic import TaskArithmeticConfig
from tests.merging.tensors import drawn, merged


def test_lines_let_differences_grow_with_depth() -> None:
    base, a = drawn((3, 4), 1)
    lines = TaskArithmeticConfig(lines={"alpha": 0.25, "beta": 0.5}, scale=2.0)
    for name, share in (("embed_tokens.weight", 0.25), ("lm_head.weight", 0.75)):
        assert torch.allclose(merged(lines, [a], base, name=name), base + 2 * share * (a - base))


def test_bad_lines() -> None:
    for given in ({"alpha": 0.1}, {"alpha": 0.1, "beta": float("inf")}):
        with pytest.raises(ValidationError):
            TaskArithmeticConfig.model_validate({"lines": given})


@pytest.mark.parametrize("kind", ["task_arithmetic", "ties", "dare_linear", "breadcrumbs_ties", "della"])
def test_lines_scale_the_differences_by_depth(kind: str) -> None:
    """LiNeS with alpha 0.5 and beta 0.5: half of the differences in the first layer, all of them in the last."""
    names = [f"model.layers.{n}.w.weight" for n in range(3)]
    base = {name: torch.zeros(2, 4) for name in names}
    model = {name: torch.ones(2, 4) for name in names}
    config = registry.load("merger", kind).config
    keep = {"density": 1.0} | ({"gamma": 0.0} if "gamma" in config.model_fields else {})
    keep |= {"epsilon": 0.0} if "epsilon" in config.model_fields else {}
    given = {key: value for key, value in keep.items() if key in config.model_fields}
    made = in_memory({"base": base, "a": model}, "base", config(**given, lines={"alpha": 0.5, "beta": 0.5}))
    assert [float(made[name].mean()) for name in names] == [0.5, 0.75, 1.0]
