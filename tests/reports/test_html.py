import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, DataError, MissingError
from posttrain.exams.capabilities import Drift, DriftScore
from posttrain.exams.floor import NOISE_FLOOR
from posttrain.exams.results import Line, Results, read_results, write_results
from posttrain.reports import html as html_of_reports
from posttrain.reports import numbers
from posttrain.reports.answers import FLAGS, payload, safe_json
from posttrain.reports.folder import Cell, Run, read_run
from posttrain.reports.html import VEGA, write_report
from posttrain.reports.marks import COLOURS, marks_of
from posttrain.reports.score_tables import cell_table
from tests.reports.synthetic import ATTACK, METHODS, make_run
from tests.reports.test_answers import after, before

VOID = {"meta", "link", "input", "br", "path", "line", "polyline"}


class Page(HTMLParser):
    """The page as a browser reads it: tags that are not closed, what it would load, the text of table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.events: list[str] = []
        self.rows: list[list[str]] = []
        self.ids: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {k: v or "" for k, v in attrs}
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [values[name] for name in ("src", "srcset", "data", "action") if name in values]
        self.loads += [values["href"]] if "href" in values and not values["href"].startswith("#") else []
        self.events += [name for name in values if name.startswith("on")]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def embedded(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), changes=3, fail=(("lora", 1),), attack=True)


@pytest.fixture(scope="module")
def html(run_folder: Path) -> str:
    return write_report(run_folder).read_text(encoding="utf-8")


def test_page_is_well_formed_loads_nothing_and_has_no_handlers(html: str) -> None:
    page = Page(html)
    assert page.loads == ["data:,"]
    assert page.events == []
    assert len(page.ids) == len(set(page.ids))
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    own = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html.replace(VEGA.read_text(encoding="utf-8"), ""))
    assert "http://" not in own
    assert "unsafe-eval" not in own
    assert "@import" not in own
    assert "url(" not in own


def test_numbers_of_the_table_are_those_of_results_json(run_folder: Path, html: str) -> None:
    rows = {row[0].strip(): row[1:] for row in Page(html).rows if row and row[0].strip() in METHODS and len(row) == 12}
    assert set(rows) == set(METHODS)
    for line in read_results(run_folder).summary:
        keys = numbers.columns(line.scores, ("reliability", "generality", "locality", "leak"))
        for key, shown in zip(keys, rows[line.method], strict=True):
            number = numbers.score_text(key, line.scores[key])
            assert shown == f"{number}{numbers.interval_text(key, line.ci95[key])}", (line.method, key)


def test_the_table_of_cells_has_each_groups_mean_in_per_cent() -> None:
    scores = {
        "reliability": 1.0, "generality.rephrase": 0.25, "generality.hop": 0.75, "locality.unrelated": 0.9, "leak": 0.1,
    }  # fmt: skip
    cell = Cell(model="m", method="full", change="c", scores=scores, cost={"tokens": 5210.0})
    run = Run(Results(study="s"), (cell,))
    (line,) = cell_table(run, marks_of([cell.version])).lines
    assert [entry.text for entry in line.entries] == ["100", "50", "90", "10", "–", "5,210", "–"]


def test_failed_cells_and_notes_are_told_and_escaped(html: str) -> None:
    assert "TrainingError: loss is nan at step 3\nrows 1, 2 &lt;b&gt;" in html
    assert "<strong>made up</strong>" in html
    assert "&lt;b&gt;not bold&lt;/b&gt;" in html
    assert "1 of 21 cells failed" in html


def test_embedded_answers_are_those_of_the_samples(run_folder: Path, html: str) -> None:
    data = embedded(html)
    run = read_run(run_folder)
    shown = []
    for i in range(0, len(data["rows"]), 4):
        cell, probe, diff, flags = data["rows"][i : i + 4]
        parts = tuple(data["diffs"][diff])
        group, prompt, _ = data["probes"][probe]
        ok = bool(flags & 1 << FLAGS.index("ok"))
        shown.append((*data["cells"][cell][1:3], group, prompt, before(parts), after(parts), ok))
    wanted = [
        (cell.method, cell.change, s["group"], s["prompt"], s["before"], s["after"], s["ok"])
        for cell in run.cells
        for s in cell.samples
    ]
    assert sorted(shown) == sorted(wanted)
    assert [row[1] for row in shown] == sorted(row[1] for row in shown)  # one change after the other
    assert [row[0] for row in shown[:7]] == list(METHODS)  # the methods' answers to one probe side by side
    assert ATTACK in {row[5] for row in shown}


def test_data_cannot_end_its_script_element() -> None:
    nasty = {"a": ["</script>", "<!--", "\u2028\u2029", "\ud800", "&amp;"]}
    text = safe_json(nasty)
    assert not set("<>&\u2028\u2029\ud800") & set(text)
    assert json.loads(text) == nasty


def test_answers_that_cannot_be_counted_and_lists_of_answers(tmp_path: Path) -> None:
    folder = make_run(tmp_path, changes=1, methods=("full",))
    samples = next(folder.glob("cells/*/samples.jsonl"))
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    lines[0] |= {"answer": ["里昂", "Lyon"], "answer_contains": ["城"]}
    lines[-1] |= {"ok": None, "strict": None, "leak": None}
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = payload(read_run(folder))
    assert data["probes"][0][2] == "里昂 / Lyon / … 城 …"
    assert data["rows"][-1] == 0
    assert all(flags & 16 for flags in data["rows"][3:-4:4])
    assert "1 of 54 answers are not counted in locality, as there was nothing to keep" in write_report(
        folder
    ).read_text(encoding="utf-8")


@pytest.mark.slow
def test_fourteen_thousand_rows_stay_small(tmp_path: Path) -> None:
    folder = make_run(tmp_path, changes=20, factor=2)
    run = read_run(folder)
    rows = sum(len(cell.samples) for cell in run.cells)
    size = write_report(folder).stat().st_size - VEGA.stat().st_size
    assert rows >= 13_800
    assert size < 1_500_000, f"{size:,} bytes for {rows:,} rows"


def test_either_language_first(run_folder: Path, tmp_path: Path) -> None:
    chinese = write_report(run_folder, language="zh-TW", output=tmp_path / "new" / "r.html").read_text(encoding="utf-8")
    assert '<html lang="zh-TW">' in chinese
    assert 'aria-label="章節"' in chinese
    assert (
        "What should change" in chinese or "what should change, changed" in chinese
    )  # the other language is inside too
    with pytest.raises(ConfigError, match="fr"):
        write_report(run_folder, language="fr")


def test_the_same_folder_gives_the_same_page(run_folder: Path, html: str) -> None:
    assert write_report(run_folder).read_text(encoding="utf-8") == html


def test_unfinished_and_damaged_runs_are_still_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path, changes=2, methods=("prompt", "full"))
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results.pop("summary")
    results["planned"] = 10
    results["cells"][0]["scores"]["leak"] = None
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "study.yaml").unlink()
    samples = next(folder.glob("cells/*full*00*/samples.jsonl"))
    samples.write_text(samples.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    for path in folder.glob("cells/*/env.json"):
        path.unlink()
    samples.with_name("env.json").write_text('{"torch": ', encoding="utf-8")
    run = read_run(folder)
    torn = samples.relative_to(folder)
    assert set(run.problems) == {
        "study.yaml: no such file",
        f"{torn}:54: not valid JSON, left out",
        f"{torn.with_name('env.json')}: not valid JSON, left out",
    }
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.count("So far 4 of the study&#39;s 10 cells have run") == 1
    assert "study.yaml: no such file" in page
    assert run.rows[0].scores["leak"] == results["cells"][2]["scores"]["leak"]


def test_nothing_finished_yet(tmp_path: Path) -> None:
    write_results(tmp_path, Results(study="s"))
    assert "No cell has finished yet." in write_report(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (None, MissingError, "no results.json in this folder; give the folder that `posttrain run"),
        ("{", DataError, "not valid JSON"),
        ("[]", DataError, "a list of 'cells'"),
        ('{"study": "s", "cells": []}', DataError, "an earlier version of posttrain; make it anew: posttrain run"),
        (
            '{"format": 3, "study": "s", "cells": [{"model": "m"}, 3]}',
            DataError,
            r"cells\.0\.method: Field required[^\n]*\n[^\n]*cells\.1: ",
        ),
    ],
)
def test_what_is_not_a_run_folder(tmp_path: Path, text: str | None, error: type[Exception], words: str) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(error, match=words):
        write_report(tmp_path)


def test_several_models_checkpoints_and_unknown_scores(tmp_path: Path) -> None:
    cells = tuple(
        Line(model=m, method="full", change="c", checkpoint=k, scores={"reliability": 0.5, "new.thing": 2.5})
        for m in ("a/model", "b/model")
        for k in ("step-5", "final")
    )
    write_results(tmp_path, Results(study="s", cells=cells))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "`" not in re.sub(r"<script.*?</script>|data-i18n=\"[^\"]*\"", "", page, flags=re.DOTALL)
    assert page.count('scope="rowgroup"') >= 2
    assert "new.thing" in page
    assert "2.50" in page
    assert "step-5" in page


def words_between(html: str, first: str, last: str) -> str:
    """What an English reader sees from one section on up to another."""
    part = html[html.index(f'id="{first}"') : html.index(f'id="{last}"')]
    return " ".join(
        re.sub(r"<[^>]+>", " ", re.sub(r'<span lang="zh-TW">.*?</span>', "", part, flags=re.DOTALL)).split()
    )


def test_the_picture_and_the_table_come_first_then_the_sentences(html: str) -> None:
    page = Page(html)
    order = ["plot", "scores", "seen", "notes", "loss", "more-scores", "answers", "details"]
    assert [name for name in page.ids if name in order] == order
    assert re.findall(r"<nav.*?</nav>", html, re.DOTALL)[0].count("<a ") == len(order)
    links = re.findall(r'<a href="#([\w-]+)">', html)
    assert links == order
    assert html.index("<svg", html.index("<main>")) < html.index('class="scores"') < html.index('class="findings"')


def test_seven_methods_do_not_open_the_page_with_seven_paragraphs(html: str) -> None:
    """No two sentences differ only in their numbers and names."""
    said = re.findall(r'<li class="is-\w+">.*?<div><span lang="en">(.*?)</span>', html, re.DOTALL)
    shape = [re.sub(r"<code>.*?</code>|[\d.]+", "", line) for line in said]
    bare = [re.sub(r"[,\s]|and|\u2013", "", one) for one in shape]
    assert 5 < len(said) < 20
    learned = [one for one in bare if one.startswith("Learned")]
    assert len(bare) - len(set(bare)) <= len(learned) - 1  # in 3 of 3 cases, in 2 of 3


def test_a_partly_run_study_says_so_once_and_not_as_a_warning(tmp_path: Path) -> None:
    folder = make_run(tmp_path, changes=2, methods=("prompt", "full"))
    results = read_results(folder)
    write_results(folder, results.model_copy(update={"planned": 220}))
    page = write_report(folder).read_text(encoding="utf-8")
    body = page[page.index("<body>") : page.index('<script type="application/json"')]
    shown = re.sub(r"<[^>]+>", " ", body)
    assert len(re.findall(r"\b220\b", shown)) == 2  # once in each language
    assert "So far 4 of the study&#39;s 220 cells have run; the numbers are of these." in shown
    assert "本研究的 220 格中，目前執行了 4 格" in shown
    (said,) = re.findall(r'<p class="([\w ]+)"><span lang="en">So far 4 of', body)
    assert said == "note status"
    write_results(folder, results.model_copy(update={"planned": 4}))
    assert "have run; the numbers" not in write_report(folder).read_text(encoding="utf-8")


def test_no_footnote_about_what_is_not_there(tmp_path: Path) -> None:
    """Exams, leak, generality, a noise floor, replay: what was not asked is not explained."""
    scores = {"reliability": 1.0, "locality.same_pattern": 0.4}
    drift = {"can.knowledge": Drift(-0.1, "better", (DriftScore("locality.same_pattern", 1.0, 0.4),))}
    line = Line(model="m", method="full", change="c", scores=scores, drift=drift)
    write_results(tmp_path, Results(study="s", cells=(line,)))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    shown = words_between(page, "plot", "details").lower()
    for word in (
        "exams",
        "leak",
        "generality:",
        "noise floor",
        "replay",
        "drift",
        "likelihood",
        "mcnemar",
        "small mark",
    ):
        assert word not in shown.replace("learned: mean of reliability and of the mean generality", ""), word
    assert "reliability:" in words_between(page, "scores", "seen").lower().replace(" :", ":")
    full = write_report(make_run(tmp_path / "full", changes=3)).read_text(encoding="utf-8")
    shown = words_between(full, "plot", "details").lower()
    for word in ("leak:", "generality", "replay", "drift:", "likelihood:", "small mark"):
        assert word in shown.replace(" :", ":"), word
    assert "mcnemar" not in shown
    assert "of exams" not in shown


def test_every_table_that_may_scroll_says_so_and_keeps_its_first_column(html: str) -> None:
    boxes = html.count('class="scroll"')
    assert boxes >= 4
    assert html.count('class="swipe"') == html.count('class="scroller"') == boxes
    for table in re.findall(r'<div class="scroll".*?</table>', html, re.DOTALL):
        rows = re.findall(r"<tr[ >].*?</tr>", table, re.DOTALL)
        heads = [row for row in rows if "<td" in row]
        assert heads
        assert all(re.search(r'<th[^>]*class="first"', row) for row in heads)


def contrast(one: str, other: str) -> float:
    """As WCAG 2 reckons it."""

    def light(colour: str) -> float:
        full = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
        parts = [int(full[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_in_dark_and_in_print() -> None:
    """4.5 for every colour of text on every ground it stands on; 2 for marks of plots, which have a shape and a name."""
    css = (Path(html_of_reports.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    light, dark, printed = (dict(re.findall(r"--([\w-]+): (#\w+)", one)) for one in re.findall(r":root \{[^}]*\}", css))
    assert light["paper"] != dark["paper"]
    for name, shade in (("light", light), ("dark", dark), ("print", printed)):
        for ink in ("ink", "soft", "accent", "bad"):
            for ground in ("paper", "wash"):
                assert contrast(shade[ink], shade[ground]) >= 4.5, (name, ink, ground)
        assert contrast(shade["gone-ink"], shade["gone"]) >= 4.5, name
        assert contrast(shade["new-ink"], shade["new"]) >= 4.5, name
    pale = [c for c in COLOURS if min(contrast(c, light["paper"]), contrast(c, dark["paper"])) < 2]
    assert pale == []


def test_the_page_says_which_methods_are_over_fewer_changes(tmp_path: Path) -> None:
    folder = make_run(tmp_path, changes=6, methods=("full", "lora"), fail=tuple(("lora", i) for i in range(4)))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "This study brought 2 to 6 changes about" in page
    assert "Per cent, averaged over 2 to 6 changes;" in page
    assert "of 6 changes: <code>lora</code> 2." in page
    whole = write_report(make_run(tmp_path / "whole", changes=3)).read_text(encoding="utf-8")
    assert "Per cent, averaged over 3 changes;" in whole
    assert "Not all over the same changes" not in whole


def test_small_things_of_the_page(tmp_path: Path) -> None:
    scores = {"reliability": 1.0, "locality.same_pattern": 0.5}
    cost = {"moved_share": 1.0, "wall_s": 2.0}
    cells = tuple(
        Line(model="m", method=method, change="c", scores=scores, cost=cost) for method in (NOISE_FLOOR, "full")
    )
    write_results(tmp_path, Results(study="s", cells=cells))
    page = write_report(tmp_path, language="zh-TW").read_text(encoding="utf-8")
    floor = '<span class="name"><span lang="en">noise floor</span><span lang="zh-TW">雜訊底線</span></span>'
    assert floor in page
    assert "雜訊底線，同句型：50" in page
    assert "full 100 % 2.0 s" in words_between(page, "more-scores", "details")
    assert page.count('<span lang="zh-TW">2.0\u00a0秒</span>') == 4  # two methods, two cells
    assert "100.00%" not in page
    assert "{total} 則回答中顯示 {shown} 則" in page
