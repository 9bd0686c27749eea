"""PostTrainer's steps against a plain reference: normalisation, accumulation, padding, stopping, bad numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from posttrain.data.chat import Encoded
from posttrain.errors import TrainingError
from posttrain.models.load import LoadedModel
from posttrain.training.forms.tokens import token_batch
from posttrain.training.run import train
from posttrain.training.steps import RowPlan, StepRows
from tests.pico import FAMILIES
from tests.training.tiny import PicoPath, Remembers, config, load, row, rows, weights

# Adam divides by the root of the second moment: without a floor, the noise of a gradient near zero becomes an update of
# the size of the learning rate. With this one the update is as smooth as the gradient.
SMOOTH = {"epsilon": 1e-3, "learning_rate": 1e-2}


def doubled(pico_path: PicoPath, family: str = "llama") -> LoadedModel:
    loaded = load(pico_path, family)
    loaded.model.double()
    return loaded


def reference(loaded: LoadedModel, steps: list[list[Encoded]], *, all_tokens: bool = False) -> list[float]:
    """Every row alone and unpadded; a step's loss is the sum over its tokens divided by their number."""
    model = loaded.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.0)
    losses = []
    for step in steps:
        total: torch.Tensor = torch.zeros((), dtype=torch.float64)
        tokens = 0
        for one in step:
            labels = torch.tensor(one.input_ids if all_tokens else one.labels)
            logits = model(torch.tensor([one.input_ids])).logits[0, :-1]
            total = total + cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
            tokens += int((labels[1:] != -100).sum())
        torch.autograd.backward(total / tokens)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()) / tokens)
    return losses


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[k] - other[k]).abs().max()) for k in one)


def planned(monkeypatch: pytest.MonkeyPatch, steps: list[list[list[int]]]) -> None:
    def plan(self: RowPlan) -> Iterator[StepRows]:
        return iter([StepRows(micro_batches, (i + 1) / len(steps)) for i, micro_batches in enumerate(steps)])

    monkeypatch.setattr(RowPlan, "__iter__", plan)


# Five rows in steps of four and one: the second step is the last partial window.
CUTS = {
    "one large batch": [[[0, 1, 2, 3]], [[4]]],
    "accumulated": [[[0], [1], [2], [3]], [[4]]],
    "uneven": [[[2, 0], [3], [1]], [[4]]],
}


@pytest.mark.parametrize("objective", ["sft", "clm"])
@pytest.mark.parametrize("cut", CUTS)
def test_accumulated_batches_equal_one_large_one(
    pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch, cut: str, objective: str
) -> None:
    data = rows(5)
    assert len({sum(label != -100 for label in r.labels) for r in data}) > 1  # else a mean of means would do
    plain = doubled(pico_path)
    losses = reference(plain, [data[:4], data[4:]], all_tokens=objective == "clm")
    planned(monkeypatch, CUTS[cut])
    settings = config(objective=objective, optimizer={"max_steps": 2, **SMOOTH})
    result = train(settings, loaded=doubled(pico_path), rows=data)
    assert [e["loss_nats"] for e in result.history] == pytest.approx(losses, abs=1e-6)
    assert apart(weights(plain.model), weights(result.model)) < 1e-6


def test_a_mean_of_means_would_be_noticed(pico_path: PicoPath) -> None:
    """The tolerance above is not vacuous: the usual mistake moves the weights a hundred times as far."""
    data = rows(4)
    right, wrong = doubled(pico_path), doubled(pico_path)
    reference(right, [data])
    optimizer = torch.optim.AdamW(wrong.model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.0)
    for one in data:
        labels = torch.tensor([one.labels])
        (wrong.model(torch.tensor([one.input_ids]), labels=labels).loss / len(data)).backward()
    torch.nn.utils.clip_grad_norm_(wrong.model.parameters(), 1.0)
    optimizer.step()
    assert apart(weights(right.model), weights(wrong.model)) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_skipped_outputs_change_nothing(pico_path: PicoPath, family: str) -> None:
    """Right padding without a mask and an output head on the supervised columns only, for every family."""
    data = rows(6, seed=1)
    plain = doubled(pico_path, family)
    losses = reference(plain, [data, data])
    settings = config(optimizer={"max_steps": 2, **SMOOTH}, batch={"tokens": 200})
    settings = settings.model_copy(update={"batch": settings.batch.model_copy(update={"accumulate": 99})})
    loaded = doubled(pico_path, family)
    dropout_off(loaded.model)
    result = train(settings, loaded=loaded, rows=data)
    assert [e["loss_nats"] for e in result.history] == pytest.approx(losses, abs=1e-6)
    assert apart(weights(plain.model), weights(result.model)) < 1e-6


def dropout_off(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if model.config.model_type == "gpt2":
        for block in model.transformer.h:
            block.attn.attn_dropout.p = 0.0


def test_micro_batch_by_hand() -> None:
    batch = token_batch([row([5, 6, 7, 8], 2, "a:1"), row([9, 10], 1, "a:2")], pad_id=0, supervise_all=False)
    assert batch.input_ids.tolist() == [[5, 6, 7], [9, 10, 0]]
    assert batch.targets.tolist() == [[-100, 7, 8], [10, -100, -100]]
    assert batch.columns is None  # column 0 is asked by the second row
    alone = token_batch([row([5, 6, 7, 8], 3, "a:1")], pad_id=0, supervise_all=False)
    assert alone.columns is not None
    assert alone.columns.tolist() == [2]
    whole = token_batch([row([5, 6, 7], 2, "a:1"), row([8, 9], 1, "a:2")], pad_id=0, supervise_all=True)
    assert whole.targets.tolist() == [[6, 7], [9, -100]]


def test_non_finite_loss_names_the_rows_and_leaves_the_weights(pico_path: PicoPath) -> None:
    loaded = load(pico_path, "qwen3")
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[301] = float("nan")
    before = weights(loaded.model)
    good = rows(3, name="good.jsonl")
    bad = [row([10, 301, 12, 13], 2, "bad.jsonl:17"), row([301, 11, 12], 1, "bad.jsonl:23")]
    with pytest.raises(TrainingError) as caught:
        train(config(optimizer={"max_steps": 3}), loaded=loaded, rows=[*good, *bad])
    text = str(caught.value)
    assert "bad.jsonl:17" in text
    assert "bad.jsonl:23" in text
    assert "good.jsonl" not in text
    assert "not finite in step 1" in text
    assert all(torch.equal(before[k], v) or k == "model.embed_tokens.weight" for k, v in weights(loaded.model).items())
    assert not loaded.model.training
    assert all(p.grad is None for p in loaded.model.parameters())


def test_non_finite_gradient_stops_before_the_weights(pico_path: PicoPath) -> None:
    loaded = load(pico_path)
    before = weights(loaded.model)
    loaded.model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    for precision, mend in (
        ("float32", "lower the learning rate"),
        ("bf16", "lower the learning rate, or train in float32"),
    ):
        with pytest.raises(TrainingError) as caught:
            train(config(optimizer={"max_steps": 3}, precision=precision), loaded=loaded, rows=rows(2))
        [problem] = caught.value.problems
        assert problem.location == ""  # no row is known to be the cause
        named = r"the gradient is not finite in step 1, which learned from rows\.jsonl:\d, rows\.jsonl:\d"
        assert re.fullmatch(named, problem.cause)
        assert problem.mend == f"{mend}; the weights of the step before were not changed"
        assert apart(before, weights(loaded.model)) == 0


def test_stop_at_loss_looks_at_new_rows_only(pico_path: PicoPath) -> None:
    new, old = rows(1, name="new.jsonl"), rows(40, seed=5, name="old.jsonl")
    replay = {"kind": "file", "data": "unused.jsonl", "share": 0.9}
    settings = config(optimizer={"max_steps": 300, "learning_rate": 5e-3, "stop_at_loss": 0.5}, replay=replay)
    result = train(settings, loaded=load(pico_path), rows=new, replay_rows=old)
    news = [e["loss_new_nats"] for e in result.history]
    assert news[-1] <= 0.5 < min(news[:-1])
    assert result.history[-1]["loss_nats"] > 0.5  # the old rows are not learned by then
    assert result.steps == len(news) < 300
    assert "new rows" in result.stopped
    share = sum(e["old_share"] for e in result.history) / len(news)
    assert share == pytest.approx(0.9, abs=0.02)


def test_the_loss_of_a_mixed_step_is_the_mean_over_all_its_tokens(pico_path: PicoPath) -> None:
    new, old = rows(1, name="new.jsonl"), rows(2, seed=5, name="old.jsonl")
    share = sum(len(r.input_ids) for r in old) / sum(len(r.input_ids) for r in [*new, *old])
    settings = config(optimizer={"max_steps": 1}, replay={"kind": "file", "data": "unused.jsonl", "share": share})
    losses = reference(doubled(pico_path), [[*new, *old]]), reference(doubled(pico_path), [new])
    entry = train(settings, loaded=load(pico_path), rows=new, replay_rows=old).history[0]
    assert (entry["loss_nats"], entry["loss_new_nats"]) == pytest.approx((losses[0][0], losses[1][0]), abs=1e-5)


def contradicting() -> tuple[list[Encoded], list[Encoded]]:
    """After the same question, training says 21 and validation says 22: the better the one, the worse the other."""
    asked = [30, 31, 32]
    return [row([*asked, 21, 40], 3, "t:1")], [row([*asked, 22, 40], 3, "v:1")]


@pytest.mark.parametrize("with_output", [False, True])
def test_early_stopping_keeps_the_best_weights(pico_path: PicoPath, tmp_path: Any, with_output: bool) -> None:
    new, held = contradicting()
    remembers = Remembers()
    result = train(
        config(
            optimizer={"max_steps": 200, "learning_rate": 1e-2},
            evaluate_every_steps=1,
            early_stopping_patience=4,
        ),
        loaded=load(pico_path),
        rows=new,
        validation_rows=held,
        output=tmp_path / "run" if with_output else None,
        progress=remembers,
    )
    measured = [e["validation_loss_nats"] for e in result.history if "validation_loss_nats" in e]
    best = measured.index(min(measured)) + 1
    assert result.best_step == best
    assert result.steps == len(measured) == best + 4 < 200
    assert "no better validation loss" in result.stopped
    labels = torch.tensor([held[0].labels])
    with torch.no_grad():
        now = result.model(torch.tensor([held[0].input_ids]), labels=labels).loss.item()
    assert now == pytest.approx(min(measured), abs=1e-6)
    assert any(f"weights of step {best} are kept" in line for line in remembers.said)
    if with_output:
        names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
        assert f"step-{best}" in names


def test_last_weights_when_the_best_are_not_wanted(pico_path: PicoPath) -> None:
    new, held = contradicting()
    settings = config(optimizer={"max_steps": 30, "learning_rate": 1e-2}, evaluate_every_steps=5, keep_best=False)
    result = train(settings, loaded=load(pico_path), rows=new, validation_rows=held)
    alone = train(config(optimizer={"max_steps": 30, "learning_rate": 1e-2}), loaded=load(pico_path), rows=new)
    assert result.best_step is None
    assert apart(weights(result.model), weights(alone.model)) == 0
