from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.merging import stack
from posttrain.merging.methods.nearswap import NearswapConfig
from tests.merging.oracle import mergekit
from tests.merging.tensors import SHAPES, apart, drawn, merged


def test_by_hand() -> None:
    a, b = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.25, 3.0, 0.0, 1.0])
    assert torch.equal(merged(NearswapConfig(t=0.5), [a, b]), torch.tensor([1.25, 1.5, 0.5, 1.0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_mergekits(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256)
    for far in (1e-6, 0.3):
        a, b = drawn(shape, 2, base=False, far=far)
        for t in (0.0, 1e-6, 0.01, 0.2, 100.0):
            assert apart(merged(NearswapConfig(t=t), [a, b]), mergekit("nearswap", [b], a, {}, {"t": t})) < 1e-6


def test_the_same_model_twice_is_that_model() -> None:
    (a,) = drawn((64, 48), 1, base=False)
    assert torch.equal(merged(NearswapConfig(), [a, a]), a)


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match=r"it is -0.1 in w; give 0 or more"):
        merged(NearswapConfig(t=-0.1), drawn((2, 2), 2, base=False))
