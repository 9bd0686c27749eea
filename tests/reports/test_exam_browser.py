"""The exams' part of the page in a real browser: samples are shown as text, at a desk and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from posttrain.exams.results import ExamInfo, Line, Results, write_results
from posttrain.exams.scores import HEADLINE, SPECS
from posttrain.exams.summary import summarise
from posttrain.reports.html import write_report
from tests.browsing import chromium
from tests.reports.exam_study import make_study
from tests.reports.synthetic import ATTACK

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
ROWS = "#samples tbody tr"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_study(tmp_path_factory.mktemp("study")))


@pytest.mark.parametrize("width", [1280, 390])
def test_samples_are_drawn_late_filtered_and_never_run(browser: Browser, report: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.goto(report.as_uri())
    assert page.locator(ROWS).count() == 0  # nothing before it is looked at
    page.locator("#pick").scroll_into_view_if_needed()
    page.wait_for_selector(ROWS)
    assert page.locator(ROWS).count() == 50
    page.select_option('#pick select[name="method"]', "lora")
    page.select_option('#pick select[name="quadrant"]', "0")
    page.fill('#pick input[name="search"]', "alert(1)")
    page.evaluate("new Promise(done => setTimeout(done, 400))")  # the search waits until typing has stopped
    assert page.locator(ROWS).count() < 50
    shown = page.locator(ROWS)
    assert shown.count() > 0
    assert ATTACK.split()[0] in shown.first.inner_text()
    assert page.title() == "A role with its own voice · posttrain"
    page.click('button[data-language="zh-TW"]')
    assert "答對" in shown.first.inner_text()
    assert page.locator("#picked").inner_text().startswith("顯示")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    page.close()


def test_without_javascript_the_numbers_are_there(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#exams table.examined").count() == 4
    assert page.locator("#forgetting .stacked").count() == 4
    assert page.locator("#forgetting noscript").is_visible() or "JavaScript" in page.locator("#forgetting").inner_text()
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_name_in_the_plot_is_nearest_to_its_own_marks(browser: Browser, tmp_path: Path, width: int) -> None:
    """`a` and `b` stand together and share a text; `alone` and `far` have their own."""
    kept = {"a": 0.2, "b": 0.205, "alone": 0.6, "far": 0.95}
    cells = tuple(
        Line(
            model="m",
            method=name,
            change="c",
            scores={"reliability": 1.0 if share > 0.9 else 0.5, "locality.unrelated": share},
        )
        for name, share in kept.items()
    )
    exams = {"change": ExamInfo(name="change", kind="change", headline=HEADLINE, scores=SPECS)}
    write_results(tmp_path, Results(study="s", exams=exams, cells=cells, summary=summarise(cells)))
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(write_report(tmp_path).as_uri())
    page.wait_for_selector("g.only_labels_marks text")
    script = "all => all.map(e => [e.textContent, e.getBoundingClientRect()]).map(([t, r]) => [t, r.left, r.right])"
    texts = page.eval_on_selector_all("g.only_labels_marks text", script)
    marks = page.eval_on_selector_all("#plot g.mark-symbol.role-mark path", script)
    page.close()
    assert sorted(text for text, *_ in texts) == ["alone", "b, a", "far"]
    middles = sorted((left + right) / 2 for _, left, right in marks)  # far, alone, b, a
    for text, left, right in texts:
        own = {"far": {0}, "alone": {1}, "b, a": {2, 3}}[text]
        gaps = [max(0.0, left - at, at - right) for at in middles]
        assert gaps.index(min(gaps)) in own, (text, gaps)
