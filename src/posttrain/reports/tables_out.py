"""Tables outside the report's page: for the terminal, and for papers and spreadsheets as HTML, CSV and LaTeX.

In the plain table of an exam, rows are checkpoints and columns are scores. Above the checkpoints is the untouched
model, below them are the reference rows (people). All values of a column have the same number of decimals: 3 when no
value is above 1, 2 when all are below 1000, else 1. The best model of a column is bold if it is known whether more or
less is better.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from posttrain.exams.results import CHANGE, ExamInfo
from posttrain.exams.score_spec import find_spec
from posttrain.exams.scores import SPECS
from posttrain.models.disk import safe_name, write_whole
from posttrain.reports import numbers
from posttrain.reports.folder import Run
from posttrain.reports.marks import method_of
from posttrain.reports.texts import LANGUAGES, Message, Words, attribute, both, breakable, inline, say, sentences, text
from posttrain.reports.view import Entry, Head, Table, number_table

__all__ = [
    "filled",
    "folded",
    "plain_table",
    "pretty",
    "records",
    "table_names",
    "to_csv",
    "to_html",
    "to_latex",
    "to_text",
    "write_table",
    "write_tables",
]


def records(table: Table, language: str = LANGUAGES[0]) -> list[dict[str, Any]]:
    """Return a mapping for each row: head -> label, or number with all its digits."""
    heads = [text(head.name, language) for head in table.heads]
    rows = (
        [*(text(label, language) for label in line.labels), *(e.value for e in line.entries)] for line in table.lines
    )
    return [dict(zip(heads, row, strict=True)) for row in rows]


def _ascii(entry: Entry, language: str) -> str:
    """Return the text of an entry for programs: with an ASCII minus, and empty without a number."""
    shown = text(entry.text, language)
    return "" if shown == numbers.MISSING else shown.replace("\u2212", "-")


def to_csv(table: Table, language: str = LANGUAGES[0]) -> str:
    """Return the table as CSV. It begins with a byte order mark, which Excel needs to read Chinese correctly."""
    stream = io.StringIO()
    stream.write("\ufeff")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow([text(head.name, language) for head in table.heads])
    for line in table.lines:
        writer.writerow([text(label, language) for label in line.labels] + [_ascii(e, language) for e in line.entries])
    return stream.getvalue()


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def tex_escape(plain: str) -> str:
    """Return text with LaTeX's special characters escaped, on one line."""
    return "".join(_TEX.get(c, c) for c in " ".join(plain.split()))


def to_latex(table: Table, language: str = LANGUAGES[0]) -> str:
    """Return the table as a LaTeX tabular. Rules of the package booktabs separate the kinds of rows: the untouched
    model, models and references.
    """

    def number(entry: Entry) -> str:
        shown = _ascii(entry, language)
        shown = "--" if not shown else f"$-${shown[1:]}" if shown.startswith("-") else tex_escape(shown)
        return f"\\textbf{{{shown}}}" if entry.best else shown

    lines = [
        "% \\usepackage{booktabs}; names in Chinese need XeLaTeX or LuaLaTeX with a font that has them",
        f"% {' '.join(text(table.label, language).split())}",
        f"\\begin{{tabular}}{{{'l' * table.labels}{'r' * (len(table.heads) - table.labels)}}}",
        "\\toprule",
        " & ".join(tex_escape(pretty(text(head.name, language))) for head in table.heads) + " \\\\",
    ]
    last = None
    for line in table.lines:
        lines += ["\\midrule"] if line.kind != last else []
        last = line.kind
        labels = [tex_escape(text(label, language)) for label in line.labels]
        lines.append(" & ".join([*labels, *map(number, line.entries)]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def to_text(table: Table, language: str = LANGUAGES[0], *, width: int | None = None) -> str:
    """Return the table for the terminal; a Chinese character takes two columns.

    width: the largest width in columns, for a table that people read, with a rule below the heads. None: no limit, for
    programs: with an ASCII minus and empty entries.
    """
    style = box.SIMPLE_HEAD if width else None
    shown = RichTable(box=style, pad_edge=False, padding=(0, 1 if width else 2, 0, 0), show_edge=False)
    for i, head in enumerate(table.heads):
        label = i < table.labels
        side: Literal["left", "right"] = "left" if label else "right"
        name = pretty(text(head.name, language))
        shown.add_column(name, justify=side, overflow="fold", no_wrap=not (label and width))
    for line in table.lines:
        entries = [text(e.text, language) + e.sign if width else _ascii(e, language) for e in line.entries]
        shown.add_row(*(text(label, language) for label in line.labels), *entries)
    return folded(shown, width or 10_000)


def folded(shown: Any, width: int) -> str:
    """Return a text or a table of rich as text, with lines folded at a width and without spaces at their ends."""
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False, highlight=False, markup=False).print(shown)
    return "\n".join(line.rstrip() for line in stream.getvalue().split("\n"))


PRETTY: tuple[tuple[str, str], ...] = (
    (r"bleu-?_?(\d)", r"BLEU-\1"),
    (r"bleu", "BLEU"),
    (r"rouge-?_?(\d|[lL](?:sum)?|[sS])", r"ROUGE-\1"),
)
"""(pattern of a score's name, the name as papers print it)."""


def pretty(score: str) -> str:
    """Return `rougeL` as `ROUGE-L`, `bleu4` as `BLEU-4`, and other names as they are."""
    for pattern, shown in PRETTY:
        match = re.fullmatch(pattern, score)
        if match:
            return match.expand(shown).replace("-l", "-L").replace("-s", "-S")
    return score


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("posttrain.reports", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def filled(
    template: str, language: str, *, show: Callable[[Words], Markup] = both,
    word: Callable[[Words], Words] = lambda words: words, **values: object,
) -> str:  # fmt: skip
    """Return a template filled with values. show: turns words into HTML; word: replaces a message by the page's own
    wording of it.
    """

    def head(name: Words) -> Markup:
        return show(word(name)) if isinstance(name, Message | Markup) else breakable(pretty(name))

    return _templates().get_template(template).render(
        m=lambda words: show(word(words)),
        t=lambda key, **args: show(word(say(key, **args))),
        sentences=lambda messages: sentences([word(words) for words in messages]),
        attr=lambda **messages: attribute(language, **{key: word(each) for key, each in messages.items()}),
        head=head,
        say=say,
        inline=inline,
        language=language,
        **values,
    )  # fmt: skip


def to_html(table: Table, language: str = LANGUAGES[0]) -> str:
    """Return an HTML page that holds only this table, in one language."""

    def show(words: Words) -> Markup:
        return words if isinstance(words, Markup) else inline(text(words, language))

    return filled("plain.html.jinja", language, show=show, table=table, title=text(table.label, language))


def direction(exam: ExamInfo | None, score: str) -> bool | None:
    """Return True when a higher score is better, False when a lower one is better, and None in all other cases."""
    spec = find_spec(score, SPECS if exam is None else exam.scores)
    return None if spec is None or spec.better == "none" else spec.better == "more"


def table_names(run: Run) -> list[str]:
    """Return the names of the exams that have a table; `change`, if that exam was taken, comes last."""
    change = [CHANGE] if any(run.of_change(key) for row in run.rows for key in row.scores) else []
    return [exam.name for exam in run.exams] + change


def plain_table(run: Run, name: str) -> Table:
    """Return an exam's table, without scores of single groups (`acc/law`) and of perturbed questions (`acc~typos`)."""
    exam = next((each for each in run.exams if each.name == name), None)

    def own(scores: Mapping[str, float]) -> dict[str, float]:
        if exam is not None:
            return {score: v for key, v in scores.items() if (score := exam.score(key)) is not None}
        return {key: v for key, v in scores.items() if run.of_change(key)}

    known = [own(row.scores) for row in run.rows] + [own(one.scores) for one in run.before]
    names = [score for score in dict.fromkeys(s for each in known for s in each) if not re.search("[/~]", score)]
    if exam is None:
        names = numbers.columns(names)
    many = len({*run.models, *(one.model for one in run.before)}) > 1
    # labels: model, method, checkpoint, step; in `posttrain exam`, where nothing was trained, only the model
    shown = slice(0, 1) if run.alone else slice(0, 4) if many else slice(1, 4)
    heads = [Head(say(key)) for key in ("tables.model", "tables.method", "tables.checkpoint", "tables.step")[shown]]
    rows: list[tuple[tuple[Words, ...], Sequence[float | None], str]] = []

    def add(labels: tuple[Words, ...], scores: Mapping[str, float], kind: str) -> None:
        values = [scores.get(score) for score in names]
        if any(value is not None for value in values):
            rows.append((labels[shown], values, kind))

    for one in run.before:
        add((one.model, say("tables.untouched"), "", "0"), own(one.scores), "untouched")
    for row in (row for version in run.versions for row in run.rows_of(*version)):
        model: Words = row.model
        if run.alone and row.is_floor:  # with only the model's name it would look like the examined model
            model = say("tables.floor", floor=method_of(row), model=run.before_name or row.model)
        add(
            (model, method_of(row), row.checkpoint, "" if row.step is None else str(row.step)), own(row.scores), "model"
        )
    for person in run.results.reference:
        add(("", person.name, "", ""), own(person.scores), "reference")
    label = f"{run.title}: {name}" + (f" ({exam.signature})" if exam is not None and exam.signature else "")
    return number_table(label, heads, [Head(score) for score in names], rows, [direction(exam, s) for s in names])


def write_tables(run: Run, folder: Path, *, names: Sequence[str] = (), language: str = "en") -> list[Path]:
    """Write tables/<exam>.{html,csv,tex} below a folder, of the named exams or of all, and return their paths."""
    written: list[Path] = []
    for name in names or table_names(run):
        stem = safe_name(name)
        while any(path.stem == stem for path in written):  # two names can become equal when they are made safe
            stem += "-2"
        written += write_table(plain_table(run, name), folder, stem, language=language)
    return written


def write_table(table: Table, folder: Path, stem: str, *, language: str = "en") -> list[Path]:
    """Write tables/<stem>.{html,csv,tex} below a folder and return their paths."""
    texts = {"html": to_html(table, language), "csv": to_csv(table, language), "tex": to_latex(table, language)}
    paths = [folder / "tables" / f"{stem}.{suffix}" for suffix in texts]
    for path, written in zip(paths, texts.values(), strict=True):
        write_whole(path, written.encode("utf-8", errors="replace"))
    return paths
