"""The report's charts: Vega-Lite by Altair. The page's script draws them; vl-convert draws them without a browser.

A chart is made once, and its words are translated into each language afterwards. The colours of text and background are
variables of the page's CSS, so that a chart follows dark mode and print. Altair is imported when the first chart is
made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from posttrain.reports.marks import Mark
from posttrain.reports.texts import Message, Words, say

if TYPE_CHECKING:
    import altair as alt

__all__ = ["FONT", "SHARES", "THEME", "TITLED", "Chart", "Layers", "Rows", "Said", "Word", "nominal", "number", "span"]

Word = Callable[[Words], str]
"""A function that translates words into one language."""
Rows = list[dict[str, Any]]

STATIC = 720
"""Width of the picture for readers without JavaScript, in CSS pixels. The script uses the width of the page instead."""
LONGEST = 260
"""Largest width of a name in a legend, in CSS pixels; a longer name is cut, and the tooltip shows all of it."""
AXIS = 46
"""Width of the labels of a y axis, in CSS pixels: the same in all charts, so that the width of a panel is known before
it is drawn."""
TITLED = AXIS + 14
"""The same for an axis with a title."""
EDGE = 14
"""Space to the right of a chart, in CSS pixels, for marks and arrows at its edge."""
GAP = 24
"""Space between two panels, in CSS pixels."""
FONT = 13
"""Font size, in CSS pixels."""
SHARES = (0, 25, 50, 75, 100)
"""Ticks of an axis in per cent."""

THEME: dict[str, Any] = {
    "background": "transparent",
    "padding": {"left": 0, "right": 6, "top": 4, "bottom": 4},
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans TC', 'Noto Sans CJK TC', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)", "titleColor": "var(--soft)", "gridColor": "var(--grid)", "labelFontSize": 12,
        "titleFontSize": FONT, "titleFontWeight": "normal", "domain": False, "ticks": False, "labelPadding": 6,
    },
    "axisY": {"minExtent": AXIS - 6, "maxExtent": AXIS - 6},
    "header": {"labelColor": "var(--ink)", "labelFontSize": FONT, "labelFontWeight": 600, "labelAnchor": "start"},
    "legend": {
        "orient": "top", "labelColor": "var(--ink)", "labelFontSize": FONT, "labelLimit": LONGEST,
        "symbolOpacity": 1, "symbolSize": 130, "columnPadding": 18,
    },
}  # fmt: skip
"""The configuration that all charts share; the page holds it once."""

AT = {side: {"expr": f"datum.{side}"} for side in ("dx", "dy")}
"""How far a name stands from its mark; the page's script says it."""
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
    "label": {"color": "var(--ink)", "fontSize": FONT, "fontWeight": 600, **AT},
    "quiet": {"color": "var(--soft)", "fontSize": FONT, "align": "left"},
    "more": {"fontSize": FONT, "dx": 11},
    "less": {"fontSize": FONT, "dx": -11},
}
"""Look of a mark -> its Vega-Lite properties."""


class Said(str):
    """Words in a chart before they are translated; `_worded` replaces them by text."""

    def __new__(cls, words: Words) -> Said:
        made = super().__new__(cls, repr(words))
        made.words = words
        return made

    words: Words


@dataclass(frozen=True)
class Chart:
    """A chart for every language. drawn: its Vega-Lite specification, in which words are `Said`; label: what it shows;
    names: the names in its legend; panels: the number of panels; left: the width of its y axis, in CSS pixels.
    """

    drawn: Mapping[str, Any]
    label: Message
    names: tuple[str, ...] = ()
    panels: int = 1
    left: int = AXIS

    def spec(self, word: Word) -> dict[str, Any]:
        """Return the Vega-Lite specification in one language; it has no width yet."""
        spec: dict[str, Any] = _worded(self.drawn, word)
        return spec

    @property
    def name_width(self) -> int:
        """Return the width of a column of the legend, in CSS pixels: a full-width character is 1 em, others 0.6 em."""
        widest = max((sum(1.0 if ord(c) >= 0x1100 else 0.6 for c in name) for name in self.names), default=0.0)
        return min(LONGEST, round(FONT * widest)) + 42

    def payload(self, words: Mapping[str, Word]) -> dict[str, Any]:
        """Return the data for the page's script. There may be many rows. So rows that are equal in all languages are
        stored once, and the names of their fields are stored once.
        """
        specs = {language: self.spec(word) for language, word in words.items()}
        rows = [_packed(spec.pop("data")["values"]) for spec in specs.values()]
        different = [each for i, each in enumerate(rows) if each not in rows[:i]]
        order = {language: different.index(each) for language, each in zip(specs, rows, strict=True)}
        room = {"sides": self.left + EDGE, "gap": GAP, "name": self.name_width, "columns": columns_of(self.panels)}
        return {"specs": specs, "rows": different, "order": order, "room": room}

    def svg(self, word: Word) -> Markup:
        """Draw the chart without a browser, as wide as on a tablet or on paper."""
        spec = self.spec(word)
        legend = {**THEME["legend"], "columns": max(1, STATIC // self.name_width)}
        own = {"legend": legend, "aria": False, "font": "sans-serif"}  # a list of fonts takes 2.5 times as long
        spec["config"] = {**THEME, **own}
        one, columns = spec.get("spec", spec), min(columns_of(self.panels), 2)
        spec |= {"columns": columns} if "facet" in spec else {}
        one["width"] = (STATIC - self.left - EDGE - GAP * (columns - 1)) // columns
        one["layer"] = [layer for layer in one["layer"] if not layer.get("name", "").startswith("only_")]
        return Markup(_drawn(json.dumps(spec, ensure_ascii=False)))


@lru_cache(maxsize=64)
def _drawn(spec: str) -> str:
    """Return a specification as SVG: 0.1 s or more, and a report that is written again has most charts again."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(spec)
    return svg


def _worded(node: Any, word: Word) -> Any:
    """Return a specification with every `Said` in it replaced by text in one language."""
    if isinstance(node, Said):
        return word(node.words).replace("`", "")
    if isinstance(node, dict):
        return {key: _worded(value, word) for key, value in node.items()}
    return [_worded(value, word) for value in node] if isinstance(node, list | tuple) else node


def columns_of(panels: int) -> int:
    """Return the number of columns for this number of panels on a wide page: at most 3, and 2 for four panels."""
    return panels if panels <= 2 else 2 if panels == 4 else 3


def _packed(rows: Rows) -> dict[str, Any]:
    """Return rows as a list of fields and lists of values; numbers have six significant digits."""
    fields = list(dict.fromkeys(field for row in rows for field in row))

    def short(value: Any) -> Any:
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return {"fields": fields, "rows": [[short(row.get(field)) for field in fields] for row in rows]}


def span(values: Iterable[float], *more: float) -> dict[str, Any]:
    """Return a scale that covers all values and begins and ends at round numbers."""
    known = [*values, *more]
    return {"domain": [min(known), max(known)], "nice": True, "zero": False}


def number(field: str, **more: Any) -> dict[str, Any]:
    """Return a quantitative channel."""
    return {"field": field, "type": "quantitative", **more}


def nominal(field: str, **more: Any) -> dict[str, Any]:
    """Return a nominal channel in the order of the rows. The order is not a list of names: Vega-Lite turns such a list
    into code, in which a name could do harm.
    """
    return {"field": field, "type": "nominal", "sort": None} | more


class Layers:
    """Layers of a chart over one table of rows. A layer draws the rows of one kind (their field `kind`), each in the
    colour and shape of its name.
    """

    def __init__(self, field: str, marks: Mapping[str, Mark], *, legend: bool = True) -> None:
        """Begin a chart. field: the field that holds the name of a row; marks: name -> colour and shape. legend:
        whether to draw a legend, in which a click on a name shows only the chosen names."""
        import altair

        self.alt: Any = altair
        self.legend = legend
        self.names = tuple(marks) if legend else ()
        self.layers: list[alt.Chart] = []
        shown: dict[str, Any] = {"title": None, **({} if legend else {"legend": None})}
        own, names = marks.values(), [*marks]
        self.colour = nominal(field, scale={"domain": names, "range": [mark.colour for mark in own]}, **shown)
        self.shape = nominal(field, scale={"domain": names, "range": [mark.shape for mark in own]}, **shown)
        self.chosen = altair.selection_point(name="chosen", fields=[field], bind="legend", toggle="true")

    def add(self, kind: str, mark: str, look: str, only: str = "", *, full: float = 1.0, **channels: Any) -> None:
        """Add a layer in the colours of the names. kind: of the rows that it draws; mark: a mark of Vega-Lite; look: a
        key of LOOKS; full: its opacity, 0 to 1, when its name is not hidden by a choice in the legend.
        """
        opacity: dict[str, Any] = {"value": full}
        if self.legend:
            opacity = {"condition": {"param": "chosen", **opacity}, "value": 0.1 * full}
        shape = {"shape": self.shape} if mark == "point" else {}
        self.plain(kind, mark, look, only, color=self.colour, opacity=opacity, **shape, **channels)

    def plain(self, kind: str, mark: str, look: str, only: str = "", **channels: Any) -> None:
        """Add a layer in the page's own colours. only: a name for a layer that only the page's script draws, not
        `Chart.svg`.
        """
        named = {"name": f"only_{only}"} if only else {}
        transform = [{"filter": {"field": "kind", "equal": kind}}]
        drawn = {"type": mark, **LOOKS[look]}
        encoding = self.alt.FacetedEncoding(**channels)
        self.layers.append(self.alt.Chart(mark=drawn, encoding=encoding, transform=transform, **named))

    def number(self, field: str, title: str = "", *, scale: Mapping[str, Any], **axis: Any) -> dict[str, Any]:
        """Return an x or y channel with an axis. title: a key of the message catalogue."""
        shown = {"tickCount": 5, "labelOverlap": True, **axis}
        return number(field, title=Said(say(title)) if title else None, scale=scale, axis=shown)

    def tips(self, **titles: str) -> list[dict[str, Any]]:
        """Return a tooltip. titles: field -> key of its title. Texts from a run are values in it, never titles."""
        return [{"field": field, "type": "nominal", "title": Said(say(key))} for field, key in titles.items()]

    def whole(self, rows: Rows, label: Message, height: float, left: int = AXIS) -> Chart:
        """Return the layers as one chart."""
        return self._made(self._layered(height), rows, label, left=left)

    def panels(self, rows: Rows, label: Message) -> Chart:
        """Return the layers as one panel for each value of the field `panel`; all have the same axes."""
        order = {name: i for i, name in enumerate(dict.fromkeys(row["panel"] for row in rows))}
        columns = columns_of(len(order))
        facet = self.alt.Facet(**nominal("panel", title=None, sort={"field": "order", "op": "min"}))
        one = self._layered(300 if columns == 1 else 220)
        whole = one.facet(facet, columns=columns, bounds="flush", spacing={"row": 74, "column": GAP})
        ordered = [{**row, "order": order[row["panel"]]} for row in rows]
        return self._made(whole.resolve_axis(x="independent"), ordered, label, panels=len(order))

    def _layered(self, height: float) -> Any:
        chart = self.alt.layer(*self.layers, data=self.alt.NamedData("rows"), height=height)
        return chart.add_params(self.chosen) if self.legend else chart

    def _made(self, chart: Any, rows: Rows, label: Message, **more: int) -> Chart:
        """Return the chart with its rows. They are put in last, because Altair copies its data at every step."""
        drawn = {**chart.to_dict(validate=False), "description": Said(label), "data": {"values": rows}}
        return Chart(drawn, label, self.names, **more)
