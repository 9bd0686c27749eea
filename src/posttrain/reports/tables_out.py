"""Plain tables of an exam for papers and spreadsheets: rows are checkpoints, columns scores, in three formats.

Below and above the checkpoints stand the untouched model and the reference rows (people). Every column has one
precision: 3 decimals where no value is above 1, 2 below 1000, else 1. The best model of a column is bold where the
score's better end is known; reference rows are out of that competition.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape
from rich.cells import cell_len

from posttrain.exams.results import CHANGE, ExamInfo
from posttrain.exams.score_spec import find_spec
from posttrain.exams.scores import SPECS
from posttrain.models.disk import write_whole
from posttrain.reports import numbers
from posttrain.reports.folder import Run, safe_name
from posttrain.reports.texts import catalogue

__all__ = [
    "FORMATS",
    "PlainRow",
    "PlainTable",
    "direction",
    "plain_table",
    "pretty",
    "table_names",
    "write_table",
    "write_tables",
]

FORMATS: tuple[str, ...] = ("html", "csv", "tex")

LABELS: tuple[str, ...] = ("tables.method", "tables.checkpoint", "tables.step")
"""Catalogue keys of the label columns; a column of models stands before them where there are several."""

PRETTY: tuple[tuple[str, str], ...] = (
    (r"bleu-?_?(\d)", r"BLEU-\1"),
    (r"bleu", "BLEU"),
    (r"rouge-?_?(\d|[lL](?:sum)?|[sS])", r"ROUGE-\1"),
)
"""Names of scores as papers print them."""


class PlainRow(NamedTuple):
    """kind: model, untouched or reference; values in the order of the columns, None where there is none."""

    labels: tuple[str, ...]
    values: tuple[float | None, ...]
    kind: str = "model"


class PlainTable(NamedTuple):
    """heads: names of the label columns; columns: scores; better: per column whether higher (True) or lower is."""

    name: str
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[PlainRow, ...]
    better: tuple[bool | None, ...]
    head_keys: tuple[str, ...] = ()
    caption: str = ""

    @property
    def digits(self) -> tuple[int, ...]:
        """Decimals of each column."""
        values = [[v for row in self.rows if (v := row.values[i]) is not None] for i in range(len(self.columns))]
        return tuple(numbers.digits(column) for column in values)

    def shown(self) -> list[tuple[str, ...]]:
        """The numbers as text, with ASCII minus; empty where there is none."""
        digits = self.digits
        return [
            tuple("" if v is None else f"{v + 0.0:.{d}f}" for v, d in zip(row.values, digits, strict=True))
            for row in self.rows
        ]

    def best(self) -> set[tuple[int, int]]:
        """(row, column) of the best models, ties as printed; none where there is only one model row to choose from."""
        found = set()
        shown = self.shown()
        for column, better in enumerate(self.better):
            rivals = [
                (i, float(shown[i][column])) for i, row in enumerate(self.rows)
                if row.kind != "reference" and shown[i][column]
            ]  # fmt: skip
            if better is None or len(rivals) < 2:
                continue
            top = (max if better else min)(value for _, value in rivals)
            found |= {(i, column) for i, value in rivals if value == top}
        return found


def pretty(score: str) -> str:
    """`rougeL` as `ROUGE-L`, `bleu4` as `BLEU-4`; other names stay."""
    for pattern, shown in PRETTY:
        match = re.fullmatch(pattern, score)
        if match:
            return match.expand(shown).replace("-l", "-L").replace("-s", "-S")
    return score


def direction(exam: ExamInfo | None, score: str) -> bool | None:
    """Whether higher is better (True) or lower (False); None where neither is known to be."""
    spec = find_spec(score, SPECS if exam is None else exam.scores)
    return None if spec is None or spec.better == "none" else spec.better == "more"


def table_names(run: Run) -> list[str]:
    """The exams that have a table: those beyond the change exam, and `change` where it was taken."""
    change = [CHANGE] if any(_exam_of(run, key) is None for row in run.rows for key in row.scores) else []
    return [exam.name for exam in run.exams] + change


def _exam_of(run: Run, key: str) -> ExamInfo | None:
    return next((exam for exam in run.exams if exam.score(key) is not None), None)


def plain_table(run: Run, name: str, *, language: str = "en") -> PlainTable:
    """An exam's table. Scores of single groups (`acc/law`) and of disturbed questions (`acc~typos`) are left out."""
    words = catalogue(language)
    exam = next((each for each in run.exams if each.name == name), None)

    def own(scores: Mapping[str, float]) -> dict[str, float]:
        if exam is not None:
            return {score: v for key, v in scores.items() if (score := exam.score(key)) is not None}
        return {key: v for key, v in scores.items() if _exam_of(run, key) is None}

    known = [own(row.scores) for row in run.rows] + [own(one.scores) for one in run.before]
    names = [score for score in dict.fromkeys(s for each in known for s in each) if not re.search("[/~]", score)]
    if exam is None:
        names = [column.key for column in numbers.columns(names)]
    many = len({*run.models, *(one.model for one in run.before)}) > 1
    rows = [
        PlainRow((one.model, words["tables.untouched"], "", "0"), _values(own(one.scores), names), "untouched")
        for one in run.before
    ]
    for version in run.versions:
        for row in run.rows_of(*version):
            step = "" if row.step is None else str(row.step)
            method = words["answers.noise_floor"] if row.is_floor else row.method
            # named by the model alone, the floor would have the name of what was examined
            model = f"{method} ({run.before_name or row.model})" if run.alone and row.is_floor else row.model
            rows.append(PlainRow((model, method, row.checkpoint, step), _values(own(row.scores), names)))
    rows += [PlainRow(("", one.name, "", ""), _values(own(one.scores), names), "reference") for one in run.reference]
    rows = [row for row in rows if any(value is not None for value in row.values)]
    keys = ("tables.model", *LABELS) if many else LABELS
    if run.alone:  # nothing was trained: the models are all there is to tell rows apart
        rows = [row._replace(labels=row.labels[:1]) for row in rows]
        keys = ("tables.model",)
    elif not many:
        rows = [row._replace(labels=row.labels[1:]) for row in rows]
    heads = tuple(words[key] for key in keys)
    better = tuple(direction(exam, score) for score in names)
    caption = f"{run.title}: {name}" + (f" ({exam.signature})" if exam is not None and exam.signature else "")
    return PlainTable(name, heads, tuple(names), tuple(rows), better, keys, caption)


def _values(scores: Mapping[str, float], names: Sequence[str]) -> tuple[float | None, ...]:
    return tuple(scores.get(name) for name in names)


# ---- the three formats ---------------------------------------------------------------------------------------------


def to_csv(table: PlainTable) -> bytes:
    """UTF-8 with a byte order mark: without it Excel reads Chinese as another encoding."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow([*table.heads, *table.columns])
    for row, values in zip(table.rows, table.shown(), strict=True):
        writer.writerow([*row.labels, *values])
    return stream.getvalue().encode("utf-8-sig", errors="replace")


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def tex_escape(text: str) -> str:
    """Text for LaTeX, on one line."""
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))


def to_latex(table: PlainTable) -> str:
    """A tabular with booktabs rules; the untouched model and the reference rows are set apart by rules."""
    best = table.best()
    lines = [
        "% \\usepackage{booktabs}; names in Chinese need XeLaTeX or LuaLaTeX with a font that has them",
        f"% {' '.join(table.caption.split())}",
        f"\\begin{{tabular}}{{{'l' * len(table.heads)}{'r' * len(table.columns)}}}",
        "\\toprule",
        " & ".join(tex_escape(head) for head in (*table.heads, *map(pretty, table.columns))) + " \\\\",
    ]
    last = None
    for i, (row, values) in enumerate(zip(table.rows, table.shown(), strict=True)):
        if row.kind != last:
            lines.append("\\midrule")
        last = row.kind
        cells = [tex_escape(label) for label in row.labels]
        for column, value in enumerate(values):
            number = "--" if not value else f"$-${value[1:]}" if value.startswith("-") else value
            cells.append(f"\\textbf{{{number}}}" if (i, column) in best else number)
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def to_html(table: PlainTable, *, language: str = "en") -> str:
    """A page of its own that holds the table alone."""
    head = Markup("").join(Markup("<th>{}</th>").format(h) for h in (*table.heads, *map(pretty, table.columns)))
    style = (
        "body{font:16px/1.5 system-ui,'Noto Sans TC',sans-serif;margin:2em}table{border-collapse:collapse}"
        "th,td{padding:.25em .8em;text-align:left;border-bottom:1px solid #ccc}td.n{text-align:right;"
        "font-variant-numeric:tabular-nums}caption{text-align:left;padding-bottom:.6em}"
        "tr.untouched,tr.reference{font-style:italic}"
    )
    page = Markup(
        '<!doctype html>\n<html lang="{lang}">\n<head><meta charset="utf-8"><title>{caption}</title>'
        "<style>{style}</style></head>\n<body>\n<table>\n<caption>{caption}</caption>\n"
        "<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</body>\n</html>\n"
    )
    return str(page.format(lang=language, caption=table.caption, style=Markup(style), head=head, body=html_rows(table)))


def to_text(table: PlainTable) -> str:
    """For the terminal: columns as wide as they need to be, wide Chinese letters counted as two."""
    lines = [(*table.heads, *map(pretty, table.columns))]
    lines += [(*row.labels, *values) for row, values in zip(table.rows, table.shown(), strict=True)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def padded(line: tuple[str, ...]) -> str:
        cells = []
        for i, (cell, width) in enumerate(zip(line, widths, strict=True)):
            gap = " " * (width - cell_len(cell))
            cells.append(cell + gap if i < len(table.heads) else gap + cell)
        return "  ".join(cells).rstrip()

    return "\n".join([table.caption, "", *map(padded, lines), ""])


def html_rows(table: PlainTable, *, untouched: Markup | None = None) -> Markup:
    """The table's rows, also for the report's page; untouched: that row's name where the page has two languages."""
    best = table.best()
    rows = []
    for i, (row, values) in enumerate(zip(table.rows, table.shown(), strict=True)):
        labels: list[str] = [*row.labels]
        if untouched is not None and row.kind == "untouched":
            labels[-len(LABELS)] = untouched
        cells = [Markup("<td>{}</td>").format(label) for label in labels]
        for column, value in enumerate(values):
            number = escape(value.replace("-", "\u2212") or numbers.MISSING)
            bold = Markup("<b>{}</b>").format(number) if (i, column) in best else number
            cells.append(Markup('<td class="n">{}</td>').format(bold))
        rows.append(Markup('<tr class="{}">{}</tr>\n').format(row.kind, Markup("").join(cells)))
    return Markup("").join(rows)


def write_tables(run: Run, folder: Path, *, names: Sequence[str] = (), language: str = "en") -> list[Path]:
    """Write tables/<exam>.{html,csv,tex} below a folder, of the named exams or of all, and return their paths."""
    written: list[Path] = []
    for name in names or table_names(run):
        table = plain_table(run, name, language=language)
        stem = safe_name(name)
        while any(path.stem == stem for path in written):  # two names that are the same once they are made safe
            stem += "-2"
        written += write_table(table, folder, stem, language=language)
    return written


def write_table(table: PlainTable, folder: Path, stem: str, *, language: str = "en") -> list[Path]:
    """Write tables/<stem>.{html,csv,tex} below a folder and return their paths."""
    texts = {
        "html": to_html(table, language=language).encode("utf-8", errors="replace"),
        "csv": to_csv(table),
        "tex": to_latex(table).encode("utf-8", errors="replace"),
    }
    paths = [folder / "tables" / f"{stem}.{suffix}" for suffix in FORMATS]
    for suffix, path in zip(FORMATS, paths, strict=True):
        write_whole(path, texts[suffix])
    return paths
