"""Penalties that ask the model: which rows, what is cached, what is held and what is left."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.data.chat import encode_all
from posttrain.data.records import Conversation, Message
from posttrain.errors import ConfigError, DataError, Interrupted
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.curvature import fisher, mas_importance
from posttrain.models.heads import load_head_model
from posttrain.models.load import load_model
from posttrain.models.meter import Doing, listening
from posttrain.registry import load
from posttrain.retention.penalty import _measured
from posttrain.retention.penalty._base import PenaltyContext
from posttrain.retention.penalty._measured import Measured, examples_of, own_answers, rows_of
from tests.pico import pico
from tests.talker import KNOWN

MEASURED = ["ewc", "online_ewc", "mas"]


@pytest.fixture
def data(context: PenaltyContext) -> str:
    rows = [{"prompt": q, "completion": a} for q, a in KNOWN.items()]
    (context.base / "old.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return "old.jsonl"


def made(kind: str, context: PenaltyContext, **settings: Any) -> Measured:
    entry = load("penalty", kind)
    penalty: Measured = entry.function(entry.config(**settings), context)
    return penalty


def kept(penalty: Measured) -> dict[str, torch.Tensor]:
    assert penalty.kept is not None
    return penalty.kept.importance


def test_given_rows_without_those_of_exams(context: PenaltyContext, data: str, told: list[str]) -> None:
    entry = load("penalty", "ewc")
    config = entry.config(data=data)
    context = dataclasses.replace(context, forbidden=frozenset({"Hello!"}))
    rows = rows_of(config.data, 256, context)
    texts = [context.loaded.tokenizer.decode(row.input_ids) for row in rows]
    assert len(rows) == len(KNOWN) - 1
    assert not any("hello" in text for text in texts)
    assert "1 asked by the exam left out" in told[0]
    assert len(rows_of(config.data, 2, context)) == 2
    assert config.files() == ["old.jsonl"]


def test_rows_that_are_no_conversations(context: PenaltyContext) -> None:
    (context.base / "t.jsonl").write_text('{"text": "a b"}\n{"text": "c"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"t.jsonl:2: not a conversation; give conversations"):
        made("ewc", context, data="t.jsonl")


def test_examples_ask_for_the_next_token(context: PenaltyContext) -> None:
    talk = Conversation((Message("user", "hello"), Message("assistant", "hi")), "x")
    row = encode_all([talk], context.loaded.tokenizer, max_length=64).rows[0]
    example = examples_of([row])[0]
    learned = [i for i, label in enumerate(row.labels) if label != -100]
    assert example.inputs.tolist() == row.input_ids[:-1]
    assert example.positions.tolist() == [i - 1 for i in learned]
    assert example.targets.tolist() == [row.input_ids[i] for i in learned]


@pytest.mark.parametrize("kind", MEASURED)
def test_what_is_held_at_the_start_is_what_was_measured(context: PenaltyContext, data: str, kind: str) -> None:
    penalty = made(kind, context, data=data)
    examples = examples_of(rows_of(penalty.config.data, 256, context))
    model, trainable = context.loaded.model, context.trainable
    expected = mas_importance(model, trainable, examples) if kind == "mas" else fisher(model, trainable, examples)
    for name, importance in kept(penalty).items():
        torch.testing.assert_close(importance, expected.diagonal[name], rtol=1e-4, atol=1e-12)
    assert penalty.add_gradients(trainable) == 0.0


def test_a_small_step_costs_its_divergence(context: PenaltyContext, data: str) -> None:
    """strength 1: the penalty is the mean KL per token to second order, here along a single parameter."""
    name, parameter = next((n, p) for n, p in context.trainable.items() if n.endswith("model.norm.weight"))
    trainable = {name: parameter}
    penalty = made(
        "ewc", dataclasses.replace(context, trainable=trainable), data=data, strength=1.0, fisher="true", rows=3
    )
    examples = examples_of(rows_of(penalty.config.data, 3, context))

    def logarithms() -> list[torch.Tensor]:
        with torch.no_grad():
            return [
                context.loaded.model(input_ids=e.inputs[None]).logits[0, e.positions].double().log_softmax(-1)
                for e in examples
            ]

    before = logarithms()
    index = int(kept(penalty)[name].argmax())
    with torch.no_grad():
        parameter[index] += 0.05 * parameter[index].abs().item()
    divergence = sum(float((old.exp() * (old - new)).sum()) for old, new in zip(before, logarithms(), strict=True))
    divergence /= sum(len(e.positions) for e in examples)
    assert penalty.add_gradients(trainable) == pytest.approx(divergence, rel=0.1)


def test_a_study_measures_once(context: PenaltyContext, data: str, told: list[str]) -> None:
    first, again = made("ewc", context, data=data), made("ewc", context, data=data)
    assert sum("measured on 6 rows with" in line for line in told) == 1
    assert "importances read from the cache" in told[-1]
    shared = made("online_ewc", context, data=data)  # the same Fisher information
    assert "importances read from the cache" in told[-1]
    for name, importance in kept(first).items():
        assert torch.equal(importance, kept(again)[name])
        assert torch.equal(importance, kept(shared)[name])
    others = [
        made("ewc", context, data=data, draws=2),
        made("ewc", context, data=data, fisher="empirical"),
        made("mas", context, data=data),
        made("ewc", context, data=data, rows=3),
        made("ewc", dataclasses.replace(context, seed=1), data=data),
        made("ewc", dataclasses.replace(context, fingerprint="another base"), data=data),
    ]
    with torch.no_grad():
        next(iter(context.trainable.values())).add_(0.01)
    others.append(made("ewc", context, data=data))
    assert sum("measured on" in line for line in told) == 1 + len(others)


def test_own_answers_leave_out_what_exams_ask(context: PenaltyContext, monkeypatch: pytest.MonkeyPatch) -> None:
    path = context.base / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(q) for q in KNOWN), encoding="utf-8")
    monkeypatch.setattr("posttrain.retention.penalty._measured.packaged_prompts", lambda tokenizer: path)
    context = dataclasses.replace(context, forbidden=frozenset({"hello"}))
    for _ in range(2):  # answered, and read from the cache
        rows = own_answers(256, context, context.respondent, context.fingerprint)
        texts = [context.loaded.tokenizer.decode(row.input_ids) for row in rows]
        assert any("Tokyo" in text for text in texts)
        assert not any("hello" in text for text in texts)
    penalty = made("ewc", context)
    assert max(float(t.max()) for t in kept(penalty).values()) > 0


def test_a_model_that_cannot_answer(context: PenaltyContext, tmp_path: Path) -> None:
    loaded = load_model(str(pico("llama", tmp_path)), device="cpu")  # random weights: no answer ends
    mute = dataclasses.replace(context, loaded=loaded, respondent=ModelRespondent(loaded))
    with pytest.raises(DataError, match="own answers cannot show what shall be kept; give data: a file") as caught:
        made("ewc", mute, rows=2)
    assert "max_new_tokens" not in str(caught.value), "a penalty has no such setting"


def test_a_free_first_task(context: PenaltyContext, told: list[str]) -> None:
    penalty = made("ewc", context, hold_start=False)
    assert told == ["ewc: a first task; nothing is held yet, what it learns is left for the next one"]
    assert penalty.add_gradients(context.trainable) == 0.0
    assert all(p.grad is None for p in context.trainable.values())


def test_a_model_with_another_head(context: PenaltyContext, tmp_path: Path) -> None:
    loaded = load_head_model(str(pico("llama", tmp_path)), "sequence", ["a", "b"], say=lambda _: None)
    with pytest.raises(ConfigError, match="a head for something else; use l2_sp"):
        made("mas", dataclasses.replace(context, loaded=loaded))


# ---- from task to task -------------------------------------------------------------------------------------------------


def task_rows(context: PenaltyContext, text: str) -> list[Any]:
    talk = Conversation((Message("user", "?"), Message("assistant", text)), "task")
    return encode_all([talk], context.loaded.tokenizer, max_length=64).rows


def move(context: PenaltyContext, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in context.trainable.values():
            p.add_(0.05 * torch.randn(p.shape, generator=draw))


@pytest.mark.parametrize("kind", MEASURED)
def test_three_tasks(context: PenaltyContext, data: str, kind: str) -> None:
    """What the third task is held by, against what each moment's measurement says."""
    model, trainable, path = context.loaded.model, context.trainable, context.base / f"{kind}.safetensors"

    def measured(rows: list[Any]) -> dict[str, torch.Tensor]:
        found = examples_of(rows)
        curvature = mas_importance(model, trainable, found) if kind == "mas" else fisher(model, trainable, found)
        return curvature.diagonal

    settings = {"scale": "absolute", "strength": 2.0, "data": data}
    importances, centers = [], []
    for number, text in enumerate(["Paris", "玉山"]):
        now = dataclasses.replace(
            context, earlier=path if number else None, rows=task_rows(context, text), cache=context.base / "cache"
        )
        penalty = made(kind, now, **settings)
        if number == 0:
            importances.append(measured(rows_of(penalty.config.data, 256, context)))
            centers.append({n: p.detach().clone() for n, p in trainable.items()})
        move(context, number)
        penalty.save(trainable, path)
        importances.append(measured(list(now.rows)))
        centers.append({n: p.detach().clone() for n, p in trainable.items()})
    third = made(kind, dataclasses.replace(context, earlier=path), **settings)
    move(context, 5)
    if kind == "ewc":
        terms = list(zip([1.0, 1.0, 1.0], importances, centers, strict=True))
    else:
        decay = 0.95 if kind == "online_ewc" else 1.0
        terms = [(decay ** (2 - k), importances[k], centers[-1]) for k in range(3)]
    leaves = {n: p.detach().double().requires_grad_(True) for n, p in trainable.items()}
    factor = 2.0 if kind == "mas" else 1.0
    expected = torch.stack(
        [factor * w * (f[n] * (leaves[n] - c[n]) ** 2).sum() for w, f, c in terms for n in leaves]
    ).sum()
    expected.backward()  # type: ignore[no-untyped-call]
    assert third.add_gradients(trainable) == pytest.approx(float(expected.detach()), rel=1e-4)
    for name, p in trainable.items():
        gradient = leaves[name].grad
        assert p.grad is not None
        assert gradient is not None
        torch.testing.assert_close(p.grad.double(), gradient, rtol=1e-3, atol=1e-6 * float(gradient.abs().max()))
    assert len(load_file(path)) == len(trainable) * (3 if kind == "ewc" else 2)


def test_rows_of_another_form(context: PenaltyContext, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of preferences has no rows of tokens: its end is measured on own answers."""
    path = context.base / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(q) for q in KNOWN), encoding="utf-8")
    monkeypatch.setattr("posttrain.retention.penalty._measured.packaged_prompts", lambda tokenizer: path)
    penalty = made("ewc", context, hold_start=False)
    penalty.save(context.trainable, context.base / "f")
    left = load_file(context.base / "f")
    assert any(t.any() for name, t in left.items() if name.startswith("importance/"))


# ---- how much is looked at, and what is kept ------------------------------------------------------------------------


def test_rows_are_looked_at_up_to_so_many_tokens(context: PenaltyContext, data: str, told: list[str]) -> None:
    penalty = made("ewc", context, data=data, rows=3, tokens=1)
    assert penalty.kept is not None  # one row at least
    assert any("1 of 3 rows are looked at" in text for text in told), told
    told.clear()
    made("ewc", context, data=data, rows=3, tokens=10_000)
    assert not any("are looked at" in text for text in told)


def test_importances_of_a_large_model_are_the_same_measured_or_read(
    context: PenaltyContext, data: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_measured, "COARSE_PARAMETERS", 1)
    first, second = made("ewc", context, data=data), made("ewc", context, data=data)
    assert any("importances read from the cache" in text for text in told)
    assert first.kept is not None
    assert second.kept is not None
    for name, one in first.kept.importance.items():
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, second.kept.importance[name])


def test_the_cache_lets_go_of_what_was_used_longest_ago(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "used", "old")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(b"x" * 10)
        os.utime(path, (1000 - age, 1000 - age))
    assert _measured.outgrown(tmp_path, 30) == []
    assert [p.stem for p in _measured.outgrown(tmp_path, 25)] == ["old"]
    assert [p.stem for p in _measured.outgrown(tmp_path, 1)] == ["used", "old"]  # never the newest


# ---- progress, and Ctrl-C ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "what", "rows"),
    [
        ("ewc", {}, "measuring Fisher information", 5),
        ("ewc", {"fisher": "empirical"}, "measuring Fisher information", 5),
        ("ewc", {"fisher": "sampled", "draws": 3}, "measuring Fisher information", 15),
        ("mas", {}, "measuring what the outputs depend on", 5),
    ],
)
@pytest.mark.parametrize("chunks", ["together", "summed", "one by one"])
def test_measuring_tells_how_far_it_is(
    kind: str,
    settings: dict[str, Any],
    what: str,
    rows: int,
    chunks: str,
    context: PenaltyContext,
    data: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("posttrain.models.meter.OFTEN_S", 0.0)
    if chunks != "together":
        monkeypatch.setattr("posttrain.models.curvature.CHUNK_BYTES", 1)
    told: list[Doing] = []
    with listening(told.append):
        made(kind, context, data=data, rows=5, **settings)
    assert {work.what for work in told} == {what}
    assert told[0].begins
    assert (told[-1].done, told[-1].total, told[-1].ends) == (rows, rows, True)
    assert len(told) > 2 or chunks == "together"
    counted = [work.tokens for work in told]
    assert counted == sorted(counted)
    assert counted[-1] > rows


def test_ctrl_c_is_no_bad_data(context: PenaltyContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own answers that are interrupted are not "of no use"; nothing half-made is left in the cache."""

    def interrupted(*_: Any, on_answer: Any, **__: Any) -> Any:
        on_answer(0, None)
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelRespondent, "answers", interrupted)
    with pytest.raises(
        Interrupted, match=r"stopped while answering prompts for replay \(1 of 7 prompts\); nothing of it"
    ):
        made("ewc", context, rows=7)
    assert context.cache is not None
    assert not list(context.cache.rglob("*.jsonl"))
