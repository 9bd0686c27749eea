"""Rounded weights as a method: what it starts from is rounded, and the product is that model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from posttrain.models.load import load_model
from posttrain.models.perturbed import round_weights
from posttrain.studies.candidates import CellContext
from posttrain.studies.methods.round import RoundConfig, round_
from tests.studies.conftest import TRAIN
from tests.studies.methods.test_train import bench_of
from tests.studies.test_run import go, results


def test_the_model_that_it_starts_from_is_rounded(make_study: Callable[..., Path], tmp_path: Path) -> None:
    make_study()
    bench = bench_of(tmp_path)
    moved = bench.another("moved", bench.working())
    for parameter in moved.loaded.model.parameters():
        parameter.data = parameter.data * 1.5
    cell = CellContext(changes=(), seed=0, folder=tmp_path / "cell", bench=moved, untouched=bench, keep="final")
    (end,) = round_(RoundConfig(to="int4"), cell)
    assert end.product is not None
    wanted = dict(moved.loaded.model.named_parameters())
    kept = dict(load_model(str(end.product), device="cpu").model.named_parameters())
    for name, parameter in wanted.items():
        if parameter.ndim == 2:
            assert not torch.equal(kept[name], parameter)  # the model that it starts from is not touched
    round_weights(moved.loaded.model, "int4")
    assert all(torch.equal(kept[name], parameter) for name, parameter in wanted.items())


def test_a_chain_ends_rounded(make_study: Callable[..., Path]) -> None:
    path = make_study(methods=[{"name": "chain", "steps": [TRAIN, {"kind": "round"}]}])
    outcome, _ = go(path)
    assert outcome.failed == []
    assert results(path)["methods"]["chain"]["steps"] == ["1-train", "2-round"]
