from __future__ import annotations

from math import cos, pi, radians, sin

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging import stack
from posttrain.merging.methods.slerp import SlerpConfig
from tests.merging.oracle import mergekit
from tests.merging.tensors import SHAPES, apart, drawn, merged


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0, 1.5])
def test_the_angle_changes_evenly(t: float) -> None:
    made = merged(SlerpConfig(t=t), [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])])
    assert made.tolist() == pytest.approx([2 * cos(t * pi / 2), 2 * sin(t * pi / 2)], abs=1e-6)


def test_nearly_parallel_models_are_joined_by_a_line_unless_told_otherwise() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([cos(radians(1)), sin(radians(1))])
    line = merged(SlerpConfig(t=0.5), [a, b])
    arc = merged(SlerpConfig(t=0.5, lerp_above=1.0), [a, b])
    assert torch.equal(line, a + (b - a) * 0.5)
    assert float(line.double().norm()) < 1 - 3e-5
    assert float(arc.double().norm()) == pytest.approx(1, abs=1e-7)


def test_t_may_differ_by_layer() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    config = SlerpConfig(t=[{"filter": "mlp", "value": 1}, {"value": 0}])
    assert torch.equal(merged(config, [a, b], name="layers.0.mlp.weight"), b)
    assert torch.equal(merged(config, [a, b], name="layers.0.attn.weight"), a)


@pytest.mark.parametrize("far", [0.001, 0.3, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_mergekits(shape: tuple[int, ...], far: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256)
    for t in (0.0, 0.3, 1.0, -0.2):
        a, b = drawn(shape, 2, base=False, far=far)
        assert apart(merged(SlerpConfig(t=t), [a, b]), mergekit("slerp", [b], a, {}, {"t": t})) < 1e-6


@pytest.mark.parametrize("scale", [0.0, 1e-9])
def test_tensors_without_a_length_are_as_in_mergekit(scale: float) -> None:
    a, b = drawn((4, 4), 2, base=False)
    for one, other in ((a * scale, b), (a, b * scale)):
        assert apart(merged(SlerpConfig(t=0.3), [one, other]), mergekit("slerp", [other], one, {}, {"t": 0.3})) < 1e-6


@pytest.mark.parametrize("config", [SlerpConfig(t=0.3), SlerpConfig(t=0.3, lerp_above=1.0)])
def test_the_same_model_twice_is_that_model(config: SlerpConfig) -> None:
    (a,) = drawn((64, 48), 1, base=False)
    assert torch.equal(merged(config, [a, a]), a)


def test_the_angle_of_nearly_equal_models_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.merging.sources import MemoryModel
    from posttrain.merging.stack import Block, Stack
    from posttrain.merging.values import Place

    a, b = (MemoryModel({"w": one}) for one in drawn((512, 700), 2, base=False, far=1e-3))

    def read(first: int, count: int) -> Block:
        both = torch.empty(2, count, 700)
        a.rows("w", first, both[0])
        b.rows("w", first, both[1])
        return Block(first, None, both)

    products = Stack(Place("w", 0.0), (512, 700), 512, 700, ("a", "b"), read, has_base=False).products()
    exact = torch.stack([one._held["w"].double().flatten() for one in (a, b)])
    exact = exact @ exact.T
    found, truth = (1 - float(one[0, 1] / (one[0, 0] * one[1, 1]).sqrt()) for one in (products, exact))
    assert 0.5e-6 < truth < 1.5e-6
    assert found == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("given", [{"t": float("nan")}, {"lerp_above": 1.5}, {"lerp_above": -0.1}])
def test_bad_options(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SlerpConfig.model_validate(given)
