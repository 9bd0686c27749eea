from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.merging import stack
from posttrain.merging.methods.multislerp import MultislerpConfig
from tests.merging.oracle import mergekit
from tests.merging.tensors import SHAPES, apart, drawn, merged


def test_mean_direction_and_mean_length() -> None:
    made = merged(MultislerpConfig(), [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])])
    assert made.tolist() == pytest.approx([3 / 2**0.5, 3 / 2**0.5])


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_mergekits(shape: tuple[int, ...], based: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256)
    for weights in ((1.0, 1.0), (0.2, 0.7, 1.5), (2.0, -0.5)):
        base, *models = drawn(shape, len(weights))
        for normalize in (True, False):
            config = MultislerpConfig(weight={str(i): one for i, one in enumerate(weights)}, normalize=normalize)
            made = merged(config, models, base if based else None)
            flags = {"normalize_weights": normalize}
            right = mergekit("multislerp", models, base if based else None, {"weight": weights}, flags)
            assert apart(made, right) < 1e-6


def test_a_model_without_length_counts_in_the_length_alone() -> None:
    a, b = drawn((4, 4), 2, base=False)
    for tiny in (0.0, 1e-8):
        made = merged(MultislerpConfig(), [a * tiny, b])
        assert apart(made, mergekit("multislerp", [a * tiny, b], None, {"weight": (1.0, 1.0)}, {})) < 1e-6


def test_opposite_models_have_no_mean_but_for_a_line_between_two() -> None:
    a = torch.tensor([2.0, 0.0])
    for base in (None, torch.ones(2)):
        given = [a, -a] if base is None else [base + a, base - a]
        assert torch.equal(merged(MultislerpConfig(), given, base), given[0] - a)
        assert torch.equal(mergekit("multislerp", given, base, {"weight": (1.0, 1.0)}, {}), given[0] - a)
    with pytest.raises(ConfigError, match="the directions of the models cancel in w, so there is no mean; give other"):
        merged(MultislerpConfig(weight={"2": 0.0}), [a, -a, a])


@pytest.mark.parametrize("based", [False, True])
def test_the_same_models_are_that_model(based: bool) -> None:
    base, a = drawn((64, 48), 1)
    for weights in ({"0": 1.0}, {"0": 0.3, "1": 0.9, "2": 0.1}):
        assert torch.equal(merged(MultislerpConfig(weight=weights), [a, a, a], base if based else None), a)
    assert torch.equal(merged(MultislerpConfig(), [base, base], base), base)
    assert torch.equal(merged(MultislerpConfig(), [a], base), a)
    zero = torch.zeros(3, 3)
    assert torch.equal(merged(MultislerpConfig(), [zero, zero]), zero)


def test_weights_that_cancel_have_no_mean() -> None:
    a, b = drawn((4, 4), 2, base=False)
    with pytest.raises(ConfigError, match="the weights sum to 0 in w"):
        merged(MultislerpConfig(weight={"0": 1.0, "1": -1.0}), [a, b])
