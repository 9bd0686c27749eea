"""Right after and at the end, counted by hand, and the section on edits of a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from posttrain.exams.results import ExamInfo, Line, MethodInfo, Results, write_results
from posttrain.exams.score_spec import ScoreSpec
from posttrain.exams.scores import HEADLINE, SPECS
from posttrain.exams.summary import summarise
from posttrain.reports.edits_page import COLUMNS, Written, edits_section, written_of
from posttrain.reports.folder import read_run
from posttrain.reports.html import write_report
from posttrain.reports.marks import marks_of
from posttrain.reports.texts import text

Scores = Mapping[str, float]


def line(point: str, change: str, learned: float, kept: float = 1.0, *, method: str = "memit", **more: Any) -> Line:
    scores = {"reliability": learned, "locality.unrelated": kept, **more.pop("scores", {})}
    return Line(model="m", method=method, change=change, checkpoint=point, scores=scores, **more)


def sequence(method: str = "memit") -> list[Line]:
    """Three changes of 1, 2 and 1 edits, one after another, examined after each; each is lost a little later."""
    end = {"cost": {"edits": 4.0}}
    return [
        line("edits-1", "a", 1.0, 0.9, method=method),
        line("edits-3", "a", 0.5, 0.8, method=method),
        line("edits-3", "b", 0.75, 0.6, method=method),
        line("final", "a", 0.25, 0.5, method=method, **end),
        line("final", "b", 0.5, 0.3, method=method, **end),
        line("final", "c", 0.75, 0.4, method=method, **end),
    ]


def run_of(folder: Path, cells: Sequence[Line], **exams: ExamInfo) -> Path:
    names = dict.fromkeys(cell.method for cell in cells)
    results = Results(
        study="s",
        methods={name: MethodInfo(kind="edit") for name in names},
        exams={"change": ExamInfo(name="change", kind="change", headline=HEADLINE, scores=SPECS), **exams},
        cells=tuple(cells),
        summary=summarise(cells),
    )
    folder.mkdir(exist_ok=True)
    write_results(folder, results)
    return folder


def points(folder: Path, cells: Sequence[Line], **exams: ExamInfo) -> tuple[Written, ...]:
    (found,) = written_of(read_run(run_of(folder, cells, **exams))).values()
    return found


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_right_after_and_at_the_end_by_hand(tmp_path: Path) -> None:
    """Right after: of the change that came since the point before; all: of all so far; kept: of every change."""
    found = points(tmp_path, sequence())
    assert [one.edits for one in found] == [1, 3, 4]
    assert [one.newly for one in found] == [1.0, 0.75, 0.75]
    assert [one.all for one in found] == [1.0, (0.5 + 0.75) / 2, (0.25 + 0.5 + 0.75) / 3]
    assert [one.kept for one in found] == pytest.approx([0.9, (0.8 + 0.6) / 2, (0.5 + 0.3 + 0.4) / 3])
    assert [one.exams for one in found] == [{}, {}, {}]


def test_points_are_in_the_order_of_edits_and_of_no_name(tmp_path: Path) -> None:
    cells = [
        line("edits-10", "b", 0.5),
        line("edits-10", "a", 0.5),
        line("final", "a", 0.25, cost={"edits": 12.0}),
        line("final", "b", 0.25, cost={"edits": 12.0}),
        line("final", "c", 1.0, cost={"edits": 12.0}),
        line("edits-2", "a", 1.0),
    ]
    assert [(one.edits, one.newly, one.all) for one in points(tmp_path, cells)] == [
        *((2, 1.0, 1.0), (10, 0.5, 0.5), (12, 1.0, 0.5)),
    ]


def test_several_changes_come_between_two_points(tmp_path: Path) -> None:
    cells = [
        *(line("edits-2", change, learned) for change, learned in (("a", 1.0), ("b", 0.5))),
        *(line("final", change, 1.0, cost={"edits": 4.0}) for change in ("a", "b")),
        *(line("final", change, 0.0, cost={"edits": 4.0}) for change in ("c", "d")),
    ]
    assert [(one.newly, one.all) for one in points(tmp_path, cells)] == [(0.75, 0.75), (0.0, 0.5)]


def test_seeds_are_runs_of_their_own(tmp_path: Path) -> None:
    """A change is new at its first point of each seed; both count alike."""
    cells = [
        *(line("edits-1", "a", learned, seed=seed) for seed, learned in ((0, 1.0), (1, 0.0))),
        *(line("final", "a", 0.5, seed=seed, cost={"edits": 2.0}) for seed in (0, 1)),
        *(line("final", "b", learned, seed=seed, cost={"edits": 2.0}) for seed, learned in ((0, 1.0), (1, 0.5))),
    ]
    assert [(one.newly, one.all) for one in points(tmp_path, cells)] == [(0.5, 0.5), (0.75, 0.625)]


def test_changes_that_are_written_together_have_no_right_after(tmp_path: Path) -> None:
    """All of them are examined at every point, those too that are not written yet."""
    cells = [
        *(line("edits-1", change, learned) for change, learned in (("a", 1.0), ("b", 0.0))),
        *(line("final", change, learned, cost={"edits": 2.0}) for change, learned in (("a", 0.5), ("b", 1.0))),
    ]
    assert [(one.newly, one.all) for one in points(tmp_path, cells)] == [(None, 0.5), (None, 0.75)]
    section = edits_section(run := read_run(tmp_path), marks_of(run.versions))
    assert section is not None
    table = section.panels[1].table
    assert table is not None
    assert [text(row.labels[0], "en") for row in table.lines] == ["all so far", "kept"]


def test_a_run_that_is_going_on_has_what_is_there(tmp_path: Path) -> None:
    assert [(one.edits, one.newly, one.all) for one in points(tmp_path, sequence()[:3])] == [
        *((1, 1.0, 1.0), (3, 0.75, 0.625)),
    ]
    assert [(one.edits, one.all) for one in points(tmp_path, sequence()[:1])] == [(1, 1.0)]


def test_a_cell_that_failed_has_no_figures(tmp_path: Path) -> None:
    failed = Line(model="m", method="rome", change="a", status="failed", error="it would break the model")
    assert list(written_of(read_run(run_of(tmp_path, [*sequence(), failed])))) == [("m", "memit")]


def test_scores_that_are_missing_are_left_out(tmp_path: Path) -> None:
    bare = [
        Line(model="m", method="memit", change="", checkpoint="edits-5", scores={"quiz.exact": 0.5}),
        Line(model="m", method="memit", change="", scores={"quiz.exact": 0.25}, cost={"edits": 10.0}),
    ]
    quiz = ExamInfo(name="quiz", kind="self_test", headline="exact", scores=(ScoreSpec("exact", "Exact"),))
    assert points(tmp_path, bare, quiz=quiz) == (
        Written(5, None, None, None, {"quiz.exact": 0.5}),
        Written(10, None, None, None, {"quiz.exact": 0.25}),
    )


def test_other_points_are_no_edits(tmp_path: Path) -> None:
    """Those of a training, of a chain's step, and an end that has no points before it."""
    cells = [
        line("step-20", "a", 1.0, method="train"),
        line("1-edit.edits-1", "a", 1.0, method="chain"),
        line("final", "a", 1.0, method="chain", cost={"edits": 2.0}),
        line("final", "a", 1.0, method="rome", cost={"edits": 2.0}),
    ]
    run = read_run(run_of(tmp_path, cells))
    assert written_of(run) == {}
    assert edits_section(run, marks_of(run.versions)) is None
    assert 'id="edits"' not in write_report(tmp_path).read_text(encoding="utf-8")


def test_every_method_has_its_own_points(tmp_path: Path) -> None:
    cells = [*sequence(), *sequence("rome")[:3], line("final", "a", 1.0, method="prompt")]
    found = written_of(read_run(run_of(tmp_path, cells)))
    assert {method: [one.edits for one in own] for (_, method), own in found.items()} == {
        "memit": [1, 3, 4],
        "rome": [1, 3],
    }


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_section_by_hand(tmp_path: Path) -> None:
    quiz = ExamInfo(name="quiz", kind="self_test", headline="exact", scores=(ScoreSpec("exact", "Exact"),))
    cells = [cell.model_copy(update={"scores": {**cell.scores, "quiz.exact": 0.125}}) for cell in sequence()]
    run = read_run(run_of(tmp_path, cells, quiz=quiz))
    section = edits_section(run, marks_of(run.versions))
    assert section is not None
    first, own = section.panels
    assert own.table is not None
    assert [head.name for head in own.table.heads[1:]] == ["1", "3", "4"]
    rows = {text(row.labels[0], "en"): [entry.text for entry in row.entries] for row in own.table.lines}
    assert rows["right after"] == ["1.000", "0.750", "0.750"]
    assert rows["all so far"] == ["1.000", "0.625", "0.500"]
    assert rows["kept"] == ["0.900", "0.700", "0.400"]
    assert len(rows) == 4
    assert first.chart is not None
    spec = first.chart.spec(partial(text, language="en"))
    drawn = [row for row in spec["data"]["values"] if row["kind"] == "point"]
    assert [(row["edits"], row["value"]) for row in drawn if row["score"] == "all so far"] == [
        *((1, 100.0), (3, 62.5), (4, 50.0)),
    ]
    assert {row["score"] for row in drawn} >= {"right after", "all so far", "kept"}


def test_what_editors_noted(tmp_path: Path) -> None:
    """Median and worst by hand; cells of one folder are counted once, and what was left out has no figures."""
    cells = [
        line("final", name, 1.0, folder=f"cells/{folder}") for name, folder in (("a", "x"), ("b", "x"), ("c", "y"))
    ]
    run_of(tmp_path, cells)
    noted = {
        "x": [{"nats": 0.02, "share": 0.1, "alignment": 0.9}, {"nats": 0.04, "share": 0.3, "alignment": None}],
        "y": [{"nats": 3.0, "share": 0.2, "alignment": 0.5}, {"nats": 9.0, "share": 0.0, "skipped": "too long"}],
    }
    for name, figures in noted.items():
        (tmp_path / "cells" / name).mkdir(parents=True)
        text_of = "".join(json.dumps({"number": n, "figures": own}) + "\n" for n, own in enumerate(figures))
        (tmp_path / "cells" / name / "edits.jsonl").write_text(text_of, encoding="utf-8")
    run = read_run(tmp_path)
    section = edits_section(run, marks_of(run.versions))
    assert section is not None
    (panel,) = section.panels  # without points between edits there is no chart
    assert panel.table is not None
    assert [text(head.name, "en") for head in panel.table.heads[1:]] == [
        *("edits", "left out", "loss", "alignment", "share", "condition", "realised"),
    ]
    (row,) = panel.table.lines
    assert [(entry.text, *entry.below) for entry in row.entries] == [
        *(("3",), ("1",), ("0.04", "3"), ("0.70", "0.50"), ("0.20", "0.30"), ("–",), ("–",)),
    ]


def test_a_score_that_is_no_share_is_in_the_table_alone(tmp_path: Path) -> None:
    loss = ExamInfo(name="loss", kind="lm_eval", headline="nats", scores=(ScoreSpec("nats", "Loss"),))
    cells = [cell.model_copy(update={"scores": {**cell.scores, "loss.nats": 2.5}}) for cell in sequence()]
    run = read_run(run_of(tmp_path, cells, loss=loss))
    section = edits_section(run, marks_of(run.versions))
    assert section is not None
    first, own = section.panels
    assert own.table is not None
    assert len(own.table.lines) == 4
    assert first.chart is not None
    drawn = first.chart.spec(partial(text, language="en"))["data"]["values"]
    assert len({row["score"] for row in drawn if row["kind"] == "point"}) == 3


def test_many_points_are_shown_evenly(tmp_path: Path) -> None:
    names = [f"c{n:02}" for n in range(31)]
    cells = [line(f"edits-{n}", change, 1.0) for n in range(1, 31) for change in names[:n]]
    cells += [line("final", change, 1.0, cost={"edits": 31.0}) for change in names]
    run = read_run(run_of(tmp_path, cells))
    section = edits_section(run, marks_of(run.versions))
    assert section is not None
    table = section.panels[1].table
    assert table is not None
    shown = [int(str(head.name)) for head in table.heads[1:]]
    assert len(shown) == COLUMNS
    assert (shown[0], shown[-1]) == (1, 31)
    gaps = {after - before for before, after in pairwise(shown)}
    assert gaps == {3, 4}


@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_the_page_has_it_in_both_languages(tmp_path: Path, language: str) -> None:
    page = write_report(run_of(tmp_path, sequence()), language=language).read_text(encoding="utf-8")
    assert page.count('<section id="edits">') == 1
    assert 'href="#edits"' in page
    section = page[page.index('<section id="edits">') :].partition("</section>")[0]
    for words in ("Over the number of edits", "編輯次數增加時"):
        assert words in page
    for words in (
        "right after",
        "剛寫入",
        "all so far",
        "至今全部",
        "kept",
        "守住的",
        "edits so far",
        "至今的編輯次數",
    ):
        assert words in section
    for words in ("The model is examined after every few edits.", "每編輯幾次就考一次。"):
        assert words in section


def test_the_chart_speaks_chinese(tmp_path: Path) -> None:
    run = read_run(run_of(tmp_path, sequence()))
    section = edits_section(run, marks_of(run.versions))
    assert section is not None
    chart = section.panels[0].chart
    assert chart is not None
    spec = chart.spec(partial(text, language="zh-TW"))
    assert "'title': '至今的編輯次數'" in str(spec)
    assert {row["score"] for row in spec["data"]["values"] if row["kind"] == "point"} == {
        "剛寫入",
        "至今全部",
        "守住的",
    }
