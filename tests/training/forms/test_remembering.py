"""Replayed rows learned as distributions: against a plain reference, for adapters and for all weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from posttrain.errors import ConfigError
from posttrain.training.forms import distributions
from posttrain.training.run import train
from tests.training.tiny import PicoPath, Remembers, config, load, rows, weights

REPLAY = {"kind": "file", "data": "old.jsonl", "loss": "kl", "share": 0.5}


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_first_step_is_the_new_rows_alone_and_then_the_old_hold(pico_path: PicoPath, tuner: str) -> None:
    """One mean over the tokens of both; at the start nothing has moved, so the old ones cost nothing."""
    new, old = rows(3), rows(4, seed=5, name="old.jsonl")
    losses = {}
    for loss in ("words", "kl"):
        seen = Remembers()
        given = config(replay={**REPLAY, "loss": loss}, tuner=tuner, optimizer={"max_steps": 12, "learning_rate": 3e-3})
        made = train(given, loaded=load(pico_path), rows=new, replay_rows=old, progress=seen)
        base = load(pico_path).model
        drift = 0.0
        with torch.no_grad():
            for row in old:
                ids, asked = torch.tensor([row.input_ids]), torch.tensor(row.labels)[1:] != -100
                p, q = (log_softmax(m(input_ids=ids).logits[0, :-1][asked], -1) for m in (base, made.model))
                drift += float((p.exp() * (p - q)).sum())
        losses[loss] = (seen, drift)
    seen, drift = losses["kl"]
    assert drift < 0.9 * losses["words"][1]
    assert seen.entries[0]["loss_old_nats"] < 1e-6
    assert seen.entries[-1]["loss_old_nats"] > 1e-4
    assert any("replayed rows will be read; what the model says in them is kept" in line for line in seen.said)
    last = [work for work in seen.works if work.what == "asking the model before training"][-1]
    assert (last.done, last.total, last.unit, last.ends) == (4, 4, "rows", True)


def test_the_loss_is_one_mean_over_both_and_cuts_do_not_matter(pico_path: PicoPath) -> None:
    new, old = rows(3), rows(4, seed=5, name="old.jsonl")
    ends = []
    for tokens in (4096, 24):
        seen = Remembers()
        loaded = load(pico_path)
        loaded.model.double()
        batch = {"tokens": tokens, "accumulate": 1 if tokens == 4096 else 99}
        optimizer = {"max_steps": 2, "learning_rate": 1e-2, "epsilon": 1e-3}
        given = config(replay=REPLAY, batch=batch, optimizer=optimizer)
        train(given, loaded=loaded, rows=new, replay_rows=old, progress=seen)
        ends.append(weights(loaded.model))
    assert max(float((ends[0][k] - ends[1][k]).abs().max()) for k in ends[0]) < 1e-9
    summed = sum(
        float(cross_entropy(load(pico_path).model(torch.tensor([r.input_ids])).logits[0, :-1], torch.tensor(r.labels[1:]), ignore_index=-100, reduction="sum"))
        for r in new
    )  # fmt: skip
    assert seen.entries[0]["loss_new_nats"] == pytest.approx(summed / seen.entries[0]["supervised"], rel=1e-4)
    assert seen.entries[0]["loss_nats"] < seen.entries[0]["loss_new_nats"]  # the old tokens are in the mean


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_head_in_chunks_teaches_the_same(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch, tuner: str) -> None:
    new, old = rows(3), rows(4, seed=5, name="old.jsonl")
    ends = []
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(distributions, "plain_head", lambda model: None)
        loaded = load(pico_path)
        loaded.model.double()
        optimizer = {"max_steps": 4, "learning_rate": 1e-2, "epsilon": 1e-3}
        made = train(config(replay=REPLAY, tuner=tuner, optimizer=optimizer), loaded=loaded, rows=new, replay_rows=old)
        ends.append(weights(made.model))
    assert max(float((ends[0][k] - ends[1][k]).abs().max()) for k in ends[0]) < 1e-7


def test_only_rows_that_are_read_are_asked_about(pico_path: PicoPath) -> None:
    seen = Remembers()
    given = config(replay=REPLAY, optimizer={"max_steps": 1})
    train(given, loaded=load(pico_path), rows=rows(1), replay_rows=rows(40, seed=5), progress=seen)
    (line,) = [line for line in seen.said if "will be read" in line]
    assert 1 <= int(line.split()[1]) < 10


def test_objectives_with_a_retain_set_of_their_own_refuse(pico_path: PicoPath) -> None:
    with pytest.raises(ConfigError, match=r"replay.loss.*objective.retain: kl"):
        train(config(replay=REPLAY, objective="grad_diff"), loaded=load(pico_path), rows=rows(1))
