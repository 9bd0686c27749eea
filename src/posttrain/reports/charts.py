"""The report's charts: Vega-Lite by Altair. The page's script draws them; vl-convert draws them without a browser.

A chart is a function of `word`, which puts words into one language. Colours of ink and paper are variables of the
page's CSS, so that a chart follows dark mode and print. Altair is imported when the first chart is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from posttrain.reports.marks import Mark
from posttrain.reports.texts import Message, Words, say

if TYPE_CHECKING:
    import altair as alt

__all__ = ["AXIS", "FONT", "SHARES", "THEME", "TITLE", "Chart", "Layers", "Rows", "Word", "span"]

Word = Callable[[Words], str]
"""Puts words into the language of a chart."""
Rows = list[dict[str, Any]]

STATIC = 720
"""Width of the picture for readers without JavaScript, in CSS pixels. The script takes the page's own width."""
LONGEST = 260
"""Widest name in a legend, in CSS pixels; the tooltip has all of it."""
AXIS = 46
"""Room for the labels of a y axis: the same for all panels, so that the width of a panel is known before it is drawn."""
TITLE = 14
EDGE = 14
"""Room to the right of a chart, for marks and arrows at its edge."""
GAP = 24
FONT = 13
SHARES = (0, 25, 50, 75, 100)
"""Ticks of an axis in per cent."""

THEME: dict[str, Any] = {
    "background": "transparent",
    "padding": {"left": 0, "right": 6, "top": 4, "bottom": 4},
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans TC', 'Noto Sans CJK TC', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "gridColor": "var(--grid)",
        "labelFontSize": 12,
        "titleFontSize": FONT,
        "titleFontWeight": "normal",
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
    },
    "axisY": {"minExtent": AXIS - 6, "maxExtent": AXIS - 6},
    "header": {"labelColor": "var(--ink)", "labelFontSize": FONT, "labelFontWeight": 600, "labelAnchor": "start"},
    "legend": {
        "orient": "top",
        "labelColor": "var(--ink)",
        "labelFontSize": FONT,
        "labelLimit": LONGEST,
        "symbolOpacity": 1,
        "symbolSize": 130,
        "columnPadding": 18,
    },
}
"""What all charts have in common; the page holds it once."""

_QUIET = {"color": "var(--soft)", "strokeWidth": 1.4}
LOOKS: dict[str, dict[str, Any]] = {
    "line": {"strokeWidth": 2.2, "strokeJoin": "round"},
    "dashed": {"strokeWidth": 2.2, "strokeDash": [5, 4]},
    "thin": {"strokeWidth": 1},
    "thin dashed": {"strokeWidth": 1, "strokeDash": [5, 4]},
    "lead": {"strokeWidth": 1.4, "strokeDash": [3, 3]},
    "interval": {"strokeWidth": 2},
    "band": {},
    "zero": {**_QUIET, "strokeWidth": 1.2},
    "untouched": {**_QUIET, "strokeDash": [6, 4]},
    "chance": {**_QUIET, "strokeDash": [1.5, 4]},
    "falls": {**_QUIET, "color": "var(--bad)"},
    "start": {"stroke": "var(--soft)", "strokeWidth": 1.6, "fill": "var(--paper)", "size": 50},
    "ring": {"color": "var(--ink)", "strokeWidth": 1.6, "size": 260, "filled": False},
    "mean": {"stroke": "var(--paper)", "strokeWidth": 1.5, "size": 196, "filled": True},
    "dot": {"size": 27, "filled": True},
    "point": {"size": 70, "filled": True},
    "label": {"color": "var(--ink)", "fontSize": FONT, "fontWeight": 600, "limit": 200},
    "quiet": {"color": "var(--soft)", "fontSize": FONT, "align": "left"},
    "more": {"fontSize": FONT, "dx": 11},
    "less": {"fontSize": FONT, "dx": -11},
}
"""Properties of the kinds of marks."""


@dataclass(frozen=True)
class Chart:
    """A chart in every language.

    draw: makes it; label: says what it shows; names: of its legend; panels: how many; left: room for its y axis.
    """

    draw: Callable[[Word], alt.LayerChart | alt.FacetChart]
    label: Message
    names: tuple[str, ...] = ()
    panels: int = 1
    left: int = AXIS

    def spec(self, word: Word) -> dict[str, Any]:
        """Return the Vega-Lite specification in one language; it has no width yet."""
        return {**self.draw(word).to_dict(validate=False), "description": word(self.label).replace("`", "")}

    @property
    def name_width(self) -> int:
        """Width of a column of the legend: full-width characters are one em, others 0.6."""
        widest = max((sum(1.0 if ord(c) >= 0x1100 else 0.6 for c in name) for name in self.names), default=0.0)
        return min(LONGEST, round(FONT * widest)) + 42

    def payload(self, words: Mapping[str, Word]) -> dict[str, Any]:
        """Return what the page's script needs. Equal rows stand there once, field by field, for there may be many."""
        specs = {language: self.spec(word) for language, word in words.items()}
        rows = [_packed(spec.pop("data")["values"]) for spec in specs.values()]
        different = [each for i, each in enumerate(rows) if each not in rows[:i]]
        order = {language: different.index(each) for language, each in zip(specs, rows, strict=True)}
        room = {"sides": self.left + EDGE, "gap": GAP, "name": self.name_width, "columns": columns_of(self.panels)}
        return {"specs": specs, "rows": different, "order": order, "room": room}

    def svg(self, word: Word) -> Markup:
        """Draw it without a browser, as wide as on a tablet or on paper."""
        import vl_convert

        spec = self.spec(word)
        legend = {**THEME["legend"], "columns": max(1, STATIC // self.name_width)}
        spec["config"] = {**THEME, "legend": legend, "aria": False}
        one, columns = spec.get("spec", spec), min(columns_of(self.panels), 2)
        spec |= {"columns": columns} if "facet" in spec else {}
        one["width"] = (STATIC - self.left - EDGE - GAP * (columns - 1)) // columns
        one["layer"] = [layer for layer in one["layer"] if not layer.get("name", "").startswith("only_")]
        return Markup(vl_convert.vegalite_to_svg(spec))


def columns_of(panels: int) -> int:
    """Return the columns of so many panels on a wide page: they fill it, and four are two rows of two."""
    return panels if panels <= 2 else 2 if panels == 4 else 3


def _packed(rows: Rows) -> dict[str, Any]:
    fields = list(dict.fromkeys(field for row in rows for field in row))
    return {"fields": fields, "rows": [[_short(row.get(field)) for field in fields] for row in rows]}


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def span(values: Iterable[float], *more: float) -> dict[str, Any]:
    """Return a scale that holds all values, from one round number to another."""
    known = [*values, *more]
    return {"domain": [min(known), max(known)], "nice": True, "zero": False}


class Layers:
    """Layers over one table of rows. A layer draws the rows of one kind, in the colours and shapes of their names."""

    def __init__(self, word: Word, field: str, marks: Mapping[str, Mark], *, legend: bool = True) -> None:
        """field: of the names; legend: whether it is there, and a click in it shows the chosen names alone."""
        import altair as alt

        self.alt: Any = alt
        self.word = word
        self.layers: list[alt.Chart] = []
        shown: dict[str, Any] = {"sort": None, "title": None, **({} if legend else {"legend": None})}
        colours, shapes = [m.colour for m in marks.values()], [m.shape for m in marks.values()]
        self.colour = alt.Color(f"{field}:N", scale=alt.Scale(domain=[*marks], range=colours), **shown)
        self.shape = alt.Shape(f"{field}:N", scale=alt.Scale(domain=[*marks], range=shapes), **shown)
        chosen = alt.selection_point(name="chosen", fields=[field], bind="legend", toggle="true")
        self.chosen = chosen if legend else None

    def add(self, kind: str, mark: str, look: str, name: str = "", *, full: float = 1.0, **encoding: Any) -> None:
        """Add a layer. look: one of LOOKS; full: its opacity where it is not a shadow."""
        opacity: Any = self.alt.value(full)
        if self.chosen is not None:
            opacity = self.alt.when(self.chosen).then(opacity).otherwise(self.alt.value(0.1 * full))
        shape = {"shape": self.shape} if mark == "point" else {}
        self.plain(kind, mark, look, name, color=self.colour, opacity=opacity, **shape, **encoding)

    def plain(self, kind: str, mark: str, look: str, name: str = "", **encoding: Any) -> None:
        """Add a layer in the page's own colours. name: `only_...` is left to the page's script."""
        chart = self.alt.Chart(**({"name": name} if name else {}))
        chart = chart.transform_filter(self.alt.FieldEqualPredicate(field="kind", equal=kind))
        self.layers.append(getattr(chart, f"mark_{mark}")(**LOOKS[look]).encode(**encoding))

    def x(self, field: str, title: str = "", **more: Any) -> Any:
        """Return a quantitative x. title: a key of the catalogue; more: of its axis, and `scale`."""
        return self.alt.X(f"{field}:Q", **self._axis(title, **more))

    def y(self, field: str, title: str = "", **more: Any) -> Any:
        """Return a quantitative y."""
        return self.alt.Y(f"{field}:Q", **self._axis(title, **more))

    def _axis(self, title: str, scale: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        axis = self.alt.Axis(**{"tickCount": 5, "labelOverlap": True, **more})
        return {"title": self.word(say(title)) if title else None, "scale": self.alt.Scale(**scale), "axis": axis}

    def tips(self, **titles: str) -> list[alt.Tooltip]:
        """Return a tooltip: field -> key of its title. What a run says is a value in it, never a title."""
        return [self.alt.Tooltip(f"{field}:N", title=self.word(say(title))) for field, title in titles.items()]

    def whole(self, rows: Rows, height: float) -> alt.LayerChart:
        """Return the layers as one chart."""
        if self.chosen is not None:
            self.layers[0] = self.layers[0].add_params(self.chosen)
        return self.alt.layer(*self.layers, data=self.alt.Data(values=rows)).properties(height=height)

    def panels(self, rows: Rows, panels: int) -> alt.FacetChart:
        """Return the layers as one panel for each value of the field `panel`, in its order; all have the same axes.

        The order is that of the rows: of a list of names Vega-Lite makes an expression, in which a name may be code.
        """
        columns = columns_of(panels)
        facet = self.alt.Facet("panel:N", sort=None, title=None)
        whole = self.whole(rows, 300 if columns == 1 else 220).facet(facet, columns=columns)
        whole = whole.properties(bounds="flush", spacing=self.alt.RowColnumber(row=74, column=GAP))
        return whole.resolve_axis(x="independent")
