"""`pt.merge`: what it takes, and that what it loads is what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import posttrain as pt
from posttrain.errors import ConfigError
from tests.editing.lively import lively_folder


def test_models_are_merged_and_loaded(tmp_path: Path) -> None:
    folder = str(lively_folder())
    base = pt.load(folder)
    said: list[str] = []
    same = pt.merge("a + 0.5*(b - a)", {"a": base, "b": folder}, output=tmp_path / "same", say=said.append)
    assert same.folder is None or Path(same.folder) == tmp_path / "same"
    for (name, one), (_, other) in zip(base.model.named_parameters(), same.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    ties = {"kind": "ties", "density": 0.5}
    half = pt.merge(None, {"base": folder, "b": folder}, output=tmp_path / "ties", method=ties, dtype="bfloat16")
    assert half.model.config.dtype in (torch.bfloat16, torch.float32)
    assert half.ask("The capital of France") is not None


def test_what_is_wrong(tmp_path: Path) -> None:
    folder = str(lively_folder())
    for given, told in (
        ({"expression": "a + b", "models": {"a": folder, "b": folder}}, "the weights sum to 2 and not to 1"),
        ({"models": {"a": folder}}, "give an expression or a method, one of the two"),
        ({"expression": "a", "models": {"a": folder}, "dtyp": "x"}, "unknown key 'dtyp'; did you mean 'dtype'"),
    ):
        with pytest.raises(ConfigError, match=told):
            pt.merge(output=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
