"""Distillation in training: a teacher of the same vocabulary, loaded beside the student."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

from posttrain.errors import ConfigError
from posttrain.training.run import train
from posttrain.training.steps import RowPlan, StepRows
from tests.training.tiny import PicoPath, Remembers, config, load, rows, weights


def plan(monkeypatch: pytest.MonkeyPatch, steps: list[list[list[int]]]) -> None:
    def planned(self: RowPlan) -> Iterator[StepRows]:
        return iter([StepRows(micro_batches, float(i + 1)) for i, micro_batches in enumerate(steps)])

    monkeypatch.setattr(RowPlan, "__iter__", planned)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_model_that_is_its_own_teacher_has_nothing_to_learn(pico_path: PicoPath, tuner: str) -> None:
    seen = Remembers()
    objective = {"kind": "distill", "teacher": str(pico_path("llama"))}
    given = config(objective=objective, tuner=tuner, optimizer={"max_steps": 1})
    train(given, loaded=load(pico_path), rows=rows(4), progress=seen)
    assert seen.entries[0]["loss_nats"] == 0.0
    assert seen.entries[0]["grad_norm"] < 1e-6  # softmax rounds


def test_the_loss_is_a_mean_over_tokens_and_falls(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another family: the teacher needs the vocabulary, not the architecture."""
    data = rows(3)
    plan(monkeypatch, [[[0, 2], [1]]] * 20)
    seen = Remembers()
    student, teacher = load(pico_path).model, load(pico_path, "qwen3").model
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in data:
            ids, asked = torch.tensor([row.input_ids]), torch.tensor(row.labels)[1:] != -100
            p, q = (log_softmax(m(input_ids=ids).logits[0, :-1][asked], -1) for m in (teacher, student))
            total, tokens = total + float((p.exp() * (p - q)).sum()), tokens + int(asked.sum())
    objective = {"kind": "distill", "teacher": str(pico_path("qwen3"))}
    given = config(objective=objective, optimizer={"max_steps": 20, "learning_rate": 3e-3})
    train(given, loaded=load(pico_path), rows=data, progress=seen)
    assert seen.entries[0]["loss_nats"] == pytest.approx(total / tokens, rel=1e-4)
    assert seen.entries[-1]["loss_nats"] < 0.5 * seen.entries[0]["loss_nats"]
    assert any(line.startswith("teacher: ") for line in seen.said)


def test_replayed_rows_are_distilled_too_and_cuts_do_not_matter(
    pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = {"kind": "distill", "teacher": str(pico_path("qwen3")), "nll_weight": 0.3, "direction": "jsd"}
    ends = []
    for cut in ([[0, 1, 2, 3]], [[3], [0, 2], [1]]):
        plan(monkeypatch, [cut] * 2)
        loaded = load(pico_path)
        optimizer = {"max_steps": 2, "learning_rate": 1e-2, "epsilon": 1e-3}
        given = config(objective=objective, optimizer=optimizer)
        loaded.model.double()
        ends.append(weights(train(given, loaded=loaded, rows=rows(2), replay_rows=rows(2, seed=3)).model))
    assert max(float((ends[0][k] - ends[1][k]).abs().max()) for k in ends[0]) < 1e-7  # the teacher is float32


def test_another_vocabulary_is_refused(pico_path: PicoPath, tmp_path: Path) -> None:
    loaded = load(pico_path)
    teacher = load(pico_path)
    teacher.tokenizer.add_tokens(["<|think|>"])
    teacher.model.save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"385 tokens and the student 384; 1 differ: '<\|think\|>' \(384 and none\)"):
        train(config(objective={"kind": "distill", "teacher": str(tmp_path)}), loaded=loaded, rows=rows(2))
