"""The report in a real browser, at the width of a desk and of a phone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from posttrain.reports.html import write_report
from tests.browsing import chromium
from tests.reports.synthetic import ATTACK, METHODS, make_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

pytestmark = pytest.mark.browser
WIDTHS = (1280, 390)
ROWS = "#rows tbody tr"
DESK, PHONE = (pytest.mark.parametrize("opened", [width], indirect=True) for width in WIDTHS)
"""For what is the same at every width."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("run"), changes=3, attack=True, fail=(("lora", 1),)))


class Opened:
    """A page, and what it said and asked for."""

    def __init__(self, browser: Browser, report: Path, width: int) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", self._refuse)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(report.as_uri())

    def _refuse(self, dialog: Dialog) -> None:
        self.said.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def numbers(self) -> list[int]:
        """shown, matching, total of the English line above the answers; where all match it names two numbers."""
        shown, *others = [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", self.page.inner_text("#count"))]
        return [shown, others[0], others[-1]]

    def settle(self) -> None:
        """Wait for the filters' short delay, by the page's own clock: however busy the machine is, its timers keep order."""
        self.page.evaluate("new Promise(done => setTimeout(done, 250))")

    def as_new(self, width: int) -> None:
        """Take back what a test did on the page."""
        page = self.page
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(media="screen", color_scheme="light")
        page.click("button[data-language='en']")
        page.evaluate("document.querySelector('#filters').reset()")
        self.settle()
        page.mouse.move(0, 0)
        page.evaluate("document.querySelectorAll('.scroll').forEach(e => { e.scrollLeft = 0 }); scrollTo(0, 0)")


@pytest.fixture(scope="module")
def pages(browser: Browser, report: Path) -> Iterator[Callable[[int], Opened]]:
    """The report at a width, opened once: drawing all charts takes a second."""
    found: dict[int, Opened] = {}

    def at(width: int) -> Opened:
        if width in found:
            found[width].as_new(width)
        else:
            found[width] = Opened(browser, report, width)
        return found[width]

    yield at
    for it in found.values():
        it.page.close()


@pytest.fixture(params=WIDTHS)
def opened(pages: Callable[[int], Opened], request: pytest.FixtureRequest) -> Iterator[Opened]:
    it = pages(request.param)
    yield it
    assert it.said == []
    assert [url for url in it.asked if not url.startswith(("file:", "data:"))] == []


def test_page_is_as_wide_as_the_screen(opened: Opened) -> None:
    for language in ("en", "zh-TW"):
        opened.page.click(f"button[data-language='{language}']")
        assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_table_that_scrolls_shows_that_it_does(opened: Opened) -> None:
    """A shade and words where it goes on, gone at its end; nothing where the whole table is seen."""
    page = opened.page
    box = page.locator("#scores .scroller").first
    shade = "e => getComputedStyle(e.querySelector('.pane'), '::after').opacity"
    wide = page.viewport_size == {"width": 390, "height": 900}
    page.wait_for_timeout(250)
    assert box.locator(".swipe").is_visible() is wide
    assert float(box.evaluate(shade)) == float(wide)
    box.locator(".scroll").evaluate("e => e.scrollLeft = e.scrollWidth")
    page.wait_for_timeout(300)
    assert float(box.evaluate(shade)) == 0.0
    assert ("more-left" in (box.get_attribute("class") or "")) is wide
    shadow = box.evaluate("e => getComputedStyle(e.querySelector('tbody .first')).boxShadow")
    assert (shadow != "none") is wide
    page.click("button[data-language='zh-TW']")
    assert not wide or "左右捲動" in box.locator(".swipe").inner_text()


def drawn(page: Page) -> None:
    """Wait until every chart has been drawn."""
    page.wait_for_function(
        "document.querySelectorAll('figure.chart').length === document.querySelectorAll('figure.chart svg.marks').length"
    )


def widths(page: Page, section: str) -> list[float]:
    """Of the plotting areas of a section, from the left."""
    found: list[float] = page.evaluate(f"""[...document.querySelectorAll("#{section} svg.marks .background")]
        .map(e => e.getBoundingClientRect()).filter(box => box.width > 60).map(box => box.width)""")
    return found


def test_charts_are_as_wide_as_the_page(opened: Opened) -> None:
    """A chart fills its row, panels fill theirs together, and letters keep their size."""
    page = opened.page
    drawn(page)
    room = page.evaluate("document.querySelector('main').getBoundingClientRect().width")
    assert widths(page, "plot")[0] == pytest.approx(room, abs=80)
    boxes = page.evaluate("""[...document.querySelectorAll("#loss svg.marks .background")]
        .map(e => e.getBoundingClientRect()).filter(box => box.width > 60).map(box => [box.left, box.right, box.top])""")
    row = sorted({(left, right) for left, right, top in boxes if abs(top - boxes[0][2]) < 5})
    assert len(row) == (3 if room > 1000 else 1)
    assert row[-1][1] - row[0][0] == pytest.approx(room, abs=80)
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg.marks')].map(e => e.getBoundingClientRect().width / e.viewBox.baseVal.width)"
    )
    assert sizes == pytest.approx([1.0] * len(sizes))


@DESK
def test_a_click_in_the_legend_shows_a_name_alone(opened: Opened) -> None:
    page = opened.page
    drawn(page)
    marks = "#plot svg.marks .mark-symbol.role-mark path"

    def seen() -> int:
        page.evaluate("new Promise(requestAnimationFrame)")
        return sum(float(e.get_attribute("opacity") or 1) > 0.2 for e in page.locator(marks).all())

    every = seen()
    assert every > 2 * len(METHODS)
    legend = page.locator("#plot svg.marks .role-legend-label text")
    assert legend.all_text_contents() == list(METHODS)
    legend.nth(1).click()
    assert seen() == 4  # full: its mean and three changes
    legend.nth(3).click()
    assert seen() == 8
    legend.nth(1).click()
    legend.nth(3).click()
    assert seen() == every


@DESK
def test_a_mark_says_what_it_is_when_it_is_pointed_at(opened: Opened) -> None:
    page = opened.page
    drawn(page)
    page.locator("#plot svg.marks .mark-symbol.role-mark path").last.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    said = page.inner_text("#vg-tooltip-element")
    assert "lora+self" in said
    assert re.search(r"learned, %\D+\d+\s%", said)


@PHONE
def test_charts_follow_dark_mode_without_being_drawn_anew(opened: Opened) -> None:
    page = opened.page
    drawn(page)
    ink = "getComputedStyle(document.querySelector('#plot svg.marks .role-legend-label text')).fill"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ink) == page.evaluate("getComputedStyle(document.body).color") != light


@DESK
def test_charts_fit_the_paper(opened: Opened) -> None:
    page = opened.page
    drawn(page)
    svg = "[...document.querySelectorAll('svg.marks')].map(e => e.getBoundingClientRect().width)"
    before = page.evaluate(svg)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert widths(page, "plot")[0] > 600
    assert all(660 < width < 710 for width in page.evaluate(svg))
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(svg) == pytest.approx(before, abs=1)


def test_many_methods_with_long_names_in_any_script(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve of them: nothing is wider than the screen, no label leaves the plot, and the numbers stay in view."""
    names = [
        "以大量重播資料保護舊知識的全參數微調（學習率五千分之一）", "低秩微調加上模型自問自答",
        "full-parameter-training-with-elastic-weight-consolidation-0.1", "lora_rank_256_alpha_512_all_linear_layers",
        "ptuning_v2 with a very long name that somebody wrote by hand",
    ]  # fmt: skip
    for name, how in zip(names, list(METHODS.values())[2:], strict=True):
        monkeypatch.setitem(METHODS, name, how)
    opened = Opened(browser, write_report(make_run(tmp_path, changes=1, methods=tuple(METHODS))), 1280)
    for width in (1280, 760, 390):
        opened.page.set_viewport_size({"width": width, "height": 900})
        for language in ("en", "zh-TW"):
            opened.page.click(f"button[data-language='{language}']")
            opened.settle()
            title = {"en": "Learned against forgotten", "zh-TW": "學到與遺忘"}[language]
            opened.page.wait_for_selector(
                f"#plot svg.marks[aria-label='{title}'], #plot [aria-label='{title}'] svg.marks"
            )
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
            assert opened.page.evaluate(OUTSIDE) == []
        first = opened.page.locator("#scores tbody .first").first.bounding_box()
        assert first
        assert first["width"] < 0.5 * width
    assert opened.said == []
    opened.page.close()


OUTSIDE = """() => [...document.querySelectorAll("svg.marks text")].filter((e) => {
  const chart = e.closest("figure").getBoundingClientRect(), box = e.getBoundingClientRect();
  return e.getAttribute("opacity") !== "0" && box.width && (box.left < chart.left - 3 || box.right > chart.right + 3);
}).map((e) => e.textContent)"""
"""Texts of charts that lie outside them."""


def test_first_column_stays_when_the_table_scrolls(opened: Opened) -> None:
    box = opened.page.locator("#scores .scroll").first
    left = "e => e.querySelector('tbody th').getBoundingClientRect().left"
    before = box.evaluate(left)
    box.evaluate("e => e.scrollLeft = 200")
    assert box.evaluate(left) == before
    if opened.page.viewport_size == {"width": 390, "height": 900}:
        assert box.evaluate("e => e.scrollLeft") == 200


@PHONE
def test_filters_change_what_is_shown(opened: Opened) -> None:
    page = opened.page
    shown, matching, total = opened.numbers()
    assert shown == page.locator(ROWS).count() == 100
    assert matching == total == 20 * 54
    page.select_option("select[name=method]", "full")
    opened.settle()
    of_method = opened.numbers()[1]
    assert of_method == 3 * 54
    page.select_option("select[name=group]", "locality.refusal")
    opened.settle()
    assert opened.numbers() == [12, 12, total]
    assert page.locator(ROWS).count() == 12
    page.check("input[name=only_wrong]")
    opened.settle()
    wrong = opened.numbers()[1]
    assert 0 < wrong < 12
    assert page.locator(f"{ROWS} .wrong").count() == wrong
    page.check("input[name=only_leak]")
    opened.settle()
    assert opened.numbers()[1] == page.locator(f"{ROWS} .leaked").count() < wrong
    page.click("button[type=reset]")
    opened.settle()
    assert opened.numbers() == [100, total, total]


@DESK
def test_only_changed_marks_every_row(opened: Opened) -> None:
    page = opened.page
    page.check("input[name=only_changed]")
    page.select_option("select[name=change]", "capital-01")
    opened.settle()
    shown, matching, _ = opened.numbers()
    assert 0 < shown <= matching
    assert page.locator(f"{ROWS}:has(del), {ROWS}:has(ins)").count() == shown


@DESK
def test_search_and_show_more(opened: Opened) -> None:
    page = opened.page
    page.fill("input[name=search]", "ＲＩＶＥＲ france")  # full width and case do not matter
    opened.settle()
    shown, matching, _ = opened.numbers()
    assert 0 < shown == matching
    page.fill("input[name=search]", "nothing says this")
    opened.settle()
    assert opened.numbers()[1] == 0
    assert page.locator(ROWS).count() == 0
    page.fill("input[name=search]", "")
    opened.settle()
    page.click("#more")
    assert page.locator(ROWS).count() == opened.numbers()[0] == 200


@DESK
def test_filters_work_from_the_keyboard(opened: Opened) -> None:
    page = opened.page
    page.focus("select[name=method]")
    page.keyboard.press("ArrowDown")
    opened.settle()
    assert page.input_value("select[name=method]") == next(iter(METHODS))
    page.focus("input[name=only_wrong]")
    page.keyboard.press("Space")
    opened.settle()
    assert opened.numbers()[1] < 3 * 54


@PHONE
def test_a_number_of_the_table_opens_its_answers(opened: Opened) -> None:
    page = opened.page
    page.click("a[data-method='full'][data-group='locality.same_pattern']")
    opened.settle()
    assert opened.numbers()[1] == 3 * 20
    assert page.evaluate("location.hash") == "#answers"
    page.click("a[data-method='full'][data-group='leak']")
    opened.settle()
    assert page.is_checked("input[name=only_leak]")


@PHONE
def test_language_switch(opened: Opened) -> None:
    page = opened.page
    assert page.inner_text("#scores h2") == "Scores"
    page.click("button[data-language='zh-TW']")
    assert page.evaluate("document.documentElement.lang") == "zh-TW"
    assert page.inner_text("#scores h2") == "分數"
    assert page.get_attribute("nav", "aria-label") == "章節"
    assert page.inner_text("#count") == "1,080 則回答中顯示 100 則"
    assert "目標" in page.inner_text("select[name=group]")
    page.wait_for_selector("#plot svg.marks text:text-is('遺忘（%）')")
    page.select_option("select[name=method]", "lora")
    opened.settle()
    page.click("button[data-language='en']")
    assert page.inner_text("#scores h2") == "Scores"
    assert page.input_value("select[name=method]") == "lora"
    assert opened.numbers()[1] == 2 * 54


@DESK
def test_model_output_is_text_and_never_runs(opened: Opened) -> None:
    page = opened.page
    page.fill("input[name=search]", "onerror")
    opened.settle()
    assert opened.numbers()[1] == len(METHODS)
    assert page.locator("#rows img, #rows script").count() == 0
    assert page.locator(f"{ROWS} >> nth=0 >> td:nth-child(6)").text_content() == ATTACK
    assert "hacked" not in page.title()


def test_without_javascript_the_page_says_where_the_answers_are(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert "samples.jsonl" in page.inner_text("#answers noscript")
    assert page.is_hidden("#filters")
    assert page.inner_text("#scores h2") == "Scores"
    for section in ("plot", "loss"):
        assert page.locator(f"#{section} figure.chart svg").is_visible()
    assert page.locator("#plot figure.chart svg text:text-is('forgotten, %')").count() == 1
    assert page.is_hidden("#plot .hint")
    context.close()


def test_print_hides_filters_and_cuts_no_table(opened: Opened) -> None:
    page = opened.page
    page.set_viewport_size({"width": 703, "height": 900})  # A4 less its margins
    page.emulate_media(media="print")
    assert page.is_hidden("#filters")
    assert page.is_hidden("nav")
    for i in range(page.locator("table.scores:visible").count()):
        box = page.locator("table.scores:visible").nth(i).bounding_box()
        assert box
        assert box["x"] + box["width"] <= 703
    assert page.pdf().startswith(b"%PDF")
