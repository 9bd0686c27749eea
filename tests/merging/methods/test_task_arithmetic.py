from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

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
