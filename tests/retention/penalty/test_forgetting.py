"""What penalties are for: old facts survive the learning of new ones (a pico model that knows a few by heart)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from posttrain.data.chat import Encoded, encode_all
from posttrain.data.records import Conversation, Message
from posttrain.models.load import LoadedModel, load_model
from posttrain.training.run import train
from tests.talker import KNOWN, talker
from tests.training.tiny import Remembers, config

NEW = {"capital of Spain?": "Yushan", "the title?": "Hamlet yen", "你好？": "我是山", "who are you?": "a tiny model"}
NEWER = {"the currency?": "a model", "capital of Taiwan?": "the title", "誰？": "貨幣"}


def encoded(loaded: LoadedModel, facts: dict[str, str]) -> list[Encoded]:
    talks = [Conversation((Message("user", q), Message("assistant", a)), "x") for q, a in facts.items()]
    return encode_all(talks, loaded.tokenizer, max_length=64).rows


def nats(model: Any, data: list[Encoded]) -> float:
    """Mean loss per supervised token."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in data:
            labels = torch.tensor(row.labels[1:])
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
            total += float(cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            tokens += int((labels != -100).sum())
    return total / tokens


@pytest.fixture
def known(tmp_path: Path) -> str:
    lines = [json.dumps({"prompt": q, "completion": a}) for q, a in KNOWN.items()]
    (tmp_path / "old.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return "old.jsonl"


def taught(tmp_path: Path, penalty: Any) -> tuple[float, float]:
    """(nats on what was learned, nats on what was known before)."""
    loaded = load_model(str(talker()), device="cpu")
    chosen = config(penalty=penalty, optimizer={"max_steps": 60, "learning_rate": 3e-3, "stop_at_loss": 0.2})
    result = train(chosen, loaded=loaded, rows=encoded(loaded, NEW), base=tmp_path)
    return nats(result.model, encoded(loaded, NEW)), nats(result.model, encoded(loaded, KNOWN))


def test_a_second_task_costs_less_of_the_first(tmp_path: Path, known: str) -> None:
    """Trained until the new facts are known equally well, the old ones survive with a penalty and not without."""
    new, old = taught(tmp_path, [])
    assert new < 0.25
    assert old > 1.5
    penalties: list[Any] = [
        {"kind": "ewc", "data": known},
        {"kind": "mas", "data": known},
        {"kind": "l2_sp"},
        {"kind": "ewc", "data": known, "scale": "absolute", "strength": 100.0},
    ]
    for penalty in penalties:
        held_new, held_old = taught(tmp_path, penalty)
        assert held_new < 0.35, penalty
        assert held_old < old - 1.0, penalty


@pytest.mark.parametrize(
    ("kind", "strength", "share"),
    [("ewc", 1e3, 0.3), ("ewc", None, 0.5), ("online_ewc", None, 0.5), ("mas", None, 0.8), ("si", None, 0.3)],
)
def test_a_third_task_costs_less_of_the_second(
    tmp_path: Path, forgotten: float, kind: str, strength: float | None, share: float
) -> None:
    """What the second task leaves holds it in the third: the penalty that starts free against none. strength: None for
    the default, which is relative; share: of what is forgotten without it, at most."""
    free = {"hold_start": False} if kind != "si" else {}
    weight = {"scale": "absolute", "strength": strength} if strength is not None else {}
    held, told = forgotten_in_a_third_task(tmp_path / "1", {"kind": kind, **free} | weight)
    assert any(f"{kind}: holds what 1 earlier tasks have left" in line for line in told.said)
    assert held < share * forgotten


@pytest.fixture(scope="module")
def forgotten(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What the third task costs of the second without a penalty, in nats."""
    return forgotten_in_a_third_task(tmp_path_factory.mktemp("free") / "1", [])[0]


def forgotten_in_a_third_task(folder: Path, penalty: Any) -> tuple[float, Remembers]:
    """(nats that the second task's facts lost, what was said in the third). folder: for the run of the second."""
    optimizer = {"max_steps": 60, "learning_rate": 3e-3, "stop_at_loss": 0.1}
    first = load_model(str(talker()), device="cpu")
    train(config(penalty=penalty, optimizer=optimizer), loaded=first, rows=encoded(first, NEW), output=folder)
    second = load_model(str(folder / "model"), device="cpu")
    before = nats(second.model, encoded(second, NEW))
    told = Remembers()
    result = train(
        config(penalty=penalty, optimizer=optimizer | {"stop_at_loss": 0.3}),
        loaded=second,
        rows=encoded(second, NEWER),
        earlier=folder,
        progress=told,
    )
    assert nats(result.model, encoded(second, NEWER)) < 0.4
    return nats(result.model, encoded(second, NEW)) - before, told
