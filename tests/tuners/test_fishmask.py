"""FISH Mask under the trainer: the mask's places move and no other, weight decay included; saved, merged, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.models.load import load_model
from posttrain.models.sparse import SparseChange
from posttrain.training.assembly import show_rows
from posttrain.training.run import TrainResult, train
from posttrain.tuners.fishmask import FishmaskConfig, fishmask
from tests.training.tiny import PicoPath, Remembers, config, load, rows, weights

IDS = torch.randint(10, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def run(pico_path: PicoPath, output: Path | None = None, said: Remembers | None = None, **tuner: Any) -> TrainResult:
    chosen = config(
        tuner={"kind": "fishmask", "share": 0.02, **tuner},
        optimizer={"max_steps": 12, "learning_rate": 1e-2, "weight_decay": 0.5},
        batch={"tokens": 60, "accumulate": 2},
        seed=3,
    )
    return train(chosen, loaded=load(pico_path), rows=rows(12), output=output, progress=said)


def test_learns_and_the_rest_stays_merged_or_not(pico_path: PicoPath, tmp_path: Path) -> None:
    said = Remembers()
    result = run(pico_path, tmp_path / "run", said)
    before = load(pico_path).model
    total = before.num_parameters()
    assert result.moved.trainable == round(0.02 * total)
    assert any(f"the mask has its {result.moved.trainable:,} places" in line for line in said.said)
    losses = [entry["loss_nats"] for entry in result.history]
    assert losses[-1] < losses[0] - 0.03
    folder = str(tmp_path / "run" / "model")
    beside, merged = load_model(folder, device="cpu").model, load_model(folder, device="cpu", adapter_merged=True).model
    with torch.no_grad():
        expected = result.model(IDS).logits
        assert (beside(IDS).logits - expected).abs().max() <= 1e-6
        assert (merged(IDS).logits - expected).abs().max() <= 1e-6
    start, end = weights(before), weights(merged)
    assert start.keys() == end.keys()
    assert 0 < sum(int((start[name] != end[name]).sum()) for name in start) <= result.moved.trainable


def test_the_chosen_mask_learns_more_than_a_random_one(pico_path: PicoPath) -> None:
    chosen, random = (run(pico_path, fisher=kind).history for kind in ("empirical", "random"))
    assert chosen[0]["loss_nats"] == random[0]["loss_nats"]
    assert chosen[-1]["loss_nats"] < random[-1]["loss_nats"] - 0.01


def test_rows_of_another_kind_are_refused(pico_path: PicoPath) -> None:
    model = fishmask(load(pico_path).model, FishmaskConfig())
    with pytest.raises(ConfigError, match="which this objective's rows are not"):
        show_rows(model, [object()], 0, print)
    assert isinstance(model.get_submodule("posttrain_added"), SparseChange)
