"""LoReFT under the trainer: what it learns, what moves, which rows it takes, how it goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.chat import Encoded
from posttrain.errors import DataError, Interrupted, PosttrainError
from posttrain.models.load import load_model
from posttrain.models.logits import logits_at
from posttrain.models.marks import mark
from posttrain.training.run import TrainResult, train
from posttrain.tuners.loreft import LoreftConfig
from tests.models.test_loreft import by_hand, part_of
from tests.training.test_resume import signal_in_step
from tests.training.tiny import PicoPath, Remembers, answered, config, load, row, rows, weights

IDS = torch.randint(10, 300, (2, 9), generator=torch.Generator().manual_seed(0))
PROMPTS = torch.tensor([4, 9])
MARKED: dict[str, Any] = {"kind": "loreft", "rank": 4, "prefix": 1, "suffix": 2}


def run(pico_path: PicoPath, output: Path | None, steps: int = 4, **more: Any) -> TrainResult:
    tuner = MARKED | {k: more.pop(k) for k in tuple(more) if k in LoreftConfig.model_fields}
    given = {k: more.pop(k) for k in tuple(more) if k in ("rows", "replay_rows", "progress", "validation_rows")}
    chosen = {
        "tuner": tuner,
        "optimizer": {"max_steps": steps, "learning_rate": 3e-2},
        "batch": {"tokens": 60, "accumulate": 2},
        "seed": 3,
    }
    return train(config(**(chosen | more)), loaded=load(pico_path), output=output, **({"rows": rows(12)} | given))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(mark(model, IDS, PROMPTS)).logits
    return found


@pytest.mark.parametrize("share", ["all", "ends", "none"])
def test_learns_keeps_and_moves_nothing_else(pico_path: PicoPath, share: str, tmp_path: Path) -> None:
    before = weights(load(pico_path).model)
    result = run(pico_path, tmp_path / "run", steps=15, share=share)
    after = weights(result.model)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    losses = [entry["loss_nats"] for entry in result.history]
    assert losses[-1] < losses[0] - 0.03
    again = load_model(str(tmp_path / "run" / "model"), device="cpu").model
    assert torch.equal(logits(again), logits(result.model))
    base: Any = load(pico_path).model
    assert (logits(again) - logits(base)).abs().max() > 1e-3
    for ids, n, found in zip(IDS, PROMPTS, logits(again), strict=True):  # what was learned is LoReFT of the formula
        assert torch.allclose(found, by_hand(base, part_of(again), ids.tolist(), int(n)), atol=1e-5)


def test_the_first_loss_is_the_models_own(pico_path: PicoPath) -> None:
    full = train(
        config(optimizer={"max_steps": 1}, batch={"tokens": 60, "accumulate": 2}, seed=3),
        loaded=load(pico_path),
        rows=rows(12),
    )
    assert run(pico_path, None, steps=1).history[0]["loss_nats"] == full.history[0]["loss_nats"]


def test_a_step_is_the_same_however_it_is_cut(pico_path: PicoPath) -> None:
    """Rows of all lengths in one batch, and each row alone."""
    whole = run(pico_path, None, steps=4, batch={"rows": 12, "tokens": 1000})
    alone = run(pico_path, None, steps=4, batch={"rows": 1, "accumulate": 12, "tokens": 1000})
    for one, other in zip(whole.history, alone.history, strict=True):
        assert one["loss_nats"] == pytest.approx(other["loss_nats"], abs=1e-4)
    assert whole.history[-1]["loss_nats"] < whole.history[0]["loss_nats"]


def test_interrupted_and_uninterrupted_are_the_same(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(pico_path, tmp_path / "whole")
    with monkeypatch.context() as patched:
        signal_in_step(patched, 2)
        with pytest.raises(Interrupted):
            run(pico_path, tmp_path / "cut")
    resumed = run(pico_path, tmp_path / "cut")
    one, two = weights(whole.model), weights(resumed.model)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_activations_may_be_recomputed(pico_path: PicoPath) -> None:
    plain, again = (
        run(pico_path, None, batch={"tokens": 60, "accumulate": 2, "activation_checkpointing": switched})
        for switched in (False, True)
    )
    for one, other in zip(plain.history, again.history, strict=True):
        assert one["loss_nats"] == pytest.approx(other["loss_nats"], abs=1e-4)


def test_a_row_with_several_answers_becomes_a_row_for_each(pico_path: PicoPath) -> None:
    """Each is read as it is when the model answers; that the two rows are two is said."""
    ids = list(range(20, 32))
    labels = [-100] * 3 + ids[3:5] + [-100] * 4 + ids[9:]
    said = Remembers()
    both = run(pico_path, None, rows=[Encoded(ids, labels, "rows.jsonl:1")], progress=said)
    assert any("1 rows become 2 with one answer each, as loreft needs them" in line for line in said.said)
    apart = run(pico_path, None, rows=[row(ids[:5], 3, "rows.jsonl:1"), row(ids, 9, "rows.jsonl:1")])
    assert both.history[-1]["loss_nats"] == apart.history[-1]["loss_nats"]


def test_rows_without_a_prompt_are_refused(pico_path: PicoPath) -> None:
    with pytest.raises(DataError, match=r"text.jsonl:2: nothing stands before its first learned token"):
        run(pico_path, None, rows=[row([5, 6, 7, 8], 2, "text.jsonl:1"), row([5, 6, 7, 8], 0, "text.jsonl:2")])


def test_preferences_begin_at_the_model_before_training_and_are_learned(pico_path: PicoPath) -> None:
    pairs = [answered(5, [20, 21, 22], [30, 31], "p:1"), answered(5, [40], [41, 42, 43], "p:2")]
    for reference in ("adapter", "precompute"):
        result = run(pico_path, None, 8, rows=pairs, objective={"kind": "dpo", "reference": reference})
        losses = [entry["loss_nats"] for entry in result.history]
        assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
        assert losses[-1] < 0.68


@pytest.mark.parametrize(
    "more",
    [
        {"penalty": {"kind": "kl_to_base", "weight": 1.0}},
        {"replay": {"kind": "self", "share": 0.5, "loss": "kl"}, "replay_rows": rows(6, 9, name="old")},
        {"objective": "npo"},
        {"objective": "orpo", "rows": [answered(5, [20, 21], [30, 31]), answered(5, [40, 41], [42, 43])]},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_compares_with_the_model_before_takes_it_off(pico_path: PicoPath, more: dict[str, Any]) -> None:
    result = run(pico_path, None, 3, **more)
    assert all(math.isfinite(entry["loss_nats"]) for entry in result.history)
    if "penalty" in more:
        assert result.history[0]["penalty_kl_to_base"] == pytest.approx(0.0, abs=1e-6)
        assert result.history[2]["penalty_kl_to_base"] > 1e-5
    before = load(pico_path).model
    with part_of(result.model).switched_off():
        assert torch.equal(logits_at(result.model, IDS, None), logits_at(before, IDS, None))


def test_cannot_be_merged(pico_path: PicoPath, tmp_path: Path) -> None:
    run(pico_path, tmp_path / "run", steps=1)
    with pytest.raises(PosttrainError, match="a loreft adapter cannot be merged into its base"):
        load_model(str(tmp_path / "run" / "model"), device="cpu", adapter_merged=True)


def test_settings_need_a_position() -> None:
    with pytest.raises(ValueError, match="no position is changed"):
        LoreftConfig(prefix=0, suffix=0)
