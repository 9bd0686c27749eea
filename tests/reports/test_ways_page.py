"""Survival by hand, and the page of a chain."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from posttrain.exams.results import ExamInfo, Line, MethodInfo, Results, write_results
from posttrain.exams.scores import HEADLINE, SPECS
from posttrain.exams.summary import summarise
from posttrain.reports.folder import read_run
from posttrain.reports.html import write_report
from posttrain.reports.marks import marks_of
from posttrain.reports.texts import text
from posttrain.reports.ways_page import STRENGTH, chains_of, merge_section, strengths_section, survived, ways_of


def test_survival_by_hand() -> None:
    assert survived([1.0, 0.5, 0.75]) == [None, 0.5, 0.75]
    assert survived([0.0, 0.8, 0.4, None]) == [None, None, 0.5, None]
    assert survived([0.4, 0.8, 0.8]) == [None, 2.0, 1.0]


def line(method: str, checkpoint: str, reliability: float, change: str = "a") -> Line:
    scores = {"reliability": reliability, "locality.unrelated": 0.5}
    return Line(model="m", method=method, change=change, checkpoint=checkpoint, scores=scores)


def chained(folder: Path) -> Path:
    """A chain of three, and a method that starts from another one."""
    cells = [
        line("chain", "after-1-fact", 1.0),
        line("chain", "after-1-fact", 0.5, "b"),
        line("chain", "after-2-skill", 0.5),
        line("chain", "after-2-skill", 0.25, "b"),
        line("chain", "final", 0.75),
        line("chain", "final", 0.0, "b"),
        line("taught", "final", 1.0),
        line("then", "final", 0.2),
    ]
    methods = {
        "chain": MethodInfo(kind="steps", steps=("1-fact", "2-skill", "3-blend")),
        "taught": MethodInfo(kind="train"),
        "then": MethodInfo(kind="train", start="taught"),
    }
    exams = {"change": ExamInfo(name="change", kind="change", headline=HEADLINE, scores=SPECS)}
    folder.mkdir(exist_ok=True)
    results = Results(study="s", methods=methods, exams=exams, cells=tuple(cells), summary=summarise(cells))
    write_results(folder, results)
    return folder


def test_chains_are_steps_and_starts(tmp_path: Path) -> None:
    found = chains_of(read_run(chained(tmp_path)))
    assert list(found) == [("m", "chain"), ("m", "then")]
    chain = found["m", "chain"]
    assert [(step.name, step.row and step.row.scores["reliability"]) for step in chain] == [
        ("1-fact", 0.75),
        ("2-skill", 0.375),
        ("3-blend", 0.375),
    ]
    assert [step.name for step in found["m", "then"]] == ["taught", "then"]


def test_a_chain_that_teaches_one_change_after_another_shows_the_steps_of_the_last(tmp_path: Path) -> None:
    points = {"2-b.after-1-train": 0.25, "10-c.after-1-train": 0.75, "changes-2": 0.5, "final": 0.875}
    cells = tuple(line("chain", point, reliability) for point, reliability in points.items())
    methods = {"chain": MethodInfo(kind="steps", steps=("1-train", "2-blend"))}
    write_results(tmp_path, Results(study="s", methods=methods, cells=cells, summary=summarise(cells)))
    (steps,) = chains_of(read_run(tmp_path)).values()
    assert [(step.name, step.row and step.row.scores["reliability"]) for step in steps] == [
        ("1-train", 0.75),
        ("2-blend", 0.875),
    ]


@pytest.mark.parametrize(("language", "words"), [("en", "Chains: what survived"), ("zh-TW", "連續步驟：還留下多少")])
def test_the_page_has_them(tmp_path: Path, language: str, words: str) -> None:
    page = write_report(chained(tmp_path), language=language).read_text(encoding="utf-8")
    assert words in page
    section = page[page.index('id="chains"') :].partition("</section>")[0]
    assert "50\u00a0%" in section
    assert "1. fact" in section


def steered(folder: Path, end: object) -> Path:
    """A vector at three strengths, two changes each; the study's file says which one the end has."""
    found = {
        "strength--1.00": (0.0, 0.8),
        "strength-0.50": (0.5, 1.0),
        "strength-2.00": (1.0, 0.25),
        "final": (0.9, 0.6),
    }
    cells = [
        Line(model="m", method="steer", change=change, checkpoint=point,
             scores={"reliability": learned, "locality.unrelated": kept})
        for point, (learned, kept) in found.items() for change in ("a", "b")
    ]  # fmt: skip
    exams = {"change": ExamInfo(name="change", kind="change", headline=HEADLINE, scores=SPECS)}
    methods = {"steer": MethodInfo(kind="steer")}
    folder.mkdir(exist_ok=True)
    write_results(
        folder, Results(study="s", methods=methods, exams=exams, cells=tuple(cells), summary=summarise(cells))
    )
    study = f"study: s\nmethods: [{{kind: steer, source: trained, strength: {end}}}]\n"
    (folder / "study.yaml").write_text(study, encoding="utf-8")
    return folder


@pytest.mark.parametrize("end", ["1.5", "search", "2.0"])
def test_strengths_are_a_way_of_their_own(tmp_path: Path, end: str) -> None:
    """The end is on the way where its strength is known and no other point has it."""
    run = read_run(steered(tmp_path, end))
    (way,) = ways_of(run, STRENGTH).values()
    known = {"1.5": ((1.5, 0.9),), "search": (), "2.0": ()}[end]
    learned = dict(((-1.0, 0.0), (0.5, 0.5), *known, (2.0, 0.9 if end == "2.0" else 1.0)))
    assert dict(way["learned"]) == learned
    assert way["kept"][1] == (0.0, 1.0)  # the untouched model keeps all of its answers
    assert merge_section(run, marks_of(run.versions)) is None
    section = strengths_section(run, marks_of(run.versions))
    assert section is not None
    first, over, table = section.panels
    for language, axis in (("en", "strength"), ("zh-TW", "強度")):
        assert first.chart is not None
        spec = str(first.chart.spec(partial(text, language=language)))
        assert f"'title': '{axis}'" in spec
    assert over.chart is not None
    rows = over.chart.spec(lambda words: text(words, "en"))["data"]["values"]
    assert [(row["x"], row["y"]) for row in rows if row["at"] == 0.5] == [(100.0, 50.0)]
    assert table.table is not None
    assert [head.name for head in table.table.heads[1:]] == [f"{a:g}" for a in sorted({*learned, 0.0})]
    assert {row.checkpoint for row in run.shown} == {"final"}


@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_the_page_has_strengths(tmp_path: Path, language: str) -> None:
    page = write_report(steered(tmp_path, 1.0), language=language).read_text(encoding="utf-8")
    for words in (
        "Strengths side by side",
        "各種強度並列",
        "The vector is trained on the wanted answers.",
    ):
        assert words in page
    assert page.count('<section id="strengths">') == 1
    assert 'href="#strengths"' in page
