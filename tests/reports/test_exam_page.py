"""The page of a study with exams: its numbers, its words in both languages, what a browser may and may not do."""

import json
import re
from pathlib import Path

import pytest
from markupsafe import escape

from posttrain.reports import numbers
from posttrain.reports.exam_page import capabilities, difference_text, exam_views, forgetting, verdict_kind
from posttrain.reports.examined import Compared, ExamInfo
from posttrain.reports.findings import findings
from posttrain.reports.folder import Cell, Row, Run, read_run
from posttrain.reports.html import write_report
from posttrain.reports.steps_page import falls, steps_view
from posttrain.reports.svg import marks_of
from posttrain.reports.texts import catalogue, text
from tests.reports.exam_study import make_study
from tests.reports.synthetic import ATTACK, make_run
from tests.reports.test_html import Page, embedded

SECTIONS = ("capabilities", "exams", "forgetting", "steps")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def html(study: Path) -> str:
    return write_report(study).read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(html: str) -> None:
    page = Page(html.replace("<wbr>", "").replace("<circle", "<path").replace("<polygon", "<path"))
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


def test_the_table_of_an_exam(study: Path) -> None:
    run = read_run(study)
    mmlu = exam_views(run, marks_of(run.versions))[0]
    assert mmlu.heads == ("acc", "calibration.ece_em10")
    assert [line.kind for line in mmlu.lines] == ["untouched", "reference", "chance", "model", "model"]
    results = json.loads((study / "results.json").read_text(encoding="utf-8"))
    final = {cell["method"]: cell for cell in results["cells"] if cell["checkpoint"] == "final"}
    for line, method in zip(mmlu.lines[3:], ("lora", "full"), strict=True):
        cell = final[method]
        assert line.cells[0].text == f"{cell['scores']['mmlu.acc']:.3f}"
        assert line.verdict is not None
        assert line.verdict.kind == {"lora": "same", "full": "worse"}[method]
        compared = cell["compare"]["mmlu"]
        assert line.verdict.p == numbers.p_text(compared["p_value"])
        assert line.verdict.difference == numbers.signed(compared["difference"], 3)
    assert [score for score, _ in mmlu.more] == ["acc/law", "acc/history", "acc/physics", "acc/medicine"]
    wiki = exam_views(run, marks_of(run.versions))[2]
    assert wiki.lines[-1].verdict is not None
    assert (wiki.lines[-1].verdict.kind, wiki.lines[-1].verdict.p) == ("worse", "")  # higher, where lower is better


def test_capabilities_say_what_is_behind_them_and_what_is_left_out(study: Path) -> None:
    run = read_run(study)
    found = capabilities(run, marks_of(run.versions))
    assert found is not None
    assert [family.key for family in found.families] == ["can", "will", "how"]
    lines = {line.name.key: line for family in found.families for line in family.lines}
    knowledge = lines["capability.can.knowledge"]
    assert [score.score for score in knowledge.scores] == [
        "mmlu.acc", "mmlu.calibration.ece_em10", "locality.same_pattern", "locality.unrelated",
    ]  # fmt: skip
    refusal = lines["capability.will.refusal"]
    reasons = {score.score: score.reason and score.reason.key for score in refusal.scores}
    assert reasons == {"refusal.refused": None, "refusal.over_refusal": "capabilities.zero"}
    assert not lines["capability.will.verbosity"].directed
    assert found.beyond  # BLEU more than doubles
    by_hand = numbers.change_text(run.final[0].scores["mmlu.acc"] / run.before[0].scores["mmlu.acc"] - 1)
    assert knowledge.scores[0].changes[0] == by_hand


def test_quadrants_are_shares_of_all_questions(study: Path) -> None:
    run = read_run(study)
    mmlu, refusal = forgetting(run, marks_of(run.versions))  # the others have nothing right or wrong
    assert (mmlu.info.name, refusal.info.name) == ("mmlu", "refusal")
    for line in mmlu.lines:
        assert sum(int(count) for count in line.counts) == 200
        assert sum(line.shares) == pytest.approx(100, abs=0.05)
    assert mmlu.adjusted
    assert not refusal.adjusted


def test_knowledge_falls_where_it_was_made_to(study: Path) -> None:
    found = {version[1]: point for version, _, point in falls(read_run(study))}
    assert found["lora"] is None
    assert found["full"] is not None
    assert found["full"].step == 300


def test_courses_have_a_panel_per_method_and_mark_the_best(study: Path) -> None:
    run = read_run(study)
    found = {course.score: course for course in steps_view(run, marks_of(run.versions))}
    assert list(found) == ["acc", "bleu4", "token_perplexity", "refused", "reliability", "generality", "locality"]
    assert all(len(course.panels) == 2 for course in found.values())
    svg = str(found["acc"].panels[1].svg).split("</svg>")[0]  # at one of its sizes
    assert svg.count('class="best-ring"') == 1
    assert svg.count('class="falls"') == 1
    assert 'class="falls"' not in str(found["acc"].panels[0].svg)
    assert [text(m, "en") for m in found["reliability"].panels[0].remarks] == ["Best at step 400: 100\u00a0%."]


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


def test_torn_and_missing_parts_do_not_stop_the_report(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", n=20)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["before"] = []
    for cell in results["cells"]:
        cell["compare"] = {}
        cell["drift"] = {"can.knowledge": {"change": None, "scores": []}}
        cell["ci95"] = {}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    html = write_report(folder).read_text(encoding="utf-8")
    assert 'id="exams"' in html
    assert 'id="forgetting"' not in html


def test_a_study_without_the_change_exam_does_not_speak_of_changes(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", n=20)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for cell in results["cells"]:
        cell["change"] = ""
        cell["scores"] = {k: v for k, v in cell["scores"].items() if k.split(".")[0] in results["exams"]}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    html = write_report(folder).read_text(encoding="utf-8")
    ids = Page(html.replace("<wbr>", "").replace("<circle", "<path").replace("<polygon", "<path")).ids
    assert not {"plot", "answers", "rows"} & set(ids)
    assert {*SECTIONS, "seen", "more-scores", "loss", "details"} <= set(ids)
    assert "new fact" not in html
    assert "trained on the study&#39;s data" in html


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
    exam = ExamInfo("wiki", "score", higher_is_better=higher)
    difference = after - before
    interval = (difference - 1e-5, difference + 1e-5)
    compared = Compared(9, before, after, difference, interval, None, None, (None, None), None, cells=1, agree=1)
    assert compared.different
    assert (verdict_kind(compared, exam), difference_text(compared)) == (kind, printed)
    scores = {"wiki.score": after}
    cell = Cell("m", "lora", "", 0, "final", "done", "", scores, {}, {}, {}, compare={"wiki": compared})
    run = Run("s", {}, "", (cell,), (Row("m", "lora", "final", scores, {}, {}, (cell,)),), exams=(exam,))
    (view,) = exam_views(run, marks_of(run.versions))
    verdict = view.lines[-1].verdict
    assert verdict is not None
    words = {"same": "too small to show", "better": "better", "worse": "worse"}
    assert (verdict.kind, verdict.difference, text(verdict.word, "en")) == (kind, printed, words[kind])
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
    exam = ExamInfo("held", "rougeL")
    compared = Compared(
        n, 0.4, 0.548, 0.148, (0.031, 0.288), None, None, (None, None), None, changed=changed
    )  # fmt: skip
    scores = {"held.rougeL": 0.548}
    cell = Cell("m", "lora", "", 0, "final", "done", "", scores, {}, {}, {}, compare={"held": compared})
    run = Run("s", {}, "", (cell,), (Row("m", "lora", "final", scores, {}, {}, (cell,)),), exams=(exam,))
    (view,) = exam_views(run, marks_of(run.versions))
    verdict = view.lines[-1].verdict
    assert verdict is not None
    assert (text(verdict.word, "en"), text(verdict.word, "zh-TW")) == (english, chinese)


def test_only_the_exams_before_have_been_taken(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", n=20)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["cells"] = []
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html.replace("<wbr>", "").replace("<circle", "<path").replace("<polygon", "<path"))
    assert "Only the exams of <code>pocket:chat</code> before any training have been taken so far" in html
    assert not {"plot", "scores", "forgetting", "steps", "loss", "answers"} & set(page.ids)
    assert "untouched model未經更動的模型" in {row[0].strip() for row in page.rows if row}
    assert 'class="verdict"' not in html
    for note in ("exams.verdicts_about", "exams.cells_about", "intro.seen_exams"):
        assert str(escape(catalogue("en")[note]))[:60] not in html, note


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
    folder = make_study(tmp_path / "a", n=20)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["exams"].pop("mmlu")
    for entry in (*results["before"], *results["cells"], *results["reference"]):
        entry["scores"] = {k: v for k, v in entry["scores"].items() if not k.startswith("mmlu.")}
        entry.get("compare", {}).pop("mmlu", None)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    other = write_report(folder).read_text(encoding="utf-8")
    for key in ("forgetting.adjusted_about", "steps.knowledge_about", "steps.falls_mark", "exams.chance"):
        assert not told(other, key), key
