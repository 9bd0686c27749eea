from __future__ import annotations

from math import cos, radians, sin

import pytest
import torch
from pydantic import ValidationError

from posttrain.errors import ConfigError
from posttrain.merging import stack
from posttrain.merging.methods.karcher import KarcherConfig
from tests.merging.oracle import mergekit
from tests.merging.tensors import SHAPES, apart, drawn, merged


def at(*degrees: float) -> list[torch.Tensor]:
    return [torch.tensor([cos(radians(one)), sin(radians(one))]) for one in degrees]


def test_on_a_circle_it_is_the_mean_of_the_angles() -> None:
    config = KarcherConfig(max_iter=50, tol=1e-7)
    assert torch.allclose(merged(config, at(0, 30, 90)), at(40)[0])
    assert torch.allclose(merged(KarcherConfig(weight={"2": 3.0}), at(0, 30, 80)), at(54)[0], atol=1e-5)


def test_the_length_is_the_mean_length() -> None:
    a, b = at(0, 90)
    assert torch.allclose(merged(KarcherConfig(), [2 * a, 4 * b]), 3 * at(45)[0])


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("far", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_mergekits(shape: tuple[int, ...], far: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256)
    models = drawn(shape, count, base=False, far=far)
    assert apart(merged(KarcherConfig(), models), mergekit("karcher", models, None, {}, {})) < 1e-6
    flags = {"max_iter": 1, "tol": 1e-3}
    assert apart(merged(KarcherConfig(**flags), models), mergekit("karcher", models, None, {}, flags)) < 1e-6


def test_models_without_length_have_no_direction() -> None:
    a, b = drawn((4, 4), 2, base=False)
    given = [a * 0, a, b]
    assert apart(merged(KarcherConfig(), given), mergekit("karcher", given, None, {}, {})) < 1e-6
    assert torch.equal(merged(KarcherConfig(), [a * 0, b * 0]), a * 0)


def test_opposite_models_end() -> None:
    (a,) = drawn((4, 4), 1, base=False)
    assert torch.isfinite(merged(KarcherConfig(), [a, -a])).all()


def test_the_same_models_are_that_model() -> None:
    (a,) = drawn((64, 48), 1, base=False)
    assert torch.equal(merged(KarcherConfig(weight={"0": 0.3}), [a, a, a]), a)


def test_bad_options() -> None:
    for given in ({"max_iter": 0}, {"tol": 0}):
        with pytest.raises(ValidationError):
            KarcherConfig.model_validate(given)
    for weight in (-1.0, 0.0):
        with pytest.raises(ConfigError, match="give weights of 0 or more that are not all 0"):
            merged(KarcherConfig(weight=weight), at(0, 90))
