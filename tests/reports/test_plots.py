import itertools
import xml.etree.ElementTree as ET

from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.reports.plots import Curve, Frame, Spot, loss_panel, mean_curve, nice_ticks, place_labels, scatter
from posttrain.reports.svg import COLOURS, SHAPES, marks_of
from posttrain.reports.texts import say

FRAME = Frame(52, 14, 640, 400)
SHARE = st.floats(0, 1)


@given(st.lists(st.tuples(SHARE, SHARE), min_size=1, max_size=7))
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


def test_marks_differ_in_shape_and_colour() -> None:
    names = tuple(f"m{i}" for i in range(len(SHAPES) * len(COLOURS)))
    marks = marks_of(names)
    assert len(set(marks.values())) == len(names)
    assert len({m[0] for m in list(marks.values())[:7]}) == len({m[1] for m in list(marks.values())[:7]}) == 7


def test_scatter_is_well_formed_and_its_text_is_text() -> None:
    marks = marks_of(("自訂<方法>", "b"))
    spots = [
        Spot("自訂<方法>", marks["自訂<方法>"], 0.2, 0.9, (0.1, 0.3), (0.8, 1.0), ((0.2, 0.9, "a & b"),)),
        Spot("b", marks["b"], 0.2, 0.9, (0.1, 0.3), (0.8, 1.0), ()),
    ]
    tree = ET.fromstring(str(scatter(spots, width=700, height=400, class_="wide")))
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
    svg = str(loss_panel(curves, colour="#000", steps=2, top=4, label=say("loss.label", method="full")))
    drawn = [e.get("class") for e in ET.fromstring(svg).iter("polyline") if e.get("class") != "grid"]
    assert sorted(map(str, drawn)) == ["thick all", "thick new", "thin new", "thin new"]


def test_ticks_are_round() -> None:
    assert nice_ticks(6.0) == [0, 2, 4, 6]
    assert nice_ticks(20) == [0, 5, 10, 15, 20]
    assert nice_ticks(0.02) == [0, 0.005, 0.01, 0.015, 0.02]
