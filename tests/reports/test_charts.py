"""Charts are valid Vega-Lite, say what the run says, and take nothing that a model or a user wrote for code."""

import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from altair.vegalite.v6.schema.core import Root

from posttrain.exams.results import Line, Results, write_results
from posttrain.reports.answers import safe_json
from posttrain.reports.change_page import Spot, losses, mean_curve, plot_section, scatter
from posttrain.reports.charts import THEME, Chart, columns_of
from posttrain.reports.exam_page import relative_changes
from posttrain.reports.folder import read_run
from posttrain.reports.html import sections
from posttrain.reports.marks import COLOURS, SHAPES, mark_icon, marks_of
from posttrain.reports.stages_page import Course, over_stages
from posttrain.reports.steps_page import Series, StepPoint, over_steps
from posttrain.reports.texts import LANGUAGES, Words, say, text
from posttrain.reports.ways_page import over_weights
from tests.reports.exam_study import make_study
from tests.reports.synthetic import ATTACK, make_run


def english(words: Words) -> str:
    return text(words, "en")


def rows_of(chart: Chart) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = chart.spec(english)["data"]["values"]
    return rows


def charts_of(folder: Path) -> Iterator[Chart]:
    run = read_run(folder)
    for section in sections(run, marks_of(run.versions), samples=True):
        yield from (panel.chart for panel in section.panels if panel.chart is not None)


def differing(one: Any, other: Any, key: str = "") -> Iterator[str]:
    """The keys under which two specifications differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for name in one:
            yield from differing(one[name], other[name], name)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for a, b in zip(one, other, strict=True):
            yield from differing(a, b, key)
    elif one != other:
        yield key if isinstance(one, str) and isinstance(other, str) else f"{key}, which is no text"


@pytest.mark.parametrize("many", [12, 132, 133, 264, 265, 1000])
def test_no_two_methods_have_one_colour_and_shape(many: int) -> None:
    """However many there are; up to twelve no two have even the shape in common."""
    marks = marks_of([f"m{i}" for i in range(many)])
    assert len({str(mark_icon(each)) for each in marks.values()}) == many
    assert len({mark.shape for mark in list(marks.values())[:12]}) == 12 == len(SHAPES)
    assert len({mark.colour for mark in list(marks.values())[:11]}) == 11 == len(COLOURS)
    same_colour = [(a, b) for a, b in itertools.combinations(list(marks.values())[:24], 2) if a.colour == b.colour]
    assert all(a.shape != b.shape for a, b in same_colour)


@pytest.mark.parametrize("models", [("m", "n"), ("a/model", "b/model")])
def test_one_method_with_two_models_has_two_marks(tmp_path: Path, models: tuple[str, str]) -> None:
    """They stand in one plot, so that a mark is of a model and a method, also where both models' names end alike."""
    scores = {"reliability": 1.0, "locality.a": 0.5}
    cells = tuple(
        Line(model=model, method=method, change="c", scores=scores) for model in models for method in ("a", "b")
    )
    write_results(tmp_path, Results(study="s", cells=cells))
    run = read_run(tmp_path)
    chart = plot_section(run, marks_of(run.versions)).panels[0].chart
    assert chart is not None
    names = [row["name"] for row in rows_of(chart) if row["kind"] == "mean"]
    assert len({*names}) == len(names) == 4
    point = next(layer for layer in chart.spec(english)["layer"] if layer["mark"]["type"] == "point")
    for channel in ("color", "shape"):
        scale = point["encoding"][channel]["scale"]
        assert scale["domain"] == names
        assert len({*scale["range"]}) == 4


def test_every_chart_of_a_study_is_valid_in_every_language(tmp_path: Path) -> None:
    """By the schema of Vega-Lite, which the report itself does not ask: it takes seconds. Languages differ in words."""
    charts = [*charts_of(make_study(tmp_path / "exams")), *charts_of(make_run(tmp_path / "run", changes=2))]
    assert len(charts) > 9
    titles, differ = set(), set()
    for chart in charts:
        specs = [chart.spec(lambda words, language=language: text(words, language)) for language in LANGUAGES]  # type: ignore[misc]
        Root.validate(specs[0])
        differ |= {key for spec in specs for key in differing(specs[0], spec)}
        titles |= {spec["description"] for spec in specs}
    assert {"Loss curves", "損失曲線", "mmlu over steps"} <= titles
    assert differ == {"description", "domain", "group", "name", "title"}  # words


def test_the_page_holds_rows_once_where_languages_have_the_same(tmp_path: Path) -> None:
    run_charts = list(charts_of(make_run(tmp_path, changes=2)))
    words = {language: (lambda words, language=language: text(words, language)) for language in LANGUAGES}
    plot, loss = (chart.payload(words) for chart in run_charts)
    assert len(plot["rows"]) == 2  # its corner is named in words
    assert len(loss["rows"]) == 1
    assert set(loss["order"].values()) == {0}
    fields, rows = loss["rows"][0].values()
    again = [{k: v for k, v in zip(fields, row, strict=True) if v is not None} for row in rows]
    for one, other in zip(again, rows_of(run_charts[1]), strict=True):
        assert one.keys() == other.keys()
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert {**one, "loss": 0} == {**other, "loss": 0}


def test_scatter_has_a_mark_per_method_and_a_dot_per_change() -> None:
    marks = marks_of(("自訂<方法>", "b"))
    spots = [
        Spot("自訂<方法>", marks["自訂<方法>"], 0.2, 0.9, (0.1, 0.3), (0.8, 1.0), ((0.2, 0.9, "a & b"),)),
        Spot("b", marks["b"], 0.2, 0.9, (0.1, 0.3), (0.8, 1.0), ()),
    ]
    rows = rows_of(scatter(spots))
    assert [row["kind"] for row in rows] == ["dot", "mean", "mean", "corner"]
    assert rows[0]["change"] == "a & b"
    assert (rows[1]["x"], rows[1]["low"], rows[1]["top"]) == (20, 10, 100)
    assert rows[1]["forgotten"] == "20\u00a0% [10–30]"
    svg = ET.fromstring(str(scatter(spots).svg(lambda words: text(words, "zh-TW"))))
    words = ["".join(e.itertext()) for e in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"自訂<方法>", "b", "學到（%）", "遺忘（%）"} <= {*words}


NASTY = "\ue0007\ue001 \ue000x" + ATTACK + "\"]); datum['x'] {{7*7}} \\u003c/script"
"""A name with everything in it that means something to HTML, to JSON or to an expression of Vega."""


def nasty_charts() -> Iterator[Chart]:
    marks = marks_of((NASTY, "b"))
    steps = [StepPoint(1, 0.5, (0.4, 0.6), checkpoint=NASTY), StepPoint(2, 0.7, checkpoint="final")]
    spots = [Spot(name, mark, 0.2, 0.9, (0.1, 0.3), (0.8, 1.0), ((0.2, 0.9, NASTY),)) for name, mark in marks.items()]
    course = Course(NASTY, ("m", NASTY), "sequential", (NASTY, "b"), (0.0, 0.1), ((0.5, 0.2), (0.4, 0.9)), {}, 1)
    yield scatter(spots)
    yield losses({name: {"new": [((1, 4.0), (2, 2.0))], "all": []} for name in marks}, marks)
    yield relative_changes([(NASTY, NASTY, 0.5), ("can.knowledge", "b", -2.0)], marks)
    yield over_steps(
        say("verbatim", text=NASTY), [Series(name, mark, steps, chance=0.25) for name, mark in marks.items()]
    )
    yield over_stages([course, course._replace(label="b")], marks)
    names = {name: say("verbatim", text=name) for name in marks}
    yield over_weights({NASTY: dict.fromkeys(marks, ((0.0, 0.5), (1.0, 1.0)))}, names, marks)


@pytest.mark.parametrize("chart", list(nasty_charts()), ids=lambda chart: chart.label.key)
def test_names_and_output_are_never_code(chart: Chart) -> None:
    svg = chart.svg(english)
    assert "<script" not in svg
    assert "<img" not in svg
    ET.fromstring(str(svg))
    assert not set("<>&\u2028") & set(safe_json(chart.payload(dict.fromkeys(LANGUAGES, english))))
    spec = chart.spec(english)
    assert any(NASTY in row.values() for row in spec.pop("data")["values"])
    layers = spec.get("spec", spec)["layer"]
    tips = [tip for layer in layers for tip in layer["encoding"].get("tooltip", [])]
    assert tips
    assert not any(NASTY in str(tip.values()) for tip in tips)  # a value in a tooltip, never a title or a field
    vega = vl_convert.vegalite_to_vega({**chart.spec(english), "config": THEME})
    codes = list(expressions(vega))
    assert len(codes) > 10
    assert not any(NASTY[:9] in code or NASTY in code for code in codes)


def expressions(node: Any) -> Iterator[str]:
    """Whatever a specification of Vega gives to evaluate."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "signal", "test", "update", "init") and isinstance(value, str):
                yield value
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_panels_fill_the_page() -> None:
    assert [columns_of(n) for n in (1, 2, 3, 4, 5, 7)] == [1, 2, 3, 2, 3, 3]


def test_a_stopped_curve_counts_with_its_last_loss() -> None:
    curves = [((1, 4.0), (2, 2.0)), ((1, 2.0), (2, 1.0), (3, 0.0))]
    assert mean_curve(curves) == [(1, 3.0), (2, 1.5), (3, 1.0)]


def test_losses_have_a_thin_curve_per_cell_and_a_thick_one_for_their_mean() -> None:
    curves = {"full": {"new": [((1, 4.0), (2, 2.0)), ((1, 2.0), (2, 1.0))], "all": [((1, 1.0), (2, 1.0))]}}
    rows = rows_of(losses(curves, marks_of(curves)))
    drawn = {(row["kind"], row["cell"]) for row in rows if not row["kind"].endswith("tip")}
    assert drawn == {("new cell", 0), ("new cell", 1), ("new", -1), ("all", -1)}
    assert [row["loss"] for row in rows if row["kind"] == "new"] == [3.0, 1.5]


def test_a_long_mean_curve_has_few_tooltips() -> None:
    long = tuple((step, 1.0) for step in range(1, 1001))
    rows = rows_of(losses({"full": {"new": [long], "all": []}}, marks_of(["full"])))
    assert sum(row["kind"] == "new" for row in rows) == 1000
    assert 20 <= sum(row["kind"] == "new tip" for row in rows) <= 40


def test_altair_is_imported_for_a_chart_only() -> None:
    code = "import sys, posttrain.reports.html, posttrain.cli.main; print({'altair', 'vl_convert'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"set\(\)\s*", done.stdout), done.stdout
