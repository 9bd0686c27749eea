"""A table outside the page: for the terminal, for spreadsheets (CSV), for papers (LaTeX)."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from posttrain.reports import numbers
from posttrain.reports.texts import LANGUAGES, text
from posttrain.reports.view import Entry, Table

__all__ = ["folded", "pretty", "records", "tex_escape", "to_csv", "to_latex", "to_text"]


def records(table: Table, language: str = LANGUAGES[0]) -> list[dict[str, Any]]:
    """Return a mapping per row, head -> label or number with all its digits."""
    heads = [text(head.name, language) for head in table.heads]
    rows = (
        [*(text(label, language) for label in line.labels), *(e.value for e in line.entries)] for line in table.lines
    )
    return [dict(zip(heads, row, strict=True)) for row in rows]


def _ascii(entry: Entry, language: str) -> str:
    """Return an entry as programs read it: with an ASCII minus, and empty where there is no number."""
    shown = text(entry.text, language)
    return "" if shown == numbers.MISSING else shown.replace("\u2212", "-")


def to_csv(table: Table, language: str = LANGUAGES[0]) -> bytes:
    """Return UTF-8 with a byte order mark, without which Excel reads Chinese as another encoding."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow([text(head.name, language) for head in table.heads])
    for line in table.lines:
        writer.writerow([text(label, language) for label in line.labels] + [_ascii(e, language) for e in line.entries])
    return stream.getvalue().encode("utf-8-sig", errors="replace")


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def tex_escape(plain: str) -> str:
    """Return text for LaTeX, on one line."""
    return "".join(_TEX.get(c, c) for c in " ".join(plain.split()))


def to_latex(table: Table, language: str = LANGUAGES[0]) -> str:
    """Return a tabular; rules of booktabs set the kinds of rows apart: models, the untouched model, references."""

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
    """Return the table for the terminal; wide Chinese letters count as two.

    width: at most so many columns, with a rule below the heads and the typography of a reader; None: as wide as it is,
    as a program may read it.
    """
    style = box.SIMPLE_HEAD if width else None
    shown = RichTable(box=style, pad_edge=False, padding=(0, 1 if width else 2, 0, 0), show_edge=False)
    for i, head in enumerate(table.heads):
        label = i < table.labels
        shown.add_column(
            pretty(text(head.name, language)),
            justify="left" if label else "right",
            overflow="fold",
            no_wrap=not (label and width),
        )
    for line in table.lines:
        entries = [text(e.text, language) + e.sign if width else _ascii(e, language) for e in line.entries]
        shown.add_row(*(text(label, language) for label in line.labels), *entries)
    return folded(shown, width or 10_000)


def folded(shown: Any, width: int) -> str:
    """Return text or a table of rich, its lines folded at a width and without spaces at their ends."""
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False, highlight=False, markup=False).print(shown)
    return "\n".join(line.rstrip() for line in stream.getvalue().split("\n"))


PRETTY: tuple[tuple[str, str], ...] = (
    (r"bleu-?_?(\d)", r"BLEU-\1"),
    (r"bleu", "BLEU"),
    (r"rouge-?_?(\d|[lL](?:sum)?|[sS])", r"ROUGE-\1"),
)
"""Names of scores as papers print them."""


def pretty(score: str) -> str:
    """Return `rougeL` as `ROUGE-L`, `bleu4` as `BLEU-4`, and other names as they are."""
    for pattern, shown in PRETTY:
        match = re.fullmatch(pattern, score)
        if match:
            return match.expand(shown).replace("-l", "-L").replace("-s", "-S")
    return score
