"""The page of a study with exams: its numbers, its words in both languages, what a browser may and may not do."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest
from markupsafe import escape

from posttrain.exams.capabilities import Drift
from posttrain.exams.compare import Comparison
from posttrain.exams.results import CHANGE, ExamInfo, Results, read_results, write_results
from posttrain.exams.score_spec import ScoreSpec, specs
from posttrain.exams.statistics import Interval
from posttrain.exams.summary import summarise
from posttrain.reports import numbers
from posttrain.reports.exam_page import capabilities, difference_text, exam_section, verdict_kind
from posttrain.reports.findings import findings
from posttrain.reports.folder import Cell, Row, Run, read_run
from posttrain.reports.html import write_report
from posttrain.reports.marks import marks_of
from posttrain.reports.quadrants import forgetting
from posttrain.reports.steps_page import falls, steps_section
from posttrain.reports.texts import catalogue, text
from posttrain.reports.view import Entry, Section, Table
from tests.reports.exam_study import make_study
from tests.reports.synthetic import ATTACK, make_run
from tests.reports.test_html import Page, embedded

T = TypeVar("T")
SECTIONS = ("capabilities", "exams", "forgetting", "steps")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def html(study: Path) -> str:
    return write_report(study).read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(html: str) -> None:
    page = Page(html.replace("<wbr>", ""))
    assert page.loads == ["data:,"]
    assert page.events == []
    assert len(page.ids) == len(set(page.ids))
    assert set(SECTIONS) <= set(page.ids)
    assert 'href="#steps"' in html
    assert ATTACK not in html
    assert "<script>alert" not in html
    data = embedded(html)
    assert ATTACK in data["quadrants"]["texts"]


def test_a_run_without_exams_has_none_of_it(tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path, changes=1, methods=("full",))).read_text(encoding="utf-8")
    assert not any(f'id="{section}"' in html for section in SECTIONS)
    assert "quadrants" not in html
    assert not (tmp_path / "tables").exists()


def tables(section: Section | None) -> list[Table]:
    assert section is not None
    return [panel.table for panel in section.panels if panel.table is not None]


def first(words: object) -> str:
    """The English text of an entry or a label."""
    assert isinstance(words, Entry)
    return text(words.text, "en")


def test_the_table_of_an_exam(study: Path) -> None:
    run = read_run(study)
    mmlu, rest, _, wiki = tables(exam_section(run, marks_of(run.versions)))[:4]
    assert [head.name for head in mmlu.heads if isinstance(head.name, str)] == ["acc", "calibration.ece_em10"]
    assert [line.kind for line in mmlu.lines] == ["untouched", "reference", "chance", "model", "model"]
    final = {line.method: line for line in read_results(study).cells if line.checkpoint == "final"}
    for line, method in zip(mmlu.lines[3:], ("lora", "full"), strict=True):
        cell, (score, verdict, _) = final[method], line.entries
        assert score.text == f"{cell.scores['mmlu.acc']:.3f}"
        assert verdict.kind == f"verdict is-{ {'lora': 'same', 'full': 'worse'}[method] }"
        compared = cell.compare["mmlu"]
        assert compared.p_value is not None
        assert compared.difference is not None
        assert str(verdict.below[0]).endswith(numbers.p_text(compared.p_value))
        assert numbers.signed(compared.difference, 3) in first(verdict)
    assert [re.sub(r"<.*?>", "", str(line.labels[0])) for line in rest.lines] == [
        "acc/law", "acc/history", "acc/physics", "acc/medicine",
    ]  # fmt: skip
    verdict = wiki.lines[-1].entries[1]
    assert verdict.kind == "verdict is-worse"  # higher, where lower is better
    assert "p" not in str(verdict.below[0])


def test_capabilities_say_what_is_behind_them_and_what_is_left_out(study: Path) -> None:
    run = read_run(study)
    section = capabilities(run, marks_of(run.versions), with_change=True)
    (table,) = tables(section)
    assert section is not None
    families = list(dict.fromkeys(text(line.under, "en").split(":")[0] for line in table.lines))
    assert families == ["CAN", "WILL", "HOW"]
    lines = [(re.sub("<.*?>", "", text(line.labels[0], "en")), line) for line in table.lines]
    names = [name for name, _ in lines]
    at = names.index("knowledge and skills")
    assert names[at + 1 : at + 5] == [
        "mmlu.acc", "mmlu.calibration.ece_em10", "locality.same_pattern", "locality.unrelated",
    ]  # fmt: skip
    said = {name: first(line.entries[-1]) for name, line in lines}
    assert said["refusal.refused"] == ""
    assert said["refusal.over_refusal"] == "0 before: no relative change"
    assert said["verbosity"] == "no better end: more is only more"
    about = [text(note, "en").replace("\u00a0", " ") for note in section.panels[0].notes]
    assert any("beyond ±100 %" in note for note in about)  # BLEU more than doubles
    by_hand = numbers.change_text(run.final[0].scores["mmlu.acc"] / run.before[0].scores["mmlu.acc"] - 1)
    assert first(dict(lines)["mmlu.acc"].entries[0]) == by_hand


def test_quadrants_are_shares_of_all_questions(study: Path) -> None:
    run = read_run(study)
    section = forgetting(run, marks_of(run.versions), samples=True)
    mmlu, refusal = tables(section)  # the others have nothing right or wrong
    assert section is not None
    assert [panel.title for panel in section.panels[1:]] == ["mmlu", "refusal"]
    for line in mmlu.lines:
        stack, *counts = line.entries[:5]
        assert sum(int(first(count)) for count in counts) == 200
        assert sum(stack.stack) == pytest.approx(100, abs=0.05)
    adjusted = "forgotten, adjusted for chance"
    assert adjusted in [text(head.name, "en") for head in mmlu.heads]
    assert adjusted not in [text(head.name, "en") for head in refusal.heads]


def test_knowledge_falls_where_it_was_made_to(study: Path) -> None:
    found = {version[1]: point for version, _, point in falls(read_run(study))}
    assert found["lora"] is None
    assert found["full"] is not None
    assert found["full"].step == 300


def test_courses_have_a_panel_per_method_and_mark_the_best(study: Path) -> None:
    run = read_run(study)
    section = steps_section(run, marks_of(run.versions))
    assert section is not None
    found = {text(panel.title, "en"): panel for panel in section.panels if panel.chart is not None}
    groups = [f"Change exam: {group}, %" for group in ("target", "generality", "locality")]
    assert list(found) == ["mmlu", "role-test", "wiki", "refusal", *groups]
    chart = found["mmlu"].chart
    assert chart is not None
    rows = chart.spec(lambda words: text(words, "en"))["data"]["values"]
    of = {name: [row for row in rows if row["panel"] == name] for name in ("lora", "full")}
    assert len(of["lora"]) > 6 < len(of["full"])
    assert [sum(row["kind"] == "ring" for row in own) for own in of.values()] == [1, 1]
    assert [row["step"] for row in of["full"] if row["kind"] == "falls"] == [300]
    assert not any(row["kind"] == "falls" for row in of["lora"])
    remarks = [[text(words, "en") for words in item] for item in found[groups[0]].items]
    assert remarks[0] == ["`lora`:", "Best at step 400: 100\u00a0%."]


def test_findings_say_what_fell_what_rose_and_what_cannot_be_told(study: Path) -> None:
    run = read_run(study)
    said = {
        language: [" ".join(text(m, language) for m in f.sentences).replace("\u00a0", " ") for f in findings(run)]
        for language in ("en", "zh-TW")
    }
    mmlu, role, wiki, refusal, stays, fallen = said["en"][-6:]
    assert mmlu == (
        "`mmlu`, beside the untouched model. Worse, by a real difference: `full` (−0.275). "
        "No difference, or none that is told apart: `lora` (−0.015)."
    )
    number = r"\(\+[\d.]+\)"
    same = rf"Better, by a real difference: `lora` {number} and `full` {number}\."
    assert re.fullmatch(rf"`role-test`, beside the untouched model\. {same}", role)
    assert re.fullmatch(
        rf"`wiki`, beside the untouched model\. Worse, by a real difference: `lora` {number} and `full` {number}\.",
        wiki,
    )
    assert "`lora` (−0.200) and `full` (−0.200)" in refusal
    assert stays == "General knowledge (`mmlu`) does not fall up to step 600, or recovers: `lora`."
    assert fallen == "General knowledge (`mmlu`) has fallen from step 300 on: `full`."
    assert said["zh-TW"][-6].startswith("`mmlu` 與未經更動的模型相比： 確實變差：`full`（−0.275）。")
    assert said["zh-TW"][-1] == "一般知識（`mmlu`）自第 300 步起確實下降：`full`。"
    assert findings(run)[-6].kind == "bad"
    assert findings(run)[-1].kind == "bad"


def test_several_seeds_are_told_apart_only_together(tmp_path: Path) -> None:
    run = read_run(make_study(tmp_path / "s", seeds=(0, 1)))
    full = run.final[1].compare["mmlu"]
    assert full.cells == 2
    assert full.counts is not None
    assert sum(full.counts) == 400


def test_no_language_is_forgotten(html: str) -> None:
    for language in ("en", "zh-TW"):
        words = catalogue(language)
        for key in ("capabilities.title", "capability.can.knowledge", "exams.about", "quadrant.gained", "steps.title"):
            assert str(escape(words[key])) in html, (language, key)


def edited(folder: Path, change: Callable[[Results], Results]) -> str:
    """The report of a study whose results are other ones."""
    write_results(folder, change(read_results(folder)))
    return write_report(folder).read_text(encoding="utf-8")


def test_missing_parts_do_not_stop_the_report(tmp_path: Path) -> None:
    nothing = {"compare": {}, "drift": {"can.knowledge": Drift(None)}, "ci95": {}}

    def torn(results: Results) -> Results:
        cells = tuple(line.model_copy(update=nothing) for line in results.cells)
        return results.model_copy(update={"before": (), "cells": cells})

    html = edited(make_study(tmp_path / "s", n=20), torn)
    assert 'id="exams"' in html
    assert 'id="forgetting"' not in html


def test_a_study_without_the_change_exam_does_not_speak_of_changes(tmp_path: Path) -> None:
    def without(results: Results) -> Results:
        exams = {name: exam for name, exam in results.exams.items() if exam.kind != CHANGE}
        cells = tuple(
            line.model_copy(update={
                "change": "", "scores": {k: v for k, v in line.scores.items() if k.partition(".")[0] in exams},
            })
            for line in results.cells
        )  # fmt: skip
        return results.model_copy(update={"exams": exams, "cells": cells, "summary": summarise(cells)})

    html = edited(make_study(tmp_path / "s", n=20), without)
    ids = Page(html.replace("<wbr>", "")).ids
    assert not {"plot", "answers", "rows"} & set(ids)
    assert {*SECTIONS, "seen", "more-scores", "loss", "details"} <= set(ids)
    assert "new fact" not in html
    assert "trained on the study&#39;s data" in html


def compared_run(exam: ExamInfo, comparison: Comparison) -> Run:
    """One method of one cell, compared on one exam."""
    after = comparison.after
    assert after is not None
    cell = Cell(model="m", method="lora", scores={exam.key: after}, compare={exam.name: comparison})
    row = Row(model="m", method="lora", scores=cell.scores, cells=(cell,))
    return Run(Results(study="s", exams={exam.name: exam}), (cell,), (row,))


@pytest.mark.parametrize(
    ("before", "after", "higher", "kind", "printed"),
    [
        (20.430, 20.4271, False, "same", "0.00"),
        (20.43, 20.41, False, "better", "−0.02"),
        (20.43, 20.45, False, "worse", "+0.02"),
        (0.5, 0.5004, True, "same", "0.000"),
        (0.5, 0.5006, True, "better", "+0.001"),
        (0.5, 0.4996, True, "same", "0.000"),
    ],
)  # fmt: skip
def test_nothing_is_better_by_0_00(before: float, after: float, higher: bool, kind: str, printed: str) -> None:
    """A difference that is 0 as printed is neither better nor worse, however sure it is."""
    spec = ScoreSpec("score", "score", better="more" if higher else "less")
    exam = ExamInfo(name="wiki", kind="perplexity", headline="score", scores=(spec,))
    difference = after - before
    interval = Interval(difference - 1e-5, difference + 1e-5)
    run = compared_run(exam, Comparison(9, "score", "score", before, after, difference, interval, None, True, None))
    compared = run.rows[0].compare["wiki"]
    assert compared.different
    assert (verdict_kind(compared, exam), difference_text(compared)) == (kind, printed)
    verdict = tables(exam_section(run, marks_of(run.versions)))[0].lines[-1].entries[1]
    words = {"same": "too small to show", "better": "better", "worse": "worse"}
    assert verdict.kind == f"verdict is-{kind}"
    assert first(verdict).endswith(f" {printed} {words[kind]}")
    said = " ".join(text(m, "en") for f in findings(run) for m in f.sentences)
    fell = {"same": "No difference", "better": "Better, by a real", "worse": "Worse, by a real"}
    assert fell[kind] in said
    assert not any(other in said for name, other in fell.items() if name != kind)


@pytest.mark.parametrize(
    ("n", "changed", "english", "chinese"),
    [
        (5, 5, "too few questions (5)", "題數太少（5）"),
        (40, 4, "too few questions differ (4)", "有差別的題太少（4）"),
        (40, 12, "not told apart", "分不出差別"),
    ],
)
def test_too_few_questions_are_said(n: int, changed: int, english: str, chinese: str) -> None:
    exam = ExamInfo(name="held", kind="overlap", headline="rougeL", scores=specs("rougeL"))
    interval = Interval(0.031, 0.288)
    told = Comparison(n, "rougeL", "rougeL", 0.4, 0.548, 0.148, interval, None, False, None, changed=changed)
    run = compared_run(exam, told)
    verdict = tables(exam_section(run, marks_of(run.versions)))[0].lines[-1].entries[1]
    assert text(verdict.text, "en").endswith(f" {english}")
    assert text(verdict.text, "zh-TW").endswith(f" {chinese}")


def test_only_the_exams_before_have_been_taken(tmp_path: Path) -> None:
    nothing = {"cells": (), "summary": ()}
    html = edited(make_study(tmp_path / "s", n=20), lambda results: results.model_copy(update=nothing))
    page = Page(html.replace("<wbr>", ""))
    assert "Only the exams of <code>pocket:chat</code> before any training have been taken so far" in html
    assert not {"plot", "scores", "forgetting", "steps", "loss", "answers"} & set(page.ids)
    assert "untouched model未經更動的模型" in {row[0].strip() for row in page.rows if row}
    assert 'class="verdict"' not in html
    for note in ("exams.verdicts_about", "exams.cells_about", "intro.seen_exams"):
        assert str(escape(catalogue("en")[note]))[:60] not in html, note


def test_a_note_about_answers_that_were_cut_says_whose(tmp_path: Path) -> None:
    def cut(results: Results) -> Results:
        note = "samples have an answer cut at max_new_tokens"
        exam = results.exams["mmlu"]
        exams = {**results.exams, "mmlu": exam.model_copy(update={"notes": (*exam.notes, f"14 of 15 {note}")})}
        before = tuple(one.model_copy(update={"notes": {"mmlu": (f"14 of 15 {note}",)}}) for one in results.before)
        own = (f"mmlu: 2 of 15 {note}", f"wiki: 3 of 15 {note}")
        cells = [one.model_copy(update={"notes": own if one.method == "full" else ()}) for one in results.cells]
        return results.model_copy(update={"exams": exams, "before": before, "cells": tuple(cells)})

    html = edited(make_study(tmp_path / "s", n=20), cut)
    said = re.findall(r'<li><span lang="en">([^<]*(?:<code>[^<]*</code>[^<]*)?)</span>', html)
    assert [one for one in said if "cut" in one] == [
        "untouched model: 14 of 15 answers were cut at <code>max_new_tokens</code>; a method that is not named has as many, or none.",
        "full: 2 of 15 answers were cut at <code>max_new_tokens</code>.",
        "full: 3 of 15 answers were cut at <code>max_new_tokens</code>.",
    ]
    assert "3 rows without an answer were left out" in html
    assert "samples have an answer cut" not in html


def test_notes_are_of_what_is_there(tmp_path: Path, html: str) -> None:
    """What a page has not is not explained on it: several cells, chance, falling knowledge, replay."""

    def told(page: str, key: str) -> bool:
        body = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
        return str(escape(catalogue("en")[key])).split("{")[0][:70] in body

    assert told(html, "exams.verdicts_about")
    assert told(html, "forgetting.adjusted_about")
    assert told(html, "steps.knowledge_about")
    assert told(html, "steps.falls_mark")
    assert not told(html, "exams.cells_about")
    assert not told(html, "loss.replay")
    assert told(write_report(make_study(tmp_path / "b", n=20, seeds=(0, 1))).read_text("utf-8"), "exams.cells_about")

    def without(values: Mapping[str, T], prefix: str) -> dict[str, T]:
        return {key: value for key, value in values.items() if not key.startswith(prefix)}

    def no_mmlu(results: Results) -> Results:
        cells = tuple(
            line.model_copy(update={"scores": without(line.scores, "mmlu."), "compare": without(line.compare, "mmlu")})
            for line in results.cells
        )
        (before,), (people,) = results.before, results.reference
        return results.model_copy(update={
            "exams": without(results.exams, "mmlu"), "cells": cells, "summary": summarise(cells),
            "before": (before.model_copy(update={"scores": without(before.scores, "mmlu.")}),),
            "reference": (people.model_copy(update={"scores": without(people.scores, "mmlu.")}),),
        })  # fmt: skip

    other = edited(make_study(tmp_path / "a", n=20), no_mmlu)
    for key in ("forgetting.adjusted_about", "steps.knowledge_about", "steps.falls_mark", "exams.chance"):
        assert not told(other, key), key
