"""One self-contained HTML page from a run folder: nothing is loaded from outside, both languages are inside.

`write_report(Path("runs/superlative"))` reads only files of the run folder, so a report can be made again at any time,
also of a run that is not finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from posttrain import __version__
from posttrain.exams.floor import NOISE_FLOOR
from posttrain.models.disk import write_whole
from posttrain.reports import (
    alone,
    answers,
    averaged,
    exam_page,
    findings,
    footnotes,
    merge_back_page,
    numbers,
    panels,
    quadrants,
    stages_page,
    steps_page,
)
from posttrain.reports.examined import QUADRANTS
from posttrain.reports.folder import Cell, Row, Run, Version, read_run
from posttrain.reports.numbers import Column
from posttrain.reports.svg import Mark, mark_icon, marks_of
from posttrain.reports.tables_out import html_rows, pretty, write_table, write_tables
from posttrain.reports.texts import (
    LANGUAGES,
    Message,
    attribute,
    both,
    breakable,
    catalogue,
    check_language,
    inline,
    known,
    say,
    sentences,
)

__all__ = ["render", "write_page", "write_report"]

EXAM_GROUPS = ("reliability", "generality", "locality", "leak")
CONTENT_GROUPS = ("same", "kept", "manner", "judge")
MORE_GROUPS = ("likelihood", "drift", "length")


class Shown(NamedTuple):
    """A table cell as it is drawn: the number, its interval, colour and bar, and the answers behind it."""

    text: str
    interval: str = ""
    colour: str = ""
    bar: int | None = None
    attributes: Markup = Markup()
    group: str = ""
    below: bool = False
    unsure: bool = False


class Line(NamedTuple):
    """A table row: whose it is, and its cells."""

    model: str
    method: str
    checkpoint: str
    icon: Markup
    cells: tuple[Shown, ...]


class Head(NamedTuple):
    """A column's head: its name, and its n (or the smallest and largest n of its rows)."""

    column: Column
    name: Message
    n: str


class Table(NamedTuple):
    """A table of methods x scores; groups: (name, how many columns)."""

    groups: tuple[tuple[Message, int], ...]
    heads: tuple[Head, ...]
    lines: tuple[Line, ...]


def write_report(run_folder: Path, *, language: str = "en", output: Path | None = None) -> Path:
    """Write the report of a run folder to `output` (report.html in the folder) and return its path.

    language: en or zh-TW, the one shown first; the page can switch. Raises MissingError, DataError or ConfigError.
    """
    check_language(language)
    return write_page(read_run(run_folder), output or run_folder / "report.html", language=language)


def write_page(run: Run, path: Path, *, language: str = "en") -> Path:
    """Write the page of a run that has been read, whole or not at all, and the plain tables of its exams."""
    page = render(run, language=language)
    if run.exams and run.place is not None:
        write_tables(run, run.place, language=language)
        staged = stages_page.stages_table(run, language=language)
        if staged is not None:
            write_table(staged, run.place, "stages", language=language)
    write_whole(path, page.encode("utf-8", errors="replace"))
    return path


def render(run: Run, *, language: str = "en") -> str:
    """The page as text."""
    samples = quadrants.payload(run)
    voice = alone.voice_of(run)
    environment = Environment(
        loader=PackageLoader("posttrain.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        t=lambda key, **args: both(voice.message(say(key, **args))),
        m=lambda message: both(voice.message(message)),
        sentences=lambda messages: sentences([voice.message(message) for message in messages]),
        attr=lambda **messages: attribute(language, **{k: voice.message(each) for k, each in messages.items()}),
        say=say,
        asset=lambda name: Markup(environment.get_template(name).render(with_samples=bool(samples))),
        inline=inline,
        known=known,
        breakable=breakable,
        method_name=lambda name: both(say("answers.noise_floor")) if name == NOISE_FLOOR else name,
        pretty=pretty,
        table_rows=lambda table: html_rows(table, untouched=both(say("tables.untouched"))),
        quadrants=QUADRANTS,
        cap=quadrants.CAP,
        letters=f"{quadrants.TEXT_CAP:,}",
    )
    marks = marks_of(run.versions)
    costs = _model_costs(run, marks) if run.alone else _table(run, ("cost",), marks)
    tables = {
        "exam": _table(run, EXAM_GROUPS, marks),
        "content": _table(run, CONTENT_GROUPS, marks),
        "strict": _table(run, ("strict",), marks),
        "more": _table(run, MORE_GROUPS, marks),
        "costs": costs,
    }
    only_costs = not any(tables[name].heads for name in ("content", "strict", "more"))
    methods = [
        (name, _icons(run, name, marks), findings.describe_method(run.method_config(name), change=has_change(run)))
        for name in run.methods
    ]
    parts = {
        "findings": findings.findings(run),
        "failed": [cell for cell in run.cells if not cell.done],
        "notes": list(_paragraphs(run.notes)),
        "methods": [] if run.alone else methods,
        "plots": panels.scatters(run, marks),
        "losses": panels.losses(run, marks),
        "capabilities": exam_page.capabilities(run, marks),
        "exams": exam_page.exam_views(run, marks),
        "forgetting": exam_page.forgetting(run, marks),
        "steps": steps_page.steps_view(run, marks),
        "stages": stages_page.stages_view(run, marks),
        "merges": merge_back_page.merge_view(run, marks),
        "environment": _environment(run.cells),
        "configs": [(name, cell.change, cell.config) for name, cell in _first_cells(run) if cell.config],
    }
    return environment.get_template("report.html.jinja").render(
        run=run,
        language=language,
        languages=[(each, catalogue(each)["language.name"]) for each in LANGUAGES],
        version=__version__,
        sections=_sections(run, {**tables, **parts}),
        intro=_intro(run),
        partly=footnotes.partly(run),
        exam_notes=list(footnotes.exam_notes(run)),
        words=footnotes.words(run),
        seen_notes=footnotes.seen_notes(run),
        content_notes=footnotes.content_notes(run),
        more_notes=footnotes.more_notes(run),
        more_name=footnotes.more_name(run),
        more_title="head.cost" if only_costs else "more.title",
        balance=panels.balance(run, marks),
        data=answers.safe_json(_data(run, samples, voice)),
        with_exams=bool(run.exams or any(row.drift for row in run.rows)),
        has_change=has_change(run),
        has_samples=bool(samples),
        has_answers=any(cell.samples for cell in run.cells),
        cost=_cost(run),
        cells=[_cell_line(cell, marks) for cell in run.cells],
        cell_columns=CELL_COLUMNS,
        folder=run.place.resolve().name if run.alone and run.place else run.name,
        **tables,
        **parts,
    )


def _sections(run: Run, parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The sections that the page has, with the keys of their names: the picture and the table first, then the
    sentences, then everything behind them."""
    change, rated = has_change(run), bool(parts["exam"].heads)
    staged = bool(parts["stages"])
    exams = [("capabilities", bool(parts["capabilities"])), ("exams", bool(parts["exams"]))]
    first = [("plot", change and rated), ("scores", change and rated), ("stages", staged)]
    details = not run.alone or len(run.changes) > 1 or parts["environment"] or parts["configs"]
    more = any(parts[name].heads for name in ("content", "strict", "more", "costs"))
    seen = bool(parts["findings"] or parts["failed"] or run.problems or not run.alone)
    shown = [
        *first,
        *([] if (change and rated) or staged else exams),
        ("seen", seen),
        ("notes", bool(parts["notes"] or parts["methods"])),
        *(exams if (change and rated) or staged else []),
        ("merge", bool(parts["merges"])),
        ("forgetting", bool(parts["forgetting"])),
        ("steps", bool(parts["steps"])),
        ("loss", bool(parts["losses"].panels)),
        ("more-scores", more),
        ("answers", change and rated),
        ("details", bool(details)),
    ]
    names = {
        "more-scores": "head.cost" if not any(parts[n].heads for n in ("content", "strict", "more")) else "nav.more"
    }
    return [(name, names.get(name, f"nav.{name}")) for name, there in shown if there]


def _icons(run: Run, method: str, marks: Mapping[Version, Mark]) -> Markup:
    """The marks of a method: one for each model."""
    return Markup("").join(mark_icon(marks[version]) for version in run.versions if version[1] == method)


def _paragraphs(notes: str) -> Iterator[tuple[str, list[Markup]]]:
    """Notes as paragraphs and lists: ("p", [text]) or ("ul", [items]); `code` and **strong** are marked up."""
    for block in notes.strip().split("\n\n"):
        lines = [line.strip() for line in block.strip().split("\n") if line.strip()]
        if lines and all(line.startswith("- ") for line in lines):
            yield "ul", [inline(line[2:]) for line in lines]
        elif lines:
            yield "p", [inline(" ".join(lines))]


def _intro(run: Run) -> Message:
    if not run.rows and run.before:
        models = ", ".join(f"`{one.model}`" for one in run.before)
        return say("intro.only_before", models=models, names=" \u00b7 ".join(f"`{exam.name}`" for exam in run.exams))
    if not run.rows:
        return say("scores.none")
    if run.alone:
        return alone.intro(run, averaged.over(run.final) if has_change(run) else None)
    changes = averaged.over([row for row in run.final if not row.is_floor])
    methods = averaged.counted("methods", len([m for m in run.methods if m != NOISE_FLOOR]))
    models = ", ".join(f"`{name}`" for name in run.models)
    if not run.exams:
        return say("intro.what", changes=changes, methods=methods, models=models)
    names = " · ".join(f"`{exam.name}`" for exam in run.exams)
    if not has_change(run):
        return say("intro.only_exams", methods=methods, models=models, names=names)
    what = say("intro.what", changes=changes, methods=methods, models=models)
    return say("intro.with_exams", what=what, exams=say("intro.exam_names", names=names))


def has_change(run: Run) -> bool:
    """Whether the change exam was taken, or nothing is known yet."""
    return not run.exams or any(_of_change(run, key) for row in run.rows for key in row.scores)


def _of_change(run: Run, key: str) -> bool:
    """Whether a score is the change exam's."""
    return all(exam.score(key) is None for exam in run.exams)


def _table(run: Run, groups: Sequence[str], marks: Mapping[Version, Mark]) -> Table:
    rows = [row for row in run.shown if row.scores]
    columns = numbers.columns((key for row in rows for key in row.scores), groups)
    if groups == MORE_GROUPS:  # what no other table shows is shown here
        every = {key for row in rows for key in row.scores if _of_change(run, key)}
        shown = {c.key for c in numbers.columns(every, (*EXAM_GROUPS, *CONTENT_GROUPS, "strict", *groups))}
        columns += [Column(key, "other", key) for key in sorted(every - shown)]
    if groups == ("cost",):
        measured = dict.fromkeys(
            key for row in rows for key in row.cost if "." not in key
        )  # an exam's own: with the exam
        columns = [Column(f"cost.{key}", "cost", key) for key in sorted(measured, key=_cost_place)]
    heads = tuple(_head(column, rows) for column in columns)
    lines = tuple(
        Line(row.model, row.method, row.checkpoint, mark_icon(marks[row.version]), tuple(_shown(row, h) for h in heads))
        for row in rows
    )
    counts: dict[str, int] = {}
    for column in columns:
        counts[column.group] = counts.get(column.group, 0) + 1
    named = [(say(f"head.{group}") if known(f"head.{group}") else say("head.other"), n) for group, n in counts.items()]
    return Table(tuple(named), heads, lines)


def _model_costs(run: Run, marks: Mapping[Version, Mark]) -> Table:
    """What each model's exams cost, where nothing was trained."""
    each = list(alone.costs(run))
    keys = [key for key in alone.COSTS if any(cost.get(key) for _, cost in each)]
    heads = tuple(_head(Column(f"cost.{key}", "cost", key), ()) for key in keys)
    icons = {row.method: mark_icon(marks[row.version]) for row in run.final}
    lines = tuple(
        Line(model, model, "final", icons.get(model, Markup()), tuple(_cost_cell(cost, head) for head in heads))
        for model, cost in each
        if cost
    )
    return Table(((say("head.cost"), len(heads)),) if heads else (), heads if lines else (), lines)


COSTS = ("moved", "moved_share", "wall_s", "train_s", "exam_s", "exam_tokens", "steps", "tokens", "peak_gib")


def _cost_place(key: str) -> int:
    return COSTS.index(key) if key in COSTS else len(COSTS)


def _head(column: Column, rows: Sequence[Row]) -> Head:
    counts = sorted({row.n[column.key] for row in rows if column.key in row.n})
    shown = "" if not counts else str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return Head(column, findings.group_name(column.key), shown)


def _shown(row: Row, head: Head) -> Shown:
    key = head.column.key
    if head.column.group == "cost":
        return _cost_cell(row.cost, head)
    if key not in row.scores:
        return Shown(numbers.MISSING)
    value, interval, n = row.scores[key], row.ci95.get(key), row.n.get(key)
    text = numbers.score_text(key, value)
    between = numbers.interval_text(key, interval) if interval else ""
    shall = not (row.is_floor and head.column.group in ("reliability", "generality", "likelihood"))
    good = numbers.goodness(key, value) if shall else None  # nobody has told it anything
    said = {
        "method": averaged.method_of(row),
        "group": head.name,
        "score": text,
        "interval": between or numbers.MISSING,
        "n": n or "?",
    }
    title = say("scores.cell", **said)
    if key in row.floor:
        beside = row.floor[key]
        floor, p_value = numbers.score_text(key, beside.floor), numbers.p_text(beside.p_value)
        title = say("scores.cell_floor", **said, floor=floor, p=p_value)
    return Shown(
        text=text,
        interval=between,
        colour=numbers.cell_colour(good) if good is not None else "",
        bar=round(100 * value) if numbers.is_share(key) else None,
        attributes=attribute(LANGUAGES[0], title=title),
        group=key if head.column.group in EXAM_GROUPS else "",
        below=row.below(key),
        unsure=row.unsure(key),
    )


def _cost_cell(cost: Mapping[str, float], head: Head) -> Shown:
    value = cost.get(head.column.name)
    if value is None:
        return Shown(numbers.MISSING)
    if head.column.name.endswith("_share"):
        return Shown(f"{100 * value:.4g}\u00a0%")
    return Shown(both(numbers.duration(value)) if head.column.name.endswith("_s") else numbers.amount(value))


def _data(run: Run, samples: Mapping[str, object], voice: alone.Voice) -> dict[str, object]:
    """What the page's script needs: the answers, and the words it writes itself."""
    wanted = ("answers.", "group.", *(("quadrant.", "forgetting.") if samples else ()))
    texts = {
        each: {k: catalogue(each)[voice.key(k)] for k in catalogue(each) if k.startswith(wanted)} for each in LANGUAGES
    }
    return {**answers.payload(run), "texts": texts, **({"quadrants": samples} if samples else {})}


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


def _first_cells(run: Run) -> Iterator[tuple[str, Cell]]:
    for name in run.methods:
        yield name, next(cell for cell in run.cells if cell.method == name)


def _environment(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Every entry of the cells' env.json; values that differ between cells are all named."""
    values: dict[str, dict[str, None]] = {}
    for cell in cells:
        for key, value in _flat(cell.env):
            values.setdefault(key, {})[value] = None
    return [(key, " · ".join(each)) for key, each in values.items()]


def _flat(node: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


CELL_COLUMNS = ("reliability", "generality", "locality", "leak")


class CellLine(NamedTuple):
    """A row of the table of all cells."""

    cell: Cell
    icon: Markup
    scores: tuple[str, ...]
    cost: tuple[str, ...]


def _cell_line(cell: Cell, marks: Mapping[Version, Mark]) -> CellLine:
    scores = []
    for name in CELL_COLUMNS:
        values = [v for k, v in cell.scores.items() if k == name or k.startswith(f"{name}.")]
        scores.append(numbers.score_text(name, numbers.mean(values)) if values else numbers.MISSING)
    cost = (
        both(numbers.duration(cell.cost["wall_s"])) if "wall_s" in cell.cost else numbers.MISSING,
        numbers.amount(cell.cost["tokens"]) if "tokens" in cell.cost else numbers.MISSING,
        numbers.amount(cell.cost["peak_gib"]) if "peak_gib" in cell.cost else numbers.MISSING,
    )
    return CellLine(cell, mark_icon(marks[cell.version]), tuple(scores), cost)
