from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.merging.engine import in_memory
from posttrain.merging.methods.linear import LinearConfig

A = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([1.0, 0.0])}
B = {"w": torch.tensor([[5.0, 2.0], [-1.0, 0.0]]), "b": torch.tensor([3.0, 0.5])}


def test_a_weighted_mean_by_hand() -> None:
    made = in_memory({"a": A, "b": B}, None, LinearConfig(weight={"a": 1.0, "b": 3.0}))
    assert torch.equal(made["w"], torch.tensor([[4.0, 2.0], [0.0, 1.0]]))
    assert torch.equal(made["b"], torch.tensor([2.5, 0.375]))


def test_without_normalisation_weights_are_as_they_are() -> None:
    made = in_memory({"a": A, "b": B}, None, LinearConfig(weight={"a": 1.0, "b": -0.5}, normalize=False))
    assert torch.equal(made["w"], torch.tensor([[-1.5, 1.0], [3.5, 4.0]]))


def test_weights_that_cancel_have_no_mean() -> None:
    with pytest.raises(ConfigError, match="the weights sum to 0 in w, so there is no mean; give other weights"):
        in_memory({"a": A, "b": B}, None, LinearConfig(weight={"a": 1.0, "b": -1.0}))
