"""Quadrants: which sample is where, which are drawn, and what the page holds of them."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.exams.compare import compare
from posttrain.exams.records import Sample
from posttrain.reports import quadrants
from posttrain.reports.examined import QUADRANTS, pool
from posttrain.reports.folder import Cell, read_run
from posttrain.reports.quadrants import TEXT_CAP, Pair, draw, pairs_of, payload, quadrant_of
from tests.reports.exam_study import make_study
from tests.reports.synthetic import ATTACK

CELL = Cell(model="m", method="lora", change="role")


def row(id: str, correct: bool | None, answer: str = "a", **more: Any) -> dict[str, Any]:
    return {"id": id, "correct": correct, "answer": answer, "question": f"q {id}", "target": "t", "choices": 4, **more}


def test_the_four_quadrants() -> None:
    named = {(b, a): QUADRANTS[quadrant_of(b, a)] for b in (True, False) for a in (True, False)}
    assert named == {
        (True, True): "kept_right", (True, False): "forgotten", (False, True): "gained", (False, False): "kept_wrong",
    }  # fmt: skip


def test_pairs_are_joined_by_id_and_only_what_is_judged_counts() -> None:
    before = [row("1", True, "old"), row("2", False), row("3", None), row("4", True), row("5", True)]
    after = [
        row("2", True, "new"), row("1", False, "new"), row("3", True), row("9", True), row("5", True, choices=5),
        row("4", True, perturbation="typos"),
    ]  # fmt: skip
    pairs = list(pairs_of(before, after, CELL))
    assert [(p.id, QUADRANTS[p.quadrant], p.before, p.after) for p in pairs] == [
        ("2", "gained", "a", "new"), ("1", "forgotten", "old", "new"),
    ]  # fmt: skip


def test_long_texts_are_cut() -> None:
    (pair,) = pairs_of([row("1", True)], [row("1", True, "x" * (TEXT_CAP + 5))], CELL)
    assert pair.after == "x" * TEXT_CAP + " …"


def test_what_is_drawn_does_not_depend_on_the_order_and_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quadrants, "CAP", 7)
    pairs = [Pair(f"q{i}", i % 4, "", "", "", "", "role", 0) for i in range(400)]
    drawn = draw(pairs)
    assert drawn == draw(reversed(pairs))
    assert [p.quadrant for p in drawn] == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7
    assert [p.id for p in drawn[:7]] != [f"q{4 * i}" for i in range(7)]  # not simply the first


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"), n=300)


def test_the_page_holds_the_samples_behind_the_counts(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(study)
    monkeypatch.setattr(quadrants, "CAP", 1000)
    data = payload(run)
    rows = [data["rows"][i : i + 6] for i in range(0, len(data["rows"]), 6)]
    for e, exam in enumerate(run.exams):
        for v, version in enumerate(run.versions):
            counts = run.rows_of(*version)[-1].compare[exam.name].counts
            found = [sum(r[:3] == [e, v, q] for r in rows) for q in range(4)]
            assert tuple(found) == (counts or (0, 0, 0, 0)), (exam.name, version)
    assert ATTACK in {data["texts"][r[4]] for r in rows}
    monkeypatch.setattr(quadrants, "CAP", 10)
    capped = payload(run)
    assert len(capped["rows"]) < len(data["rows"])
    assert max(sum(tuple(capped["rows"][i : i + 3]) == (0, 1, q) for i in range(0, len(capped["rows"]), 6))
               for q in range(4)) == 10  # fmt: skip


def test_comparisons_are_shown_as_they_were_made() -> None:
    def samples(right: int) -> list[Sample]:
        return [Sample(str(i), "", "", "", "", {"acc": float(i < right)}, i < right, 4) for i in range(40)]

    found = pool([compare(samples(30), samples(20), headline="acc")])
    assert found is not None
    assert found.different
    assert found.counts == (20, 10, 0, 10)
    assert found.shares() == (0.5, 0.25, 0.0, 0.25)
    assert found.difference == pytest.approx(-0.25)
    # by hand: (10/40 - (10/40) / 3) * 4 / 3
    assert found.adjusted[0] == pytest.approx(2 / 9)
    same = pool([compare(samples(30), samples(30), headline="acc")])
    assert same is not None
    assert not same.different


def test_without_samples_the_page_holds_none(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", n=20)
    for path in folder.glob("before/*/exams/*.jsonl"):
        path.unlink()
    assert payload(read_run(folder)) == {}
