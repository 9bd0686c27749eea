"""Make one self-contained HTML page from a run folder. It loads nothing from outside and contains both languages.

`write_report(Path("runs/superlative"))` reads only files of the run folder, so a report can be made again at any time,
also for a run that is not finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from markupsafe import Markup

from posttrain import __version__
from posttrain.exams.floor import NOISE_FLOOR
from posttrain.models.disk import write_whole
from posttrain.reports import answers, change_page, exam_page, findings, numbers, quadrants, stages_page, ways_page
from posttrain.reports.charts import THEME, Chart, Word
from posttrain.reports.edits_page import edits_section
from posttrain.reports.folder import Run, Version, read_run
from posttrain.reports.marks import Mark, mark_icon, marks_of
from posttrain.reports.score_tables import EXAM_GROUPS, cell_table
from posttrain.reports.shared import counted, over
from posttrain.reports.steps_page import steps_section
from posttrain.reports.tables_out import filled, write_table, write_tables
from posttrain.reports.texts import LANGUAGES, Message, Voice, catalogue, check_language, inline, say, text
from posttrain.reports.view import Entry, Head, Line, Panel, Section, Table

__all__ = ["VEGA", "render", "write_page", "write_report"]

VEGA = Path(__file__).parent / "templates" / "vega.js"
"""The script that draws the charts; tools/vega.py makes it."""


def write_report(run_folder: Path, *, language: str = "en", output: Path | None = None) -> Path:
    """Write the report of a run folder to `output` (by default report.html in the folder) and return its path.

    language: en or zh-TW, shown first; the reader can switch. Raise MissingError or DataError for a folder that cannot
    be read (see `read_run`), and ConfigError for an unknown language.
    """
    check_language(language)
    return write_page(read_run(run_folder), output or run_folder / "report.html", language=language)


def write_page(run: Run, path: Path, *, language: str = "en") -> Path:
    """Write the page of a run to `path`, whole or not at all, and the plain tables of its exams; return `path`."""
    page = render(run, language=language)
    if run.exams and run.folder is not None:
        write_tables(run, run.folder, language=language)
        staged = stages_page.stages_table(run)
        if staged is not None:
            write_table(staged, run.folder, "stages", language=language)
    write_whole(path, page.encode("utf-8", errors="replace"))
    return path


def render(run: Run, *, language: str = "en") -> str:
    """Return the page as text."""
    samples = quadrants.payload(run)
    voice = voice_of(run)
    charts: list[Chart] = []
    marks, ran = marks_of(run.versions), len(run.trained_once)

    def words_of(each: str) -> Word:
        return lambda words: text(voice.words(words), each)

    def figure(chart: Chart) -> Markup:
        charts.append(chart)
        shown = Markup('<figure class="chart" data-chart="{}"><noscript>{}</noscript></figure>')
        return shown.format(len(charts) - 1, chart.svg(words_of(language)))

    def data() -> Markup:
        """Return the data for the page's script: the answers, the words that it writes itself, and the charts."""
        wanted = ("answers.", "group.", *(("quadrant.", "forgetting.") if samples else ()))
        texts = {
            language: {key: words[voice.key(key)] for key in words if key.startswith(wanted)}
            for language, words in ((each, catalogue(each)) for each in LANGUAGES)
        }
        drawn = [chart.payload({each: words_of(each) for each in LANGUAGES}) for chart in charts]
        more = {"quadrants": samples} if samples else {}
        return answers.safe_json({**answers.payload(run), "texts": texts, **more, "charts": drawn, "theme": THEME})

    return filled(
        "report.html.jinja",
        language,
        word=voice.words,
        figure=figure,
        data=data,
        drawn=lambda: bool(charts),
        vega=lambda: Markup(VEGA.read_text("utf-8")),
        asset=lambda name: Markup(filled(name, language, with_samples=bool(samples))),
        run=run,
        languages=[(each, catalogue(each)["language.name"]) for each in LANGUAGES],
        version=__version__,
        sections=sections(run, marks, samples=bool(samples)),
        intro=_intro(run),
        partly=say("intro.partly", k=ran, n=run.results.planned) if run.rows and run.results.planned > ran else None,
        findings=findings.findings(run),
        seen_notes=list(findings.seen_notes(run)),
        notes=list(_paragraphs(run.notes)),
        methods=_methods(run, marks),
        failed=[cell for cell in run.cells if not cell.done],
        has_answers=any(cell.samples for cell in run.cells),
        with_samples=bool(samples),
        cap=quadrants.CAP,
        letters=f"{quadrants.TEXT_CAP:,}",
        folder=run.folder.resolve().name if run.alone and run.folder else run.results.study,
    )


def sections(run: Run, marks: Mapping[Version, Mark], *, samples: bool) -> list[Section]:
    """Return the sections of the page: first the main plot and table, then the findings, then the rest."""
    rated = has_change(run) and bool(run.groups & {*EXAM_GROUPS})
    staged = stages_page.stages_section(run, marks)
    exams = [exam_page.capabilities(run, marks, with_change=has_change(run)), exam_page.exam_section(run, marks)]
    first = rated or staged is not None
    noted = run.notes.strip() or (run.methods and not run.alone)
    seen = not run.alone or run.problems or not all(cell.done for cell in run.cells) or findings.findings(run)
    found = [
        change_page.plot_section(run, marks) if rated else None,
        change_page.scores_section(run, marks) if rated else None,
        staged,
        *([] if first else exams),
        Section("seen", say("intro.seen"), part="seen") if seen else None,
        Section("notes", say("intro.notes"), part="notes") if noted else None,
        *(exams if first else []),
        ways_page.chains_section(run, marks),
        ways_page.merge_section(run, marks),
        edits_section(run, marks),
        ways_page.strengths_section(run, marks),
        quadrants.forgetting(run, marks, samples=samples),
        steps_section(run, marks),
        change_page.loss_section(run, marks),
        change_page.more_section(run, marks),
        Section("answers", say("answers.title"), part="answers") if rated else None,
        _details(run, marks),
    ]
    return [section for section in found if section is not None]


def _methods(run: Run, marks: Mapping[Version, Mark]) -> list[tuple[str, Markup, list[Message]]]:
    """Return (name, marks, description) of every method, with one mark for each model; nothing without a study."""
    told = []
    for name in run.methods if not run.alone else ():
        icons = Markup("").join(mark_icon(marks[version]) for version in run.versions if version[1] == name)
        info = run.results.methods.get(name)
        summary = info.summary if info else ""
        told.append((name, icons, findings.describe_method(run.method_config(name), has_change(run), summary)))
    return told


def _paragraphs(notes: str) -> Iterator[tuple[str, list[Markup]]]:
    """Yield notes as paragraphs ("p", [text]) and lists ("ul", [items]), with `code` and **strong** as HTML."""
    for block in notes.strip().split("\n\n"):
        lines = [line.strip() for line in block.strip().split("\n") if line.strip()]
        if lines and all(line.startswith("- ") for line in lines):
            yield "ul", [inline(line[2:]) for line in lines]
        elif lines:
            yield "p", [inline(" ".join(lines))]


def voice_of(run: Run) -> Voice:
    """Return the wording of a run's page; the page of a study uses the catalogue's messages unchanged."""
    if not run.alone:
        return Voice((), {})
    names = {"before": run.before_name, "after": ", ".join(run.models)}
    return Voice(("pair." if run.before_name else "single.", "alone."), names)


def _intro(run: Run) -> Message:
    """Return the sentence that says what was examined, and with which exams."""
    names = " \u00b7 ".join(f"`{exam.name}`" for exam in run.exams)
    if not run.rows:
        models = ", ".join(f"`{one.model}`" for one in run.before)
        return say("intro.only_before", models=models, names=names) if models else say("scores.none")
    changes = over([row for row in run.final if run.alone or not row.is_floor])
    if run.alone:
        with_change, only = "intro.pair_changes", f"intro.{'pair' if run.before_name else 'single'}_exams"
        only += "_one" if len(run.exams) == 1 else ""
        shown = voice_of(run).names
    else:
        with_change, only = "intro.what", "intro.only_exams"
        methods = counted("methods", len([name for name in run.methods if name != NOISE_FLOOR]))
        shown = {"methods": methods, "models": ", ".join(f"`{name}`" for name in run.models)}
    if not has_change(run):
        return say(only, names=names, **shown)
    what = say(with_change, changes=changes, **shown)
    return say("intro.with_exams", what=what, exams=say("intro.exam_names", names=names)) if names else what


def has_change(run: Run) -> bool:
    """Whether the change exam was taken; also true for a run without exams."""
    return not run.exams or any(run.of_change(key) for row in run.rows for key in row.scores)


# ---- configs, versions and cost ------------------------------------------------------------------------------------


def _details(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    values: dict[str, dict[str, None]] = {}  # of env.json
    for key, value in (pair for cell in run.cells for pair in _flat(cell.env)):
        values.setdefault(key, {})[value] = None
    first = {cell.method: cell for cell in reversed(run.cells)}
    configs = [first[name] for name in run.methods if first[name].config]
    if run.alone and len(run.changes) < 2 and not values and not configs:
        return None
    cost = None if run.alone else _cost(run)
    panels = [Panel(below=(say("details.cost", cost=cost),))] if cost else []
    if values:
        heads = (Head(say("details.env_key")), Head(say("details.env_value")))
        lines = tuple(Line((key,), (Entry(" · ".join(each)),)) for key, each in values.items())
        panels.append(Panel(say("details.env"), table=Table(say("details.env"), heads, lines), folded=True))
    if run.study_text:
        panels.append(Panel(say("details.study"), text=run.study_text, folded=True))
    for cell in configs:
        title = say("details.config", method=cell.method, change=cell.change)
        panels.append(Panel(title, text=cell.config, folded=True))
    table = cell_table(run, marks)
    panels.append(Panel(table.label, notes=(say("details.about_percent"),), table=table, folded=True))
    return Section("details", say("details.title"), tuple(panels))


def _cost(run: Run) -> Message | None:
    done = [cell for cell in run.trained_once if cell.cost]
    if not done:
        return None
    time = numbers.duration(sum(cell.cost.get("wall_s", 0.0) for cell in done))
    if not any("tokens" in cell.cost for cell in done):
        return say("details.cost_line_short", time=time, cells=len(done))
    tokens = numbers.amount(sum(cell.cost.get("tokens", 0.0) for cell in done))
    peak = numbers.amount(max(cell.cost.get("peak_gib", 0.0) for cell in done))
    return say("details.cost_line", time=time, cells=len(done), tokens=tokens, peak=peak)


def _flat(node: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (a.b.c, value) of nested mappings."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
