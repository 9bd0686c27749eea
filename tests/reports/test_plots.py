import itertools
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from posttrain.reports.folder import read_run
from posttrain.reports.panels import scatters
from posttrain.reports.plots import Curve, Frame, Spot, loss_panel, mean_curve, nice_ticks, place_labels, scatter
from posttrain.reports.sizes import WHOLE, Size, columns_of, panel_sizes
from posttrain.reports.svg import COLOURS, SHAPES, mark_icon, marks_of, shortened, text_width
from posttrain.reports.texts import say

FRAME = Frame(52, 14, 640, 400)
SHARE = st.floats(0, 1)


@given(st.lists(st.tuples(SHARE, SHARE), min_size=1, max_size=7))
@example([(0.0, 0.5), (0.0, 0.5), (0.0, 0.0), (0.0, 0.0), (0.0, 0.5), (0.0, 0.5)])
@settings(max_examples=40, deadline=None)
def test_labels_lie_on_no_other_label(points: list[tuple[float, float]]) -> None:
    names = ["prompt", "full", "full+pattern", "full+self", "full+ask_self", "lora", "lora+self"][: len(points)]
    anchors = [(FRAME.x(x), FRAME.y(y)) for x, y in points]
    boxes = place_labels(names, anchors, [], FRAME)
    for a, b in itertools.combinations(boxes, 2):
        assert a.overlap(b) == 0


def test_a_lone_label_stands_beside_its_mark_and_inside_the_frame() -> None:
    for corner in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
        x, y = FRAME.x(corner[0]), FRAME.y(corner[1])
        (box,) = place_labels(["full+ask_self"], [(x, y)], [], FRAME)
        assert FRAME.left <= box.left
        assert box.right <= FRAME.left + FRAME.width
        assert not (box.left < x < box.right and box.top < y < box.bottom)


@pytest.mark.parametrize("many", [12, 132, 133, 264, 265, 1000])
def test_no_two_methods_have_one_colour_and_shape(many: int) -> None:
    """However many there are; up to twelve no two have even the shape in common."""
    marks = marks_of([f"m{i}" for i in range(many)])
    assert len({str(mark_icon(each)) for each in marks.values()}) == many
    assert len({mark.shape for mark in list(marks.values())[:12]}) == 12 == len(SHAPES)
    assert len({mark.colour for mark in list(marks.values())[:11]}) == 11 == len(COLOURS)
    same_colour = [(a, b) for a, b in itertools.combinations(list(marks.values())[:24], 2) if a.colour == b.colour]
    assert all(a.shape != b.shape for a, b in same_colour)


def test_one_method_with_two_models_has_two_marks(tmp_path: Path) -> None:
    """They stand in one plot, so that a mark is of a model and a method."""
    scores = {"reliability": 1.0, "locality.a": 0.5}
    cells = [
        {"model": model, "method": method, "change": "c", "scores": scores} for model in "mn" for method in ("a", "b")
    ]
    (tmp_path / "results.json").write_text(json.dumps({"study": "s", "cells": cells}), encoding="utf-8")
    run = read_run(tmp_path)
    marks = marks_of(run.versions)
    assert len({str(mark_icon(mark)) for mark in marks.values()}) == 4
    svg = ET.fromstring(str(scatters(run, marks)[0]))
    drawn = [
        "".join(ET.tostring(path).decode() for path in g.iter("path"))
        for g in svg.iter("g")
        if g.get("class") == "mean"
    ]
    assert len(drawn) == 4
    fills = [re.search(r'fill="(#\w+)"', path) for path in drawn]
    assert len({match[1] for match in fills if match}) == 4


def test_long_names_keep_their_beginning_and_their_end() -> None:
    assert shortened("lora", 13, 100) == "lora"
    long = "full-parameter-training-with-elastic-weight-consolidation-0."
    cut = [shortened(long + end, 13, 150) for end in "12"]
    assert all(text_width(each, 13) <= 150 for each in cut)
    assert all(each.startswith("full-par") and "…" in each for each in cut)
    assert cut[0] != cut[1]
    assert text_width(shortened("以大量重播資料保護舊知識的全參數微調", 13, 100), 13) <= 100


def test_charts_are_as_wide_as_the_page_at_every_width() -> None:
    """1160 is the page's width without its margins; three panels and their gaps fill it, too."""
    assert [size.width for size in WHOLE] == [1160, 720, 350]
    assert [columns_of(n) for n in (1, 2, 3, 4, 5, 7)] == [1, 2, 3, 2, 3, 3]
    for panels in (1, 2, 3, 4, 12):
        sizes = panel_sizes(panels)
        columns = columns_of(panels)
        assert abs(columns * sizes[0].width + 24 * (columns - 1) - 1160) < 20
        shown = " ".join(size.class_ for size in sizes).split()
        assert sorted(shown) == (["at-mid", "at-narrow", "at-wide"] if columns < 3 else [])


def test_scatter_is_well_formed_and_its_text_is_text() -> None:
    marks = marks_of(("自訂<方法>", "b"))
    spots = [
        Spot("自訂<方法>", marks["自訂<方法>"], 0.2, 0.9, (0.1, 0.3), (0.8, 1.0), ((0.2, 0.9, "a & b"),)),
        Spot("b", marks["b"], 0.2, 0.9, (0.1, 0.3), (0.8, 1.0), ()),
    ]
    tree = ET.fromstring(str(scatter(spots, Size(700, 400, "at-wide"))))
    words = ["".join(e.itertext()) for e in tree.iter("text")]
    assert "自訂<方法>" in words
    assert "learned, %學到（%）" in words
    assert sum(e.get("class") == "mean" for e in tree.iter("g")) == 2
    assert sum(e.get("class") == "dot" for e in tree.iter("g")) == 1


def test_a_stopped_curve_counts_with_its_last_loss() -> None:
    curves = [Curve(((1, 4.0), (2, 2.0))), Curve(((1, 2.0), (2, 1.0), (3, 0.0)))]
    assert mean_curve(curves) == [(1, 3.0), (2, 1.5), (3, 1.0)]


def test_loss_panel_draws_each_cell_thin_and_the_mean_thick() -> None:
    curves = {"new": [Curve(((1, 4.0), (2, 2.0))), Curve(((1, 2.0), (2, 1.0)))], "all": [Curve(((1, 1.0), (2, 1.0)))]}
    svg = str(
        loss_panel(curves, Size(376, 220, ""), colour="#000", steps=2, top=4, label=say("loss.label", method="full"))
    )
    drawn = [e.get("class") for e in ET.fromstring(svg).iter("polyline") if e.get("class") != "grid"]
    assert sorted(map(str, drawn)) == ["thick all", "thick new", "thin new", "thin new"]


def test_ticks_are_round() -> None:
    assert nice_ticks(6.0) == [0, 2, 4, 6]
    assert nice_ticks(20) == [0, 5, 10, 15, 20]
    assert nice_ticks(0.02) == [0, 0.005, 0.01, 0.015, 0.02]


def test_a_label_stands_off_its_own_interval() -> None:
    """Though its changes crowd around the mark, off the interval."""
    version = ("m", "prompt")
    drawn = marks_of([version])[version]
    off = (0.04, 0.05, 0.06, 0.07, 0.08, 0.09)
    dots = tuple((0.4 + a * x, 0.5 + b * y, "c") for x in off for y in off for a in (-1, 1) for b in (-1, 1))
    spot = Spot("prompt", drawn, 0.4, 0.5, (0.1, 0.8), (0.2, 0.8), dots)
    picture = str(scatter([spot], WHOLE[0]))
    (label,) = [one for one in ET.fromstring(picture).iter() if one.get("class") == "label"]
    x, y = float(label.get("x", "")), float(label.get("y", ""))
    frame = Frame(52, 14, WHOLE[0][0] - 66, WHOLE[0][1] - 60)
    top, bottom = y - 13, y + 3
    assert not top < frame.y(0.5) < bottom
    assert not x < frame.x(0.4) < x + text_width("prompt", 13)
