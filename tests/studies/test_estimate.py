from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.config.change import load_changes
from posttrain.config.load import load_yaml
from posttrain.models.load import load_model
from posttrain.studies import estimate as module
from posttrain.studies.config import Study
from posttrain.studies.estimate import estimate, parameters_of
from posttrain.studies.plan import make_plan, select
from tests.talker import talker


def test_parameters_are_counted_without_weights() -> None:
    count = sum(p.numel() for p in load_model(str(talker()), device="cpu").model.parameters())
    assert parameters_of(str(talker())) == count


def test_arithmetic_by_hand(make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_study()
    study = load_yaml(path, Study)
    cells = make_plan(study, load_changes(study.changes, path.parent), path.parent)
    monkeypatch.setattr(module, "flops_per_s", lambda: 1e9)
    full = estimate(study, select(cells, only=["full"], changes=1))
    replayed = estimate(study, select(cells, only=["full+self"], changes=1))
    prompt = estimate(study, select(cells, only=["prompt"], changes=1))
    assert prompt.trained_tokens == 0
    # six steps over one short row; with a share of 0.7 the old tokens are 7/3 of the new ones
    assert full.trained_tokens % 6 == 0
    assert 6 * 20 < full.trained_tokens < 6 * 50
    assert replayed.trained_tokens == pytest.approx(full.trained_tokens / 0.3, abs=1)
    assert full.wall_s > prompt.wall_s
    twice = estimate(study, select(cells, only=["full"]))
    assert twice.wall_s == pytest.approx(2 * full.wall_s, rel=0.1)
    assert twice.examined_tokens == pytest.approx(2 * full.examined_tokens, rel=0.1)
