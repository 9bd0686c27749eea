from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.load import load_yaml
from posttrain.data.changes import load_changes
from posttrain.models.load import load_model
from posttrain.studies import estimate as module
from posttrain.studies.config import Study
from posttrain.studies.estimate import by_finished, estimate, shared_characters, trie_characters
from posttrain.studies.exams import prepare_exams
from posttrain.studies.plan import make_plan, select
from posttrain.studies.speed import parameters_of
from tests.talker import talker


def test_parameters_are_counted_without_weights() -> None:
    count = sum(p.numel() for p in load_model(str(talker()), device="cpu").model.parameters())
    assert parameters_of(str(talker())) == count


def test_arithmetic_by_hand(make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_study()
    study = load_yaml(path, Study)
    cells = make_plan(study, load_changes(study.changes, path.parent), path.parent)
    monkeypatch.setattr(module, "flops_per_s", lambda: 1e9)
    full = estimate(study, select(cells, only=["full"], changes=1), base=path.parent)
    replayed = estimate(study, select(cells, only=["full+self"], changes=1), base=path.parent)
    prompt = estimate(study, select(cells, only=["prompt"], changes=1), base=path.parent)
    assert prompt.trained_tokens == 0
    # six steps over one short row; with a share of 0.7 the old tokens are 7/3 of the new ones
    assert full.trained_tokens % 6 == 0
    assert 6 * 20 < full.trained_tokens < 6 * 50
    assert replayed.trained_tokens == pytest.approx(full.trained_tokens / 0.3, abs=1)
    assert full.wall_s > prompt.wall_s
    twice = estimate(study, select(cells, only=["full"]), base=path.parent)
    assert twice.wall_s == pytest.approx(2 * full.wall_s, rel=0.1)
    assert twice.examined_tokens == pytest.approx(2 * full.examined_tokens, rel=0.1)


def test_shared_beginnings_are_read_once() -> None:
    assert shared_characters("abcd", "abxd") == 2
    assert shared_characters("", "a") == 0
    assert shared_characters("abc", "abc") == 3
    # ab -> c, d -> e; and x: a, b, c, d, e, x
    assert trie_characters(["abc", "abd", "x", "abde", "abc"]) == 6


def test_exams_are_counted_for_every_checkpoint_and_once_before(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "flops_per_s", lambda: 1e9)

    def tokens(**fields: object) -> int:
        path = make_study(changes="changes/france.yaml", **fields)
        study = load_yaml(path, Study)
        changes = load_changes(study.changes, path.parent)
        cells = make_plan(study, changes, path.parent)
        tasks = prepare_exams(study, changes, path.parent).parts
        return estimate(study, select(cells, only=["full"]), tasks, path.parent).examined_tokens

    refusal = {"kind": "refusal", "limit": 20}
    once = tokens(exams=[refusal])  # before, and at the end
    assert once > 2 * 20 * 24  # 24 tokens of each answer, and the questions
    assert tokens(exams=[refusal], every=2) == 2 * once  # before, steps 2 and 4, the end
    assert tokens(exams=[refusal], checkpoints=[1, 6]) == pytest.approx(1.5 * once)  # step 6 is the end
    assert tokens(exams=[refusal, {**refusal, "name": "again"}]) == pytest.approx(2 * once, rel=0.05)


def test_the_model_before_is_asked_once_replay_is_made_once_and_a_search_costs_steps(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_study()
    study = load_yaml(path, Study)
    cells = make_plan(study, load_changes(study.changes, path.parent), path.parent)
    monkeypatch.setattr(module, "flops_per_s", lambda: 1e9)

    def guess(chosen: Study = study, **options: Any) -> module.Estimate:
        return estimate(chosen, select(cells, **options), base=path.parent)

    one, all_methods = guess(only=["full"], changes=1), guess(changes=1)
    assert 2 * all_methods.examined_tokens == 5 * one.examined_tokens  # before and after; before and four after
    assert one.made_tokens == 0
    assert all_methods.made_tokens == guess().made_tokens == 3 * 128 // 2  # three prompts, for both changes
    found = load_yaml(path, Study, ["methods.full.optimizer.learning_rate=find"])
    searching = make_plan(found, load_changes(study.changes, path.parent), path.parent)
    with_search = estimate(found, select(searching, only=["full"], changes=1), base=path.parent)
    assert with_search.trained_tokens == one.trained_tokens * (6 + 24) // 6
    assert with_search.wall_s > 2 * one.wall_s


def test_cells_that_are_done_tell_how_long_the_others_take(make_study: Callable[..., Path]) -> None:
    path = make_study()
    study = load_yaml(path, Study)
    cells = make_plan(study, load_changes(study.changes, path.parent), path.parent)  # 4 methods x 2 changes
    assert by_finished(cells, {}) == (0.0, 8)
    by_label = {(cell.method.label, cell.change_name): cell.folder for cell in cells}
    walls = {by_label["prompt", "france"]: 2.0, by_label["full", "france"]: 30.0, by_label["full", "japan"]: 50.0}
    # prompt/japan as its own 2, the four of full+self and lora as the mean of the three
    left_s, waiting = by_finished(cells, walls)
    assert left_s == pytest.approx(2.0 + 4 * 82 / 3)
    assert waiting == 5
