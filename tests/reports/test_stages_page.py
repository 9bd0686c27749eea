"""Stages and weights between before and after, in the report: numbers by hand, both languages, no score lost."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.exams.transfer import separate_scores, transfer_scores
from posttrain.reports import numbers
from posttrain.reports.folder import read_run
from posttrain.reports.html import has_change, write_report
from posttrain.reports.merge_back_page import merge_view, ways_of
from posttrain.reports.stages_page import courses_of, stages_table, stages_view
from posttrain.reports.svg import marks_of
from posttrain.reports.table import text_table

EXAM = {"headline": "acc", "capabilities": {}, "higher_is_better": True, "notes": [], "chance": None, "signature": ""}
NAMES = ["roman", "奇數"]
BEFORE = [0.1, 0.2]
SEEDS = ([[0.8, 0.4], [0.5, 1.0]], [[0.6, 0.2], [0.3, 0.8]])


def cell(method: str, seed: int, checkpoint: str, row: list[float], **more: Any) -> dict[str, Any]:
    scores = {"a.acc": row[0], "b.acc": row[1], **more.pop("scores", {})}
    return {
        "model": "m", "method": method, "change": "", "seed": seed, "checkpoint": checkpoint, "status": "done",
        "scores": scores, "ci95": {}, "n": {}, "cost": {"wall_s": 1.0}, "folder": "", **more,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cells = []
    for seed, matrix in enumerate(SEEDS):
        found = transfer_scores(BEFORE, matrix)
        told = {"how": "sequential", "names": NAMES, "before": BEFORE, "matrix": matrix, **found}
        own = {f"stages.{key}": value for key, value in found.items()}
        cells += [
            cell("one by one", seed, "stage-roman", matrix[0]),
            cell("one by one", seed, "final", matrix[1], stages=told, scores=own, step=9),
            cell("one by one", seed, "blend-0.50", [0.9 - seed * 0.2, 0.5]),
        ]
        together = {"how": "multitask", "names": NAMES, "before": BEFORE, "matrix": [[0.7, 0.7]], "acc": 0.7}
        cells.append(cell("together", seed, "final", [0.7, 0.7], stages=together, scores={"stages.acc": 0.7}))
        apart = {"how": "separate", "names": NAMES, "before": BEFORE, "matrix": matrix, **separate_scores(matrix)}
        cells.append(cell("apart", seed, "final", [matrix[0][0], matrix[1][1]], stages=apart,
                          scores={"stages.acc": apart["acc"]}))  # fmt: skip
    before = {"model": "m", "scores": {"a.acc": 0.1, "b.acc": 0.2}, "ci95": {}, "n": {}, "folder": "", "cost": {}}
    results = {"study": "s", "exams": {"a": EXAM, "b": EXAM}, "before": [before], "cells": cells, "summary": []}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (tmp_path / "study.yaml").write_text("study: s\n", encoding="utf-8")
    return tmp_path


def test_matrices_are_means_over_cells(folder: Path) -> None:
    one, together, apart = courses_of(read_run(folder))
    assert [[round(value, 6) for value in row] for row in one.matrix] == [[0.7, 0.3], [0.4, 0.9]]
    assert one.cells == 2
    assert one.transfer["bwt"][0] == pytest.approx(-0.3)
    assert one.transfer["acc"][0] == pytest.approx((0.75 + 0.55) / 2)
    assert one.transfer["acc"][1] == (0.0, 1.0)  # two seeds: by Student's t nothing is known
    assert [[round(value, 6) for value in row] for row in together.matrix] == [[0.7, 0.7]]
    assert list(together.transfer) == ["acc"]
    assert apart.transfer["acc"][0] == pytest.approx((0.9 + 0.7) / 2)


def test_the_heat_table_frames_each_stages_own_task(folder: Path) -> None:
    run = read_run(folder)
    view = stages_view(run, marks_of(run.versions))
    assert view is not None
    assert view.heads == ("acc", "bwt", "fwt", "forgetting")
    assert [value for value, _ in view.summary[0].values] == ["0.650", "\u22120.300", "+0.100", "0.300"]
    assert [value for value, _ in view.summary[1].values] == ["0.700", "–", "–", "–"]
    lines = view.panels[0].lines
    assert [[c.text for c in line.cells] for line in lines] == [
        ["0.100", "0.200"],
        ["0.700", "0.300"],
        ["0.400", "0.900"],
    ]
    assert [[c.own for c in line.cells] for line in lines] == [[False, False], [True, False], [False, True]]
    assert str(view.panels[0].svg).split("</svg>")[0].count("best-ring") == 2  # at one of its sizes
    assert not view.panels[1].svg
    assert not view.panels[2].svg


def test_scores_over_stages_are_of_no_exam(folder: Path) -> None:
    run = read_run(folder)
    assert not has_change(run)
    assert all(not key.startswith("stages.") for row in run.rows for key in row.scores)
    assert {row.checkpoint for row in run.shown} == {"final"}
    shown = text_table(json.loads((folder / "results.json").read_text(encoding="utf-8")), width=120)
    assert "Backward transfer" in shown
    assert "−0.300" in shown
    assert "stage-roman" not in shown


def test_both_ends_of_the_way_are_known(folder: Path) -> None:
    run = read_run(folder)
    (way,) = ways_of(run)
    rounded = {name: [(a, round(value, 6)) for a, value in points] for name, points in way.scores.items()}
    assert rounded == {"a.acc": [(0.0, 0.1), (0.5, 0.8), (1.0, 0.4)], "b.acc": [(0.0, 0.2), (0.5, 0.5), (1.0, 0.9)]}
    view = merge_view(run, marks_of(run.versions))
    assert view is not None
    assert view.panels[0].heads == ("0", "0.5", "1")
    assert view.left_out == ()


def test_what_was_kept_begins_whole(folder: Path) -> None:
    data = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for one in data["cells"]:
        one["scores"] = {"reliability": 0.5, "locality.unrelated": 0.25, "p.ppl": 30.0}
    data["exams"] = {"p": {**EXAM, "headline": "ppl"}}
    (folder / "results.json").write_text(json.dumps(data), encoding="utf-8")
    run = read_run(folder)
    (way,) = ways_of(run)
    assert way.scores["kept"] == ((0.0, 1.0), (0.5, 0.25), (1.0, 0.25))
    assert way.scores["learned"] == ((0.5, 0.5), (1.0, 0.5))
    view = merge_view(run, marks_of(run.versions))
    assert view is not None
    assert view.left_out == ("p.ppl",)
    assert len(view.scores) == 2


def test_the_page_and_its_table(folder: Path) -> None:
    page = write_report(folder).read_text(encoding="utf-8")
    for section in ('<section id="stages">', '<section id="merge">'):
        assert page.count(section) == 1
    assert "一項任務接著一項" in page
    assert "奇數" in page
    assert not re.search(r"\{[a-z]+\}", page.partition('<section id="stages">')[2].partition("</section>")[0])
    with (folder / "tables" / "stages.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["method", "stages", "ACC", "BWT", "FWT", "Forgetting", *NAMES]
    assert rows[1] == ["one by one", "sequential", "0.650", "-0.300", "0.100", "0.300", "0.400", "0.900"]
    assert rows[3] == ["apart", "separate", "0.800", "", "", "", "0.700", "0.900"]
    assert (folder / "tables" / "stages.tex").is_file()


def test_without_stages_there_is_no_section(folder: Path) -> None:
    data = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    data["cells"] = [
        {k: v for k, v in one.items() if k != "stages"} for one in data["cells"] if one["checkpoint"] == "final"
    ]
    (folder / "results.json").write_text(json.dumps(data), encoding="utf-8")
    run = read_run(folder)
    assert stages_view(run, marks_of(run.versions)) is None
    assert stages_table(run) is None
    assert merge_view(run, marks_of(run.versions)) is None
    assert 'id="stages"' not in write_report(folder).read_text(encoding="utf-8")


def test_where_less_is_better_the_low_score_is_the_blue_one(folder: Path) -> None:
    """Stages that are measured by perplexity, say: the heat runs the other way, and the lowest is the best."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for cell in results["cells"]:
        if cell.get("stages"):
            cell["stages"]["exams"] = ["a.acc", "b.acc"]
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    up = stages_view(read_run(folder), marks_of(read_run(folder).versions))
    results["exams"]["b"] = {**EXAM, "higher_is_better": False}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    run = read_run(folder)
    down = stages_view(run, marks_of(run.versions))
    assert up is not None
    assert down is not None
    for before, after in zip(up.panels[0].lines, down.panels[0].lines, strict=True):
        assert before.cells[0] == after.cells[0]
        value = float(after.cells[1].text)
        assert before.cells[1].colour == numbers.cell_colour(value)
        assert after.cells[1].colour == numbers.cell_colour(1 - value)
    plain = stages_table(run)
    assert plain is not None
    assert plain.better == (None, None, None, None, True, False)


def test_a_task_is_never_drawn_as_a_method_is(folder: Path) -> None:
    run = read_run(folder)
    marks = marks_of(run.versions)
    view = stages_view(run, marks)
    assert view is not None
    methods = {str(panel.icon) for panel in view.panels}
    assert len(methods) == 3
    assert not methods & {str(icon) for _, icon in view.tasks}
