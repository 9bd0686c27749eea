"""Pictures of a causal trace: a heat map for each fact, one of the averages by token role, and lines by layer.

They are drawn by Altair, as SVG and as PNG. White is no effect, orange is what brings the answer back, blue what takes
more of it away; all panels of a picture have one scale. Colours follow the square root of the effect, because most
effects are a small share of the largest. Blue is on the scale where there is such an effect, as strong as orange for
the same size.

A text with Chinese characters needs a font that has them: an SVG takes the font of whoever opens it, a PNG the fonts of
this machine, so `draws_chinese` tells whether there is one. Such fonts are named for pictures with Chinese: otherwise,
each line with a Chinese character would take whatever font the machine happens to list first, with serifs or without.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from posttrain.editing.places import Kind
from posttrain.editing.trace_file import ROLES, Average, FactTrace, Trace
from posttrain.models.disk import safe_name, whole_file, write_whole
from posttrain.reports.texts import Message, Words, say, text

__all__ = ["DRAWN", "averages_svg", "draws_chinese", "fact_svg", "layers_svg", "png_of", "write_charts"]

DRAWN = 50
"""So many facts get a picture of their own."""
INK, SOFT, GRID, PAPER = "#171b1f", "#56606a", "#e4e8ec", "#ffffff"
COLD, WARM, HOT = (33, 102, 172), "#f08c3c", "#8c2d04"
"""What takes away; what brings back a quarter of the largest effect; the largest effect."""
LINES = {"state": "#7f7f7f", "mlp": "#d55e00", "attn": "#0072b2"}
SMALLEST = 0.01
"""Least end of the scale of effects, and the least effect below zero that is blue, so that rounding has no colour."""
SCALE = 2
"""Pixels of a PNG for each CSS pixel."""
FONT = 12
FONTS = (
    "Noto Sans CJK TC, Noto Sans TC, Source Han Sans TC, PingFang TC, Microsoft JhengHei, Noto Sans CJK SC, "
    "Noto Sans CJK JP, WenQuanYi Zen Hei, Droid Sans Fallback, sans-serif"
)
"""One family for a whole picture with Chinese: the first that is there draws Latin, too. It is three times as slow."""
LONGEST = 90
"""Characters of a title's line."""
CONFIG: dict[str, Any] = {
    "background": PAPER,
    "padding": 10,
    "view": {"stroke": GRID},
    "title": {"anchor": "start", "color": INK, "fontSize": 14, "fontWeight": 600, "subtitleColor": SOFT, "offset": 12},
    "axis": {
        "labelColor": INK, "titleColor": SOFT, "titleFontWeight": "normal", "labelFontSize": FONT,
        "titleFontSize": FONT, "ticks": False, "domain": False, "gridColor": GRID, "labelFlush": False,
    },
    "header": {"labelColor": INK, "labelFontSize": FONT, "labelFontWeight": 600, "title": None},
    "legend": {"labelColor": INK, "titleColor": SOFT, "titleFontWeight": "normal", "labelFontSize": 11},
}  # fmt: skip
Rows = list[dict[str, Any]]
Put = Callable[[Words], str]


def _speaker(language: str) -> Put:
    return lambda words: text(words, language).replace("`", "")


def _kind(kind: Kind, width: int) -> Message:
    """Return the title of a panel."""
    return say(f"trace.kind.{kind}" if kind == "state" or width > 1 else f"trace.kind.{kind}_one", width=width)


def fact_svg(trace: Trace, fact: FactTrace, language: str) -> str:
    """Return the heat map of a fact: its tokens down, the layers across, a panel for each kind."""
    put = _speaker(language)
    names = [f"{name}{' *' if noisy else ''}" for name, noisy in zip(fact.tokens, fact.noisy, strict=True)]
    panels = {put(_kind(kind, trace.window)): effects for kind, effects in fact.effects.items()}
    lines = [say("trace.says", reply=_short(fact.reply))]
    if fact.answer and fact.answer != fact.reply.strip():
        lines.append(say("trace.stated", answer=_short(fact.answer)))
    probabilities = {"clean": f"{fact.clean:.3f}", "corrupted": f"{fact.corrupted:.3f}"}
    if fact.opening.strip():
        lines.append(say("trace.fact_after", scored=fact.scored, opening=_short(fact.opening), **probabilities))
    else:
        whole = fact.scored == fact.reply.strip() or trace.settings.get("score") == "whole"
        lines.append(say("trace.fact_whole" if whole else "trace.fact", scored=fact.scored, **probabilities))
    lines.append(say("trace.noisy"))
    return _heat_map(panels, names, [_short(fact.prompt), *map(put, lines)], put)


def averages_svg(trace: Trace, language: str) -> str:
    """Return the heat map of the averages: token roles down, the layers across, a panel for each kind."""
    put = _speaker(language)
    roles = [role for role in ROLES if any(role in own for own in trace.averages.values())]
    panels = {
        put(_kind(kind, trace.window)): [_means(own.get(role), trace.layers) for role in roles]
        for kind, own in trace.averages.items()
    }
    title = say("trace.averages", n=str(len(trace.facts)), model=trace.model)
    effect = say("trace.total", clean=f"{trace.clean.mean:.3f}", corrupted=f"{trace.corrupted.mean:.3f}")
    return _heat_map(panels, [put(say(f"trace.role.{role}")) for role in roles], [put(title), put(effect)], put)


def _means(average: Average | None, layers: int) -> Sequence[float]:
    return average.mean if average is not None else (0.0,) * layers


def _short(words: str) -> str:
    flat = " ".join(words.split())
    return flat if len(flat) <= LONGEST else f"{flat[: LONGEST - 1]}…"


def _heat_map(
    panels: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str], title: Sequence[str], put: Put
) -> str:
    """Draw effects (rows, layers) of each panel; names: of the rows. Rows are told apart by numbers before their names,
    which are not shown: names may be equal, and a list of names in the specification would become code.
    """
    import altair as alt

    rows: Rows = [
        {"panel": f"{number}{panel}", "row": f"{at:05d}{names[at]}", "layer": layer, "effect": value}
        for number, (panel, effects) in enumerate(panels.items())
        for at, own in enumerate(effects)
        for layer, value in enumerate(own)
    ]
    layers = 1 + max(row["layer"] for row in rows)
    domain, colours, shown = _scale([row["effect"] for row in rows])
    scale = alt.Scale(type="sqrt", domain=domain, range=colours, interpolate="rgb", clamp=True, nice=False)
    step = 26 if layers <= 12 else 13
    bare = alt.Axis(title=None, labelExpr="slice(datum.label, 5)", labelLimit=220)
    x = alt.Axis(title=put(say("trace.layer")), labelAngle=0, labelOverlap=True, values=_ticks(layers))
    title_of_it = [put(say("trace.effect")), put(say("trace.root"))]
    legend = alt.Legend(title=title_of_it, format=".2f", gradientLength=110, values=shown)
    header = alt.Header(labelExpr="slice(datum.label, 1)")
    chart = (
        alt.Chart(alt.NamedData("rows"), width=step * layers, height=20 * len(names))
        .mark_rect(stroke=PAPER, strokeWidth=0.5)
        .encode(
            x=alt.X("layer:O", axis=x),
            y=alt.Y("row:N", axis=bare, sort="ascending"),
            color=alt.Color("effect:Q", scale=scale, legend=legend),
        )
        .facet(column=alt.Column("panel:N", header=header, sort="ascending"), spacing=14)
    )
    return _svg(chart, rows, title)


def _scale(effects: Sequence[float]) -> tuple[list[float], list[str], list[float]]:
    """Return the scale of some effects: its stops, their colours, and the numbers in its legend.

    >>> _scale([0.0, 0.64, -0.001])
    ([0.0, 0.16, 0.64], ['#ffffff', '#f08c3c', '#8c2d04'], [0.0, 0.04, 0.16, 0.64])
    >>> _scale([0.64, -0.16])
    ([-0.16, 0.0, 0.16, 0.64], ['rgb(144, 178, 214)', '#ffffff', '#f08c3c', '#8c2d04'], [-0.16, 0.0, 0.04, 0.16, 0.64])
    """
    low, high = min(effects), max(effects)
    end = max(SMALLEST, high, -low)
    domain, colours, shown = [0.0, end / 4, end], [PAPER, WARM, HOT], [0.0, end / 16, end / 4, end]
    if low > -SMALLEST:
        return domain, colours, shown
    strength = (-low / end) ** 0.5
    cold = ", ".join(f"{255 + strength * (part - 255):.0f}" for part in COLD)
    return [low, *domain], [f"rgb({cold})", *colours], [low, *shown]


def _ticks(layers: int) -> list[int]:
    every = 1 if layers <= 12 else 5
    return list(range(0, layers, every))


def layers_svg(trace: Trace, language: str) -> str:
    """Return the averages by layer with their intervals: at the subject's last token, and at the last token."""
    import altair as alt

    put = _speaker(language)
    rows: Rows = []
    for number, role in enumerate(("last_subject", "last")):
        for kind, own in trace.averages.items():
            if role in own:
                low, high = own[role].low or own[role].mean, own[role].high or own[role].mean
                named = {"panel": f"{number}{put(say(f'trace.role.{role}'))}", "kind": put(_kind(kind, trace.window))}
                each = enumerate(zip(own[role].mean, low, high, strict=True))
                rows += [{**named, "layer": at, "mean": m, "low": lo, "high": hi} for at, (m, lo, hi) in each]
    names = [put(_kind(kind, trace.window)) for kind in trace.averages]
    axis = alt.Axis(title=put(say("trace.layer")), values=_ticks(trace.layers), format="d", grid=False)
    x = alt.X("layer:Q", axis=axis, scale=alt.Scale(nice=False))
    colours = alt.Scale(domain=names, range=[LINES[kind] for kind in trace.averages])
    colour = alt.Color(
        "kind:N", scale=colours, legend=alt.Legend(title=None, orient="top", labelLimit=400, symbolOpacity=1)
    )
    base = alt.Chart(alt.NamedData("rows"), width=330, height=220)
    title = put(say("trace.effect"))
    chart = (
        alt.layer(
            base.mark_area(opacity=0.18).encode(x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=colour),
            base.mark_line(strokeWidth=2, point=trace.layers <= 12).encode(x=x, y=alt.Y("mean:Q"), color=colour),
        )
        .facet(column=alt.Column("panel:N", header=alt.Header(labelExpr="slice(datum.label, 1)"), sort="ascending"))
        .resolve_scale(y="shared")
    )
    return _svg(chart, rows, [put(say("trace.lines", n=str(len(trace.facts)), model=trace.model))])


def _svg(chart: Any, rows: Rows, title: Sequence[str]) -> str:
    """Draw a chart with its rows. They are put in last, because Altair copies its data at every step."""
    import vl_convert

    spec = chart.to_dict(validate=False)
    spec["title"] = {"text": title[0], "subtitle": list(title[1:])}
    plain = json.dumps([spec, rows], ensure_ascii=False).isascii()
    drawn = {**spec, "data": {"values": rows}, "config": {**CONFIG, "font": "sans-serif" if plain else FONTS}}
    return str(vl_convert.vegalite_to_svg(drawn))


def png_of(svg: str) -> bytes:
    """Return a picture as PNG."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(svg, scale=SCALE))


@cache
def draws_chinese() -> bool:
    """Return whether this machine has a font with Chinese characters: without one, all of them look alike."""
    word = '<text font-family="{}" y="16">{}</text>'
    box = f'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">{word}</svg>'
    one, other = (png_of(box.format(FONTS, character)) for character in "山川")
    return one != other


def write_charts(
    trace: Trace, folder: Path, *, language: str, done: Callable[[Path], None] = lambda path: None
) -> list[Path]:
    """Write all pictures and return their paths: `averages`, `layers`, and the first facts in `facts/`. done: called
    after each.
    """
    drawn = {"averages": partial(averages_svg, trace, language), "layers": partial(layers_svg, trace, language)}
    for number, fact in enumerate(trace.facts[:DRAWN], start=1):
        drawn[f"facts/{number:03d}-{safe_name(fact.name)[:60]}"] = partial(fact_svg, trace, fact, language)
    paths = []
    for name, draw in drawn.items():
        svg = draw()
        write_whole(folder / f"{name}.svg", svg)
        with whole_file(folder / f"{name}.png") as temporary:
            temporary.write_bytes(png_of(svg))
        paths += [folder / f"{name}.svg", folder / f"{name}.png"]
        done(paths[-1])
    return paths
