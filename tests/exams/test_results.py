from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError, MissingError
from posttrain.exams.compare import compare
from posttrain.exams.floor import BesideFloor
from posttrain.exams.records import Sample
from posttrain.exams.results import (
    CellResult,
    ExamInfo,
    Line,
    Results,
    read_part,
    read_results,
    write_json,
    write_part,
    write_results,
)
from posttrain.exams.score_spec import ScoreSpec, find_spec
from posttrain.exams.scores import HEADLINE, SPECS
from posttrain.exams.statistics import Interval, share_over_changes
from posttrain.exams.summary import summarise


def line(change: str, score: float, *, seed: int = 0, status: Any = "done", method: str = "full") -> Line:
    scores: dict[str, Any] = {"reliability": score} if status == "done" else {}
    return Line(
        model="m", method=method, change=change, seed=seed, status=status, scores=scores,
        ci95={name: Interval(0.1, 0.9) for name in scores}, n=dict.fromkeys(scores, 3), folder="cells/x",
    )  # fmt: skip


def test_means_over_changes_where_seeds_count_once() -> None:
    (row,) = summarise([line("a", 1.0), line("a", 0.0, seed=1), line("b", 1.0), line("b", 1.0, seed=1)])
    assert row.scores == {"reliability": 0.75}
    low, high = row.ci95["reliability"]
    assert (low, high) == share_over_changes([0.5, 1.0], [6, 6])
    assert 0.2 < low < 0.3
    assert 0.95 < high < 1.0
    assert row.n == {"reliability": 12}
    assert row.changes == {"reliability": 2}


def test_one_cell_keeps_its_own_interval_and_failed_cells_do_not_count() -> None:
    (row,) = summarise([line("a", 0.5), line("b", 0.0, status="failed")])
    assert row.scores == {"reliability": 0.5}
    assert row.ci95 == {"reliability": (0.1, 0.9)}


def test_methods_are_apart_and_keep_their_order() -> None:
    rows = summarise([line("a", 0.5, method="z"), line("a", 1.0, method="b")])
    assert [(row.method, row.scores["reliability"]) for row in rows] == [("z", 0.5), ("b", 1.0)]


def test_a_result_survives_the_disk(tmp_path: Path) -> None:
    known = CellResult(hash="h", lines=(line("a", 0.5), line("b", 0.0, status="failed")))
    write_part(tmp_path / "result.json", known)
    assert read_part(tmp_path / "result.json", CellResult) == known


@pytest.mark.parametrize("text", [None, "", "{", '{"hash": "x"}', "[]", '{"lines": 5}', '{"hash": "x", "lines": []}'])
def test_a_torn_result_is_no_result(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text, encoding="utf-8")
    assert read_part(tmp_path / "result.json", CellResult) is None


def whole() -> Results:
    """Everything that results.json can hold."""
    before = [Sample(str(i), "", "q", "a", "a", {"acc": 1.0}, correct=True, choices=4) for i in range(8)]
    after = [Sample(str(i), "", "q", "b", "a", {"acc": float(i > 5)}, correct=i > 5, choices=4) for i in range(8)]
    beside = BesideFloor(4, 0.5, 1.0, 0.5, below=False, testable=False)
    one = line("a", 0.5).model_copy(update={"compare": {"mmlu": compare(before, after, headline="acc")}})
    (row,) = summarise([one])
    return Results(
        study="s",
        planned=2,
        exams={
            "change": ExamInfo(name="change", kind="change", headline=HEADLINE, scores=SPECS),
            "mmlu": ExamInfo(name="mmlu", headline="acc", scores=(ScoreSpec("acc", "acc"),), chance=0.25),
        },
        cells=(one,),
        summary=(row.model_copy(update={"floor": {"locality.unrelated": beside}}),),
    )


def test_results_survive_the_disk(tmp_path: Path) -> None:
    write_results(tmp_path, whole())
    assert read_results(tmp_path) == whole()
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["format"] == 3


def test_a_score_finds_its_exam_and_its_declaration() -> None:
    results = whole()
    assert [results.spec(key) and results.spec(key).unit for key in ("reliability", "mmlu.acc", "mmlu.acc/law")] == [  # type: ignore[union-attr]
        "share"
    ] * 3
    assert results.spec("mmlu.robust.acc") == results.spec("mmlu.acc")
    assert (results.spec("other.acc"), results.spec("mmlu.f1")) == (None, None)
    assert find_spec("leak", SPECS) is not None


def test_an_earlier_file_is_refused_with_the_command(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(MissingError, match=r"no results\.json"):
        read_results(tmp_path)
    path.write_text('{"study": "s", "cells": []}', encoding="utf-8")
    with pytest.raises(
        DataError, match=r"earlier version of posttrain; make it anew: posttrain run STUDY\.yaml --output"
    ):
        read_results(tmp_path)
    path.write_text('{"study": "exam", "cells": [], "format": 4}', encoding="utf-8")
    with pytest.raises(
        DataError, match="of format 4; this version of posttrain reads format 3; make it anew: posttrain exam"
    ):
        read_results(tmp_path)
    path.write_text('{"study": "s", "cells": [{"model": 3}], "format": 3}', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_results(tmp_path)
    assert [p.location.removeprefix(f"{path}: ") for p in caught.value.problems] == ["cells.0.model", "cells.0.method"]
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not valid JSON"):
        read_results(tmp_path)


def test_a_score_that_is_no_number_is_left_out() -> None:
    scores: dict[str, Any] = {"a": math.nan, "b": math.inf, "c": None, "d": 1.0}
    assert Line(model="m", method="x", scores=scores).scores == {"d": 1.0}


def test_json_has_no_nan_and_no_leftovers(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": math.nan, "y": [math.inf, 1.0], "z": {"臺": (1, 2)}})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "x": None,
        "y": [None, 1.0],
        "z": {"臺": [1, 2]},
    }
    assert "臺" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def beside(change: str, kept: list[int | None], *, method: str = "full", seed: int = 0) -> Line:
    counted = [k for k in kept if k is not None]
    score = {"locality.unrelated": sum(counted) / len(counted)}
    return Line(
        model="m", method=method, change=change, seed=seed, scores=score, n={"locality.unrelated": len(counted)},
        outcomes={"locality.unrelated": tuple(kept)},
    )  # fmt: skip


def test_a_loss_is_below_the_noise_floor_by_a_paired_test() -> None:
    """Eight changes of four probes: the floor keeps all but one; a method that loses two of each is below it, one that
    loses what the floor loses is not, nor is one that loses everything of a single change.
    """
    names = [f"c{i}" for i in range(8)]
    floor = [beside(n, [1, 1, 1, 0 if n == "c0" else 1], method="noise floor") for n in names]
    bad = [beside(n, [0, 0, 1, 1]) for n in names]
    equal = [beside(n, [1, 1, 1, 0 if n == "c0" else 1], method="good") for n in names]
    once = [beside(n, [0, 0, 0, 0] if n == "c1" else [1, 1, 1, None], method="once") for n in names]
    found = {row.method: row.floor for row in summarise([*floor, *bad, *equal, *once])}
    assert found["noise floor"] == {}
    loss = found["full"]["locality.unrelated"]
    assert (loss.n, loss.score, loss.floor, loss.below) == (32, 0.5, 31 / 32, True)
    assert loss.p_value == pytest.approx(2 / 2**8)  # every change fell: the sign flips, above McNemar's
    assert found["good"]["locality.unrelated"].p_value == 1.0
    assert not found["good"]["locality.unrelated"].below
    assert not found["once"]["locality.unrelated"].below


def test_each_seed_is_paired_with_the_floor() -> None:
    floor = [beside("a", [1] * 6, method="noise floor")]
    seeds = [beside("a", [0, 0, 0, 1, 1, 1], seed=s) for s in (0, 1)]
    (row,) = [row for row in summarise([*floor, *seeds]) if row.method == "full"]
    beside_it = row.floor["locality.unrelated"]
    assert (beside_it.n, beside_it.below) == (12, True)
    assert beside_it.p_value == pytest.approx(2 / 2**6)
