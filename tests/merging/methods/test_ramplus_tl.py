from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging.engine import in_memory
from posttrain.merging.methods.ramplus_tl import RamPlusConfig
from tests.merging.given import CASES, far, made, merged
from tests.merging.oracle import mergekit

BASE = torch.zeros(4)
A = torch.tensor([2.0, 1, 5, 0])
B = torch.tensor([4.0, 0, 0, 3])


def test_by_hand() -> None:
    """A shares one change and has two of its own, B one and one: 1 + 0.1 * 0.5 and 1 + 0.1 * 1."""
    made = merged(RamPlusConfig(r=0.1, alpha=2), BASE, [A, B])
    assert made.tolist() == pytest.approx([3, 1.05, 5.25, 3.3])
    made = merged(RamPlusConfig(r=0.1, alpha=0.2), BASE, [A, B])
    assert made.tolist() == pytest.approx([3, 1.02, 5.1, 3.06])


def test_the_ratio_of_the_whole_model() -> None:
    """With a second tensor A shares three changes and has two of its own, B three and one."""
    models = {"base": {"v": BASE[:2], "w": BASE}, "a": {"v": A[:2] + 1, "w": A}, "b": {"v": A[:2] + 1, "w": B}}
    made = in_memory(models, "base", RamPlusConfig(r=0.1, alpha=2, ratio="model"))
    assert made["w"].tolist() == pytest.approx([3, 1.15, 5.75, 3.6])
    assert made["v"].tolist() == [3, 2]


@pytest.mark.parametrize(("shape", "models"), CASES)
def test_as_mergekit(shape: tuple[int, ...], models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    for epsilon, r, alpha in ((1e-5, 0.1, 0.2), (0.5, 0.3, 5.0), (1.5, 1.0, 0.4)):
        theirs = mergekit("ramplus_tl", others, base, {}, {"epsilon": epsilon, "r": r, "alpha": alpha})
        assert far(merged(RamPlusConfig(epsilon=epsilon, r=r, alpha=alpha), base, others), theirs) < 1e-6


def test_models_that_are_the_same_merge_to_it() -> None:
    base, (model,) = made((30, 8), 1)
    base, model = base.bfloat16(), model.bfloat16()
    for ratio in ("tensor", "model"):
        config = RamPlusConfig.model_validate({"epsilon": 0, "ratio": ratio})
        assert torch.equal(merged(config, base, [base] * 3), base)
        for models in (1, 2, 3, 5):
            assert torch.equal(merged(config, base, [model] * models), model)


def test_bad_options() -> None:
    for wrong in ({"r": -1}, {"alpha": float("inf")}, {"ratio": "layer"}):
        with pytest.raises(ValidationError):
            RamPlusConfig.model_validate(wrong)
