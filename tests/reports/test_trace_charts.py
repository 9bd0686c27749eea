"""Pictures of causal traces: what they show, in both languages, with any names of tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from posttrain.editing.places import KINDS
from posttrain.editing.trace_file import FactTrace, Trace
from posttrain.editing.trace_means import advise, averages, mean_of, roles_of
from posttrain.reports import trace_charts as charts

TOKENS = ("What", "of", "玉 1/2", "玉 2/2", "of", "<|end|>", "'] + alert(1) + ['")


def traced(layers: int = 3, facts: int = 2, effects: Sequence[float] = ()) -> Trace:
    """effects: of the layers at every token."""
    rows = tuple(tuple(round(0.01 * t * layer - 0.02, 6) for layer in range(layers)) for t in range(len(TOKENS)))
    rows = (tuple(effects),) * len(TOKENS) if effects else rows
    own = [
        FactTrace(
            name=f"fact/{n}", prompt="What of 玉 of?", subject="玉", form="chat", reply="It is Paris.", opening="It is",
            scored="Paris", tokens=TOKENS, roles=roles_of(0, range(2, 4), 6), noisy=(False, False, True, True) + (False,) * 3,
            clean=0.9, corrupted=0.1, effects=dict.fromkeys(KINDS, rows),
        )
        for n in range(facts)
    ]  # fmt: skip
    return Trace(
        model="pocket:chat", layers=layers, window=2, sigma=0.1, clean=mean_of([0.9]), corrupted=mean_of([0.1]),
        total_effect=mean_of([0.8]), averages=averages(own, KINDS), advice=advise(own, 2), facts=tuple(own),
    )  # fmt: skip


def words(svg: str) -> list[str]:
    return [unescape(text) for text in re.findall(r"<(?:text|tspan)[^>]*>([^<]+)<", svg)]


def test_a_fact_shows_its_tokens_in_their_order() -> None:
    trace = traced()
    svg = charts.fact_svg(trace, trace.facts[0], "en")
    told = words(svg)
    names = [f"{name} *" if noisy else name for name, noisy in zip(TOKENS, trace.facts[0].noisy, strict=True)]
    at = [told.index(name) for name in names if names.count(name) == 1]
    assert at == sorted(at)
    assert told.count("of") == 2, "equal names are two rows"
    assert "One layer's output" in told
    assert "Feed-forward parts of 2 layers" in told
    assert "The model says: It is Paris." in told
    assert 'Scored: "Paris" after "It is". Its probability: 0.900, with noise on the subject 0.100' in told
    assert not any("Stated answer" in line for line in told)
    cells = len(re.findall(r'aria-roledescription="rect mark"', svg)) or svg.count("<path aria-label")
    assert cells == 3 * len(TOKENS) * trace.layers


@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_both_languages(language: str) -> None:
    trace = traced()
    for svg in (charts.averages_svg(trace, language), charts.layers_svg(trace, language)):
        told = " ".join(words(svg))
        assert ("last subject token" in told) == (language == "en")
        assert ("主詞的最後一個詞元" in told) == (language != "en")
        assert "pocket:chat" in told
        assert "{" not in told


def test_a_role_that_no_fact_has_is_not_shown() -> None:
    assert "middle subject tokens" not in " ".join(words(charts.averages_svg(traced(), "en")))


def test_the_answer_is_told_in_full() -> None:
    trace = traced()
    one = trace.facts[0].model_copy(
        update={"answer": "Porto-Novo", "reply": "Porto-Novo.", "scored": "P", "opening": ""}
    )
    told = words(charts.fact_svg(trace, one, "en"))
    assert "The model says: Porto-Novo." in told
    assert "Stated answer: Porto-Novo" in told
    assert 'Scored: the beginning "P". Its probability: 0.900, with noise on the subject 0.100' in told
    whole = one.model_copy(update={"reply": "Porto-Novo", "scored": "Porto-Novo"})
    told = words(charts.fact_svg(trace, whole, "en"))
    assert 'Scored: "Porto-Novo". Its probability: 0.900, with noise on the subject 0.100' in told
    assert not any("Stated answer" in line for line in told), "it is what the model says"


def colours(effects: Sequence[float]) -> list[tuple[int, ...]]:
    """The colours of the cells of layers with these effects, of the first token."""
    made = traced(layers=len(effects), effects=effects)
    svg = charts.fact_svg(made, made.facts[0], "en")
    cells = re.findall(r'aria-label="layer: (\d+)[^"]*"[^>]*fill="([^"]+)"', svg)
    found = {int(layer): tuple(map(int, re.findall(r"\d+", fill))) for layer, fill in cells}
    assert 'aria-label="layer: 0' in svg
    return [found[layer] for layer in range(len(effects))]


def test_small_effects_are_seen() -> None:
    white, small, tenth, most = colours([0.0, 0.03, 0.1, 0.98])
    assert white == (255, 255, 255)
    blues = [255, small[2], tenth[2], most[2]]
    assert all(more - less >= 30 for more, less in pairwise(blues)), blues
    assert small[0] > 235, "orange, not grey"


def test_below_zero_is_blue_where_it_occurs() -> None:
    _, rounding, _ = colours([0.5, -0.001, 0.0])
    assert rounding == (255, 255, 255), "what is as good as zero has no colour"
    orange, blue, weak, zero = colours([0.5, -0.5, -0.02, 0.0])
    assert orange[0] > orange[2]
    assert blue == charts.COLD
    assert (weak[2] > weak[0] + 20, weak[0] > 150, zero) == (True, True, (255, 255, 255))
    assert charts._scale([0.5, 0.0])[0][0] == 0, "the legend begins at zero"
    assert charts._scale([0.5, -0.02])[2] == [-0.02, 0.0, 0.03125, 0.125, 0.5]
    assert charts._scale([0.0])[0] == [0.0, charts.SMALLEST / 4, charts.SMALLEST]


def test_a_picture_has_one_family() -> None:
    trace = traced()
    families = set(re.findall(r'font-family="([^"]+)"', charts.fact_svg(trace, trace.facts[0], "en")))
    assert families == {charts.FONTS}
    assert charts.FONTS.endswith(", sans-serif")
    assert "serif" not in charts.FONTS.replace("sans-serif", "").casefold()
    assert set(re.findall(r'font-family="([^"]+)"', charts.averages_svg(trace, "en"))) == {"sans-serif"}


def test_all_pictures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "DRAWN", 2)
    done: list[Path] = []
    paths = charts.write_charts(traced(facts=3), tmp_path, language="en", done=done.append)
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "averages.svg", "averages.png", "layers.svg", "layers.png",
        "facts/001-fact-0.svg", "facts/001-fact-0.png", "facts/002-fact-1.svg", "facts/002-fact-1.png",
    ]  # fmt: skip
    assert done == paths[1::2]
    for path in paths:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG" if path.suffix == ".png" else b"<svg")
    assert charts.draws_chinese() in (True, False)
