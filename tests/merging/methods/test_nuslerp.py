from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging import stack
from posttrain.merging.methods.nuslerp import NuslerpConfig
from tests.merging.oracle import mergekit
from tests.merging.tensors import SHAPES, apart, drawn, merged

FLAGS: dict[str, dict[str, Any]] = {
    "tensor": {},
    "row": {"nuslerp_flatten": False},
    "column": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
}


def test_weights_say_where_on_the_arc() -> None:
    made = merged(NuslerpConfig(weight={"0": 1, "1": 2}), [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])])
    assert made.tolist() == pytest.approx([1.0, 3**0.5])


def test_with_a_base_the_arc_is_between_differences() -> None:
    base = torch.tensor([10.0, 10.0])
    made = merged(NuslerpConfig(), [base + torch.tensor([2.0, 0.0]), base + torch.tensor([0.0, 2.0])], base)
    assert made.tolist() == pytest.approx([10 + 2**0.5, 10 + 2**0.5])


def test_rows_and_columns_have_their_own_angles() -> None:
    a, b = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    assert merged(NuslerpConfig(per="row"), [a, b]).flatten().tolist() == pytest.approx([2**0.5, 2**0.5, 1, 0])
    assert merged(NuslerpConfig(per="column"), [a.T, b.T]).flatten().tolist() == pytest.approx([2**0.5, 1, 2**0.5, 0])


@pytest.mark.parametrize("per", ["tensor", "row", "column"])
@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_mergekits(shape: tuple[int, ...], based: bool, per: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256)
    base, a, b = drawn(shape, 2)
    a.view(-1)[:4] = base.view(-1)[:4]
    for weights in ((1.0, 1.0), (0.2, 0.7), (1.0, -1.0), (2.0, -0.5)):
        given = {"0": weights[0], "1": weights[1]}
        made = merged(NuslerpConfig(weight=given, per=per), [a, b], base if based else None)
        right = mergekit("nuslerp", [a, b], base if based else None, {"weight": weights}, FLAGS[per])
        assert apart(made, right) < 1e-6


@pytest.mark.parametrize("per", ["tensor", "row", "column"])
@pytest.mark.parametrize("based", [False, True])
def test_the_same_model_twice_is_that_model(based: bool, per: Any) -> None:
    base, a = drawn((64, 48), 1)
    assert torch.equal(merged(NuslerpConfig(per=per), [a, a], base if based else None), a)
    assert torch.equal(merged(NuslerpConfig(per=per), [base, base], base), base)


def test_bad_options() -> None:
    with pytest.raises(ValidationError):
        NuslerpConfig.model_validate({"per": "channel"})
