"""Pictures of causal traces: what they show, in both languages, with any names of tokens."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from posttrain.editing.places import KINDS
from posttrain.editing.trace_file import FactTrace, Trace
from posttrain.editing.trace_means import advise, averages, mean_of, roles_of
from posttrain.reports import trace_charts as charts

TOKENS = ("What", "of", "玉 1/2", "玉 2/2", "of", "<|end|>", "'] + alert(1) + ['")


def traced(layers: int = 3, facts: int = 2) -> Trace:
    rows = tuple(tuple(round(0.01 * t * layer - 0.02, 6) for layer in range(layers)) for t in range(len(TOKENS)))
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
    assert 'Probability of "Paris": 0.900, with noise on the subject 0.100' in told
    assert "After the model's own words: It is" in told
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


def test_no_colour_is_zero() -> None:
    svg = charts.averages_svg(traced(layers=1), "en")
    assert svg.count('fill="rgb(255, 255, 255)"') + svg.count('fill="#ffffff"') + svg.count('fill="white"') > 0


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
