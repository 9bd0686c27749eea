"""The page of a folder that `posttrain exam` wrote: it names its models, and no study, method or training."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from posttrain.exams.capabilities import Drift, DriftScore
from posttrain.exams.compare import compare
from posttrain.exams.floor import NOISE_FLOOR
from posttrain.exams.records import Sample
from posttrain.exams.results import ExamInfo, Line, Results, Untouched, write_results
from posttrain.exams.score_spec import specs
from posttrain.exams.statistics import Interval
from posttrain.exams.summary import summarise
from posttrain.reports.folder import read_run
from posttrain.reports.html import voice_of, write_report
from posttrain.reports.score_tables import EXAM_COSTS
from posttrain.reports.tables_out import plain_table
from posttrain.reports.texts import LANGUAGES, catalogue, known, text
from tests.browsing import chromium
from tests.reports.exam_study import make_study
from tests.reports.synthetic import write_samples
from tests.reports.test_html import Page, embedded

BEFORE, AFTER = "pocket:base", "runs/a/model"
MMLU = ExamInfo(
    name="mmlu", kind="mmlu", headline="acc", capabilities={"acc": "can.knowledge"}, signature="mmlu|5-shot",
    chance=0.25, scores=specs("acc"),
)  # fmt: skip
COST = {
    "wall_s": 2.5, "forwarded_tokens": 11411.0, "requests": 480.0, "scored_tokens": 9149.0, "least_tokens": 9093.0,
    "logit_positions": 200.0, "prompt_tokens": 2262.0, "generated_tokens": 822.0, "shared_prefixes": 137.0,
    "shared_tokens": 111503.0, "plain_requests": 0.0, "truncated": 0.0, "cost_usd": 0.0, "peak_gib": 0.49,
}  # fmt: skip
STUDY_WORDS = {
    "en": ("study", "method", "untouched", "training", "trained", "loss", "cell"),
    "zh-TW": ("研究", "方法", "未經更動", "訓練", "損失", "格"),
}


def samples(right: int) -> list[Sample]:
    return [
        Sample(f"q{i}", "", f"第 {i} 題", "A", "A" if i < right else "B", {"acc": float(i < right)}, i < right, 4)
        for i in range(20)
    ]


def make_exam(folder: Path, *, before: bool = True, **cost: float) -> Path:
    """Write what `posttrain exam AFTER [--before BEFORE] --exam mmlu=... -o FOLDER` writes, and return the folder."""

    def scored(right: int, place: str) -> dict[str, Any]:
        write_samples(folder / place / "exams" / "mmlu.jsonl", samples(right))
        share = right / 20
        return {"scores": {"mmlu.acc": share}, "ci95": {"mmlu.acc": Interval(share - 0.1, share + 0.1)},
                "n": {"mmlu.acc": 20}, "cost": {**COST, **cost}, "folder": place}  # fmt: skip

    line = Line(model=AFTER, method="exam", **scored(14, "."))
    untouched: tuple[Untouched, ...] = ()
    if before:
        untouched = (Untouched(model=BEFORE, **scored(10, "before/pocket-base")),)
        drift = Drift(0.4, "better", (DriftScore("mmlu.acc", 0.5, 0.7, 0.2, 0.4),))
        beside = {"mmlu": compare(samples(10), samples(14), headline="acc")}
        line = line.model_copy(update={"compare": beside, "drift": {"can.knowledge": drift}})
    return written(folder, line, before=untouched, exams={"mmlu": MMLU})


def written(folder: Path, *cells: Line, **more: Any) -> Path:
    """Write the results of an exam, and return the folder."""
    before = (Untouched(model=BEFORE),)  # of the change exam alone the answers before have no scores
    parts: dict[str, Any] = {"before": before, "summary": summarise(cells), **more}
    write_results(folder, Results(study="exam", cells=cells, **parts))
    return folder


def words_of(html: str, language: str) -> str:
    """What a reader of one language sees: the text of the body without the other language's spans."""
    other = next(each for each in LANGUAGES if each != language)
    body = re.sub(r"<(script|style)\b.*?</\1>", "", html[html.index("<body>") :], flags=re.S)
    body = re.sub(rf'<span lang="{other}">.*?</span>', "", body, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", "", body)).split())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("before", [True, False])
def test_it_speaks_of_models_and_not_of_a_study(tmp_path: Path, language: str, before: bool) -> None:
    html = write_report(make_exam(tmp_path, before=before), language=language).read_text(encoding="utf-8")
    words = re.sub("格式|表格", "", words_of(html, language))  # a cell is 格
    assert [word for word in STUDY_WORDS[language] if word in words.lower()] == []
    assert [
        text for text in embedded(html)["texts"][language].values() if STUDY_WORDS[language][1] in text.lower()
    ] == []
    title = f"{BEFORE} → {AFTER}" if before else AFTER
    assert f"<h1>{title}</h1>" in html
    assert f"<title>{title} · posttrain</title>" in html
    intro = {
        ("en", True): f"Two models took the same exam, {BEFORE} (before) → {AFTER} (after): mmlu.",
        ("en", False): f"{AFTER} took this exam: mmlu.",
        ("zh-TW", True): f"兩個模型接受了同一項考試，{BEFORE}（之前）→ {AFTER}（之後）：mmlu。",
        ("zh-TW", False): f"{AFTER} 接受了這項考試：mmlu。",
    }
    assert intro[language, before] in words
    seen = {
        "en": f"{AFTER} on the exams, beside {BEFORE}. No difference, or none that is told apart: mmlu (+0.200).",
        "zh-TW": f"{AFTER} 的考試與 {BEFORE} 相比：",
    }
    assert (seen[language].split(" No ")[0] in words) is before
    page = Page(html.replace("<wbr>", ""))
    assert not {"loss", "details", "plot", "answers"} & set(page.ids)
    assert {"more-scores", "exams"} <= set(page.ids)
    assert {name for name in ("seen", "capabilities", "forgetting") if name in page.ids} == (
        {"seen", "capabilities", "forgetting"} if before else set()
    )
    for target in re.findall(r'<a href="#([\w-]+)">', html):
        assert target in page.ids, target


def test_its_rows_and_its_plain_table_are_named_by_the_models(tmp_path: Path) -> None:
    run = read_run(make_exam(tmp_path))
    assert (run.before_name, run.models, run.methods) == (BEFORE, (AFTER,), (AFTER,))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    table = html[html.index('<table class="plain examined">') :]
    rows = re.findall(r'<tr class="(\w+)"><th scope="row" class="first">(.*?)</th>', table)
    assert [(kind, words_of("<body>" + name, "en")) for kind, name in rows] == [
        ("untouched", BEFORE), ("chance", "guessing"), ("model", AFTER),
    ]  # fmt: skip
    plain = plain_table(run, "mmlu")
    assert [text(head.name, "en") for head in plain.heads[: plain.labels]] == ["model"]
    assert [line.labels for line in plain.lines] == [(BEFORE,), (AFTER,)]
    assert embedded(html)["quadrants"]["versions"] == [[AFTER, AFTER]]
    assert embedded(html)["texts"]["zh-TW"]["forgetting.method"] == "模型"


def test_without_a_model_before_there_is_no_column_of_differences(tmp_path: Path) -> None:
    assert 'class="verdict"' not in write_report(make_exam(tmp_path, before=False)).read_text(encoding="utf-8")


def cost_heads(html: str, language: str) -> list[str]:
    table = re.search(r'<table class="scores">.*?</thead>', html, re.S)
    assert table is not None
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', table[0], re.S)
    return [words_of(f"<body>{head}", language) for head in heads]


def test_costs_have_heads_in_words_and_only_what_was_spent(tmp_path: Path) -> None:
    html = write_report(make_exam(tmp_path / "a")).read_text(encoding="utf-8")
    heads = ["time in all", "peak memory, GiB", "tokens forwarded", "of them to score", "least possible to score",
             "tokens generated", "prefixes shared"]  # fmt: skip
    assert cost_heads(html, "en") == heads
    assert len(cost_heads(html, "zh-TW")) == len(heads)
    assert not any(re.search("_|cost[.]", head) for head in cost_heads(html, "zh-TW"))
    section = html[html.index('<section id="more-scores"') : html.index("</main>")]
    assert section.count(">11,411<") == 2  # a row for each model
    assert "111,503" not in section
    html = write_report(make_exam(tmp_path / "b", plain_requests=3.0, cost_usd=0.25)).read_text(encoding="utf-8")
    assert cost_heads(html, "en") == [*heads, "requests that shared none", "US dollars"]


def test_every_cost_that_is_shown_has_a_name() -> None:
    assert [key for key in EXAM_COSTS if not known(f"group.cost.{key}")] == []
    assert set(EXAM_COSTS) <= set(COST)


def test_other_wordings_replace_messages_that_exist() -> None:
    for key in catalogue("en"):
        prefix, _, plain = key.partition(".")
        if prefix in ("alone", "pair", "single"):
            assert known(plain), key


def test_a_study_keeps_its_words(tmp_path: Path) -> None:
    run = read_run(make_study(tmp_path / "s", n=20))
    voice = voice_of(run)
    assert all(voice.key(key) == key for key in catalogue("en"))
    words = words_of(write_report(tmp_path / "s").read_text(encoding="utf-8"), "en")
    for said in ("The methods", "Loss curves", "untouched model", "difference from untouched", "Cost, mean of a cell"):
        assert said in words


def test_the_change_exam_of_two_models(tmp_path: Path) -> None:
    scores = {"reliability": 1.0, "generality.rephrase": 0.0, "locality.unrelated": 0.5}
    head: dict[str, Any] = {"model": AFTER, "method": "exam", "folder": "."}
    lines = [Line(**head, change=name, scores=scores, n=dict.fromkeys(scores, 1)) for name in "ab"]
    html = write_report(written(tmp_path, *lines)).read_text(encoding="utf-8")
    assert f"<h1>{BEFORE} → {AFTER}</h1>" in html
    words = words_of(html, "en")
    assert f"Two models, {BEFORE} (before) → {AFTER} (after), took the exam of 2 changes" in words
    assert f"{AFTER} did not carry the new fact over to: rephrased (at most 0 %)." in words
    assert "n = 2" in words  # of the file's own summary
    assert "All 2 changes" in words
    for word in ("study", "No method", "Loss", "Methods with the same finding"):
        assert word not in words


def test_an_exam_beside_the_change_exam_is_no_second_change(tmp_path: Path) -> None:
    """`posttrain exam --change C --exam mmlu=...` writes a cell for each; there is one change."""
    head: dict[str, Any] = {"model": AFTER, "method": "exam", "folder": "."}
    told = Line(**head, change="tallest", scores={"reliability": 1.0, "locality.unrelated": 0.5})
    written(tmp_path, told, Line(**head, scores={"mmlu.acc": 0.5}), exams={"mmlu": MMLU})
    assert read_run(tmp_path).changes == ("tallest",)
    words = words_of(write_report(tmp_path).read_text(encoding="utf-8"), "en")
    assert "took the exam of one change" in words
    assert "Per cent, for one change" in words
    assert "small mark" not in words


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_no_head_of_a_table_lies_over_another(tmp_path: Path, width: int) -> None:
    report = write_report(make_exam(tmp_path, plain_requests=3.0, cost_usd=0.25))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(report.as_uri())
        for language in LANGUAGES:
            page.click(f'button[data-language="{language}"]')
            assert page.evaluate(WIDER) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width


WIDER = """() => [...document.querySelectorAll("table.scores thead th, table.examined thead th")].filter((head) => {
  const text = document.createRange();
  text.selectNodeContents(head);
  const inside = text.getBoundingClientRect(), box = head.getBoundingClientRect();
  return inside.left < box.left - 0.5 || inside.right > box.right + 0.5;
}).map((head) => head.innerText)"""
"""The heads whose text is wider than their column."""


@pytest.mark.parametrize(("language", "words"), [("en", "noise floor"), ("zh-TW", "雜訊底線")])
def test_the_noise_floor_is_called_so_in_tables(tmp_path: Path, language: str, words: str) -> None:
    """Beside a model that has the same name, two rows would say the same."""
    lines = [
        Line(model=AFTER, method=method, change="c", scores={"locality.unrelated": share}, n={"locality.unrelated": 4})
        for method, share in (("exam", 0.5), (NOISE_FLOOR, 0.75))
    ]
    table = plain_table(read_run(written(tmp_path, *lines)), "change")
    labels = [text(label, language) for line in table.lines for label in line.labels]
    assert labels == [AFTER, f"{words} ({BEFORE})"]
    assert [entry.text for line in table.lines for entry in line.entries] == ["0.500", "0.750"]


def test_a_kept_models_path_is_its_last_parts_in_the_title(tmp_path: Path) -> None:
    """Unless two models differ further in front only; names of the hub stay whole."""
    cells = "/srv/mine/runs/tiny/cells"
    run = read_run(make_exam(tmp_path / "x"))

    def title(before: str, after: str) -> str:
        named = (Untouched(model=before),) if before else ()
        rows = tuple(row.model_copy(update={"model": after}) for row in run.rows)
        return replace(run, results=run.results.model_copy(update={"before": named}), rows=rows).title

    kept = f"{cells}/chat--full--paris--s0/training/model"
    assert title("Qwen/Qwen3-8B", kept) == "Qwen/Qwen3-8B → …/chat--full--paris--s0/training/model"
    assert title("", f"{kept}/") == "…/chat--full--paris--s0/training/model"
    other = kept.replace("/mine/", "/yours/")
    assert title(other, kept) == f"{other} → {kept}"
    assert title("runs/a/model", "pocket:chat") == "runs/a/model → pocket:chat"
