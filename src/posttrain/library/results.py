"""The results of exams for Python and notebooks: tables, plots, data frames, the report."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.errors import DataError, Problem
from posttrain.exams.results import CHANGE, Line, Results
from posttrain.exams.sample_log import read_samples
from posttrain.language import spoken
from posttrain.library.models import as_arguments
from posttrain.models.disk import safe_name, write_whole
from posttrain.reports.folder import read_run
from posttrain.reports.html import write_report
from posttrain.reports.table import text_table
from posttrain.studies.exam import METHOD

if TYPE_CHECKING:
    import pandas

__all__ = ["Examination", "Plot"]


INK = {"ink": "#171b1f", "soft": "#56606a", "grid": "#e4e8ec", "paper": "#fff", "bad": "#a33b00"}
"""Values of the colours that the report's page defines by name, for a chart outside the page."""


@dataclass(frozen=True)
class Plot:
    """A chart that a notebook displays. svg: a complete SVG image, with all colours in it."""

    svg: str

    def save(self, path: str | Path) -> Path:
        """Write the chart as PNG if the path ends in `.png`, otherwise as SVG; return the path."""
        import vl_convert

        target = Path(path)
        if target.suffix == ".png":
            target.write_bytes(vl_convert.svg_to_png(self.svg, scale=2))
        else:
            write_whole(target, self.svg)
        return target

    def _repr_svg_(self) -> str:
        return self.svg


@dataclass(frozen=True)
class Examination:
    """The results of exams, and the folder where every answer is kept. results: see `posttrain/exams/results.py`."""

    results: Results
    folder: Path
    temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)
    """Deletes the folder when this object is no longer used; None if the caller named an output folder."""

    @property
    def lines(self) -> tuple[Line, ...]:
        """One entry per model, method, change, seed and point."""
        return self.results.cells

    @property
    def scores(self) -> Mapping[str, float]:
        """The scores of the first row that is not the noise floor: score -> mean over changes."""
        return next((row.scores for row in self.results.summary if row.method != "noise floor"), {})

    def table(self, *, language: str | None = None, width: int = 120) -> str:
        """Print the main scores as a text table and return it. width: in columns of a terminal."""
        text = text_table(self.results, width, language=language or spoken())
        print(text, end="")
        return text

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row per score: model, method, change, seed, checkpoint, score, value, low, high (95 %), n."""
        import pandas

        told = ("model", "method", "change", "seed", "checkpoint")
        rows = [
            (*attrgetter(*told)(line), score, value, *line.ci95.get(score, (None, None)), line.n.get(score))
            for line in self.results.cells
            for score, value in line.scores.items()
        ]
        return pandas.DataFrame(rows, columns=[*told, "score", "value", "low", "high", "n"])

    def samples(self, exam: str = CHANGE) -> pandas.DataFrame:
        """Return every answer behind an exam's scores, a row each; the change exam's with the answers before and after.
        Raise DataError if there are no answers to this exam.
        """
        import pandas

        run, named = read_run(self.folder), Path("exams", f"{safe_name(str(exam))}.jsonl")
        lines = {line.folder: line for line in self.results.cells if (self.folder / line.folder / named).is_file()}
        rows = [(line, one.to_json()) for at, line in lines.items() for one in read_samples(self.folder / at / named)]
        of_change = [(cell, sample) for cell in run.cells for sample in cell.samples] if exam == CHANGE else []
        if exam != CHANGE and not rows:
            raise DataError(Problem(str(exam), "no answers to this exam", f"known: {', '.join(self.results.exams)}"))
        return pandas.DataFrame(
            {"model": one.model, "method": METHOD if run.alone and one.method == one.model else one.method, **sample}
            for one, sample in (*of_change, *rows)
        )

    def __repr__(self) -> str:
        exams = ", ".join(self.results.exams) or "no exams"
        rows = len(self.results.summary)
        return f"Examination({self.results.study!r}: {exams}; {rows} row{'' if rows == 1 else 's'}, in {self.folder})"

    def plot(self, *, language: str | None = None) -> Plot:
        """Return a plot of learned against forgotten, with a mark per model and method. Raise DataError if no change
        was examined.
        """
        from posttrain.reports.change_page import plot_section
        from posttrain.reports.marks import marks_of
        from posttrain.reports.texts import text

        run = read_run(self.folder)
        chart = plot_section(run, marks_of(run.versions)).panels[0].chart
        if chart is None:
            raise DataError(Problem("plot", "no change was examined", "give `change`"))
        svg = str(chart.svg(lambda words: text(words, language or spoken())))
        for name, colour in INK.items():
            svg = svg.replace(f"var(--{name})", colour)
        return Plot(svg)

    @as_arguments
    def report(self, path: str | Path | None = None, *, language: str | None = None) -> Path:
        """Write the report as one HTML page and return its path; by default `report.html` in the folder."""
        return write_report(self.folder, language=language or spoken(), output=None if path is None else Path(path))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(text_table(self.results, 120, language=spoken()))}</pre>"
