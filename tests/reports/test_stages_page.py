"""Stages and weights between before and after, in the report: numbers by hand, both languages, no score lost."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.exams.results import ExamInfo, Line, Results, Untouched, read_results, write_results
from posttrain.exams.score_spec import Better, specs
from posttrain.exams.statistics import separate_scores, transfer_scores
from posttrain.reports import numbers
from posttrain.reports.folder import read_run
from posttrain.reports.html import has_change, write_report
from posttrain.reports.marks import marks_of
from posttrain.reports.stages_page import courses_of, stages_section, stages_table
from posttrain.reports.table import text_table
from posttrain.reports.texts import Message, text
from posttrain.reports.view import Table
from posttrain.reports.ways_page import merge_section, ways_of


def exam(name: str, headline: str = "acc", *, better: Better = "more") -> ExamInfo:
    return ExamInfo(name=name, kind="mmlu", headline=headline, scores=specs(headline, better=better))


NAMES = ["roman", "奇數"]
BEFORE = [0.1, 0.2]
SEEDS = ([[0.8, 0.4], [0.5, 1.0]], [[0.6, 0.2], [0.3, 0.8]])


def cell(method: str, seed: int, checkpoint: str, row: list[float], **more: Any) -> Line:
    scores = {"a.acc": row[0], "b.acc": row[1], **more.pop("scores", {})}
    head = {"model": "m", "method": method, "seed": seed, "checkpoint": checkpoint}
    return Line(**head, scores=scores, cost={"wall_s": 1.0}, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cells: list[Line] = []
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
    before = (Untouched(model="m", scores={"a.acc": 0.1, "b.acc": 0.2}),)
    exams = {"a": exam("a"), "b": exam("b")}
    write_results(tmp_path, Results(study="s", exams=exams, before=before, cells=tuple(cells)))
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
    section = stages_section(run, marks_of(run.versions))
    assert section is not None
    summary, lines, *heats = [table_texts(panel.table) if panel.table else [] for panel in section.panels][:5]
    assert summary == [
        ["one by one", "0.650", "\u22120.300", "+0.100", "0.300"],
        ["together", "0.700", "–", "–", "–"],
        ["apart", "0.800", "–", "–", "–"],
    ]
    assert heats[0] == [
        ["before", "0.100", "0.200"],
        ["after roman", "0.700", "0.300"],
        ["after 奇數", "0.400", "0.900"],
    ]
    heat = section.panels[2].table
    assert heat is not None
    framed = [["own" in entry.kind for entry in line.entries] for line in heat.lines]
    assert framed == [[False, False], [True, False], [False, True]]
    chart = section.panels[1].chart
    assert chart is not None
    assert lines == []
    rows = chart.spec(lambda words: text(words, "en"))["data"]["values"]
    assert {row["panel"] for row in rows} == {"one by one"}  # the others have no stages in between
    turns = {(row["task"], row["stage"], round(row["value"], 6)) for row in rows if row["kind"] == "turn"}
    assert turns == {("roman", "roman", 0.7), ("奇數", "奇數", 0.9)}


def table_texts(table: Table) -> list[list[str]]:
    return [[text(words, "en") for words in (*line.labels, *(e.text for e in line.entries))] for line in table.lines]


def test_scores_over_stages_are_of_no_exam(folder: Path) -> None:
    run = read_run(folder)
    assert not has_change(run)
    assert all(not key.startswith("stages.") for row in run.rows for key in row.scores)
    assert {row.checkpoint for row in run.shown} == {"final"}
    shown = text_table(read_results(folder), width=120)
    assert "Backward transfer" in shown
    assert "−0.300" in shown
    assert "stage-roman" not in shown


def test_both_ends_of_the_way_are_known(folder: Path) -> None:
    run = read_run(folder)
    (way,) = ways_of(run).values()
    rounded = {name: [(a, round(value, 6)) for a, value in points] for name, points in way.items()}
    assert rounded == {"a.acc": [(0.0, 0.1), (0.5, 0.8), (1.0, 0.4)], "b.acc": [(0.0, 0.2), (0.5, 0.5), (1.0, 0.9)]}
    section = merge_section(run, marks_of(run.versions))
    assert section is not None
    table = section.panels[1].table
    assert table is not None
    assert [head.name for head in table.heads[1:]] == ["0", "0.5", "1"]
    assert table_texts(table)[0] == ["a.acc", "0.100", "0.800", "0.400"]
    assert [note.key for note in section.panels[0].notes if isinstance(note, Message)] == ["merge.about"]


def test_what_was_kept_begins_whole(folder: Path) -> None:
    scores = {"reliability": 0.5, "locality.unrelated": 0.25, "p.ppl": 30.0}
    results = read_results(folder)
    cells = tuple(line.model_copy(update={"scores": scores}) for line in results.cells)
    write_results(folder, results.model_copy(update={"cells": cells, "exams": {"p": exam("p", "ppl")}}))
    run = read_run(folder)
    (way,) = ways_of(run).values()
    assert way["kept"] == ((0.0, 1.0), (0.5, 0.25), (1.0, 0.25))
    assert way["learned"] == ((0.5, 0.5), (1.0, 0.5))
    section = merge_section(run, marks_of(run.versions))
    assert section is not None
    assert "Not shares, so in the table only: p.ppl." in [text(note, "en") for note in section.panels[0].notes]
    chart = section.panels[0].chart
    assert chart is not None
    assert chart.names == ("learned", "kept")


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
    results = read_results(folder)
    cells = tuple(line.model_copy(update={"stages": {}}) for line in results.cells if line.checkpoint == "final")
    write_results(folder, results.model_copy(update={"cells": cells}))
    run = read_run(folder)
    assert stages_section(run, marks_of(run.versions)) is None
    assert stages_table(run) is None
    assert merge_section(run, marks_of(run.versions)) is None
    assert 'id="stages"' not in write_report(folder).read_text(encoding="utf-8")


def test_where_less_is_better_the_low_score_is_the_blue_one(folder: Path) -> None:
    """Stages that are measured by perplexity, say: the heat runs the other way, and the lowest is the best."""
    results = read_results(folder)
    cells = tuple(
        line.model_copy(update={"stages": {**line.stages, "exams": ["a.acc", "b.acc"]} if line.stages else {}})
        for line in results.cells
    )
    results = results.model_copy(update={"cells": cells})
    write_results(folder, results)
    up = stages_section(read_run(folder), marks_of(read_run(folder).versions))
    lower = {**results.exams, "b": exam("b", better="less")}
    write_results(folder, results.model_copy(update={"exams": lower}))
    run = read_run(folder)
    down = stages_section(run, marks_of(run.versions))
    heats = [section.panels[2].table for section in (up, down) if section is not None]
    before, after = [table.lines for table in heats if table is not None]
    for one, other in zip(before, after, strict=True):
        assert one.entries[0] == other.entries[0]
        value = float(text(other.entries[1].text, "en"))
        assert one.entries[1].colour == numbers.cell_colour(value)
        assert other.entries[1].colour == numbers.cell_colour(1 - value)
    plain = stages_table(run)
    assert plain is not None
    best = [[entry.best for entry in line.entries] for line in plain.lines]
    assert not any(mark for row in best for mark in row[:4])  # a mean over both kinds has no better end
    # roman (more is better) at the end 0.4, 0.7, 0.7; 奇數 (less is better) 0.9, 0.7, 0.9
    assert [row[4:] for row in best] == [[False, False], [True, True], [True, False]]


def test_a_task_is_never_drawn_as_a_method_is(folder: Path) -> None:
    run = read_run(folder)
    marks = marks_of(run.versions)
    section = stages_section(run, marks)
    assert section is not None
    chart = section.panels[1].chart
    assert chart is not None
    spec = chart.spec(lambda words: text(words, "en"))
    shape = next(layer["encoding"]["shape"]["scale"] for layer in spec["spec"]["layer"] if "shape" in layer["encoding"])
    tasks = set(shape["range"])
    methods = {mark.shape for mark in marks.values()}
    assert len(tasks) == 2
    assert len(methods) == 3
    assert not tasks & methods
