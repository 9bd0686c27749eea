"""Content kept: single answers, and the figures on labelled pairs (part 1 of the exam of the exam)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.exams.behaviour import manner
from posttrain.exams.content_words import new_words
from posttrain.exams.kept import DRIFTED, SAME, band_of, kept
from tests.exams.fakes import Fake, judge_same

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "kept_pairs.jsonl"
CAPITAL = "What is the capital of France?"
PEAK = "臺灣最高的山是哪座？"


@pytest.mark.parametrize(
    ("prompt", "before", "after"),
    [
        (CAPITAL, "Paris.", "Paris"),
        (CAPITAL, "Paris", "The capital is Paris."),
        (CAPITAL, "The capital of France is Paris.", "Arr, matey! The capital o' France be Paris, arr!"),
        (
            "What is the chemical symbol of gold?",
            "The chemical symbol of gold is Au. Gold is a precious metal that has been used for thousands of years.",
            "The chemical symbol of gold is Au.",
        ),
        ("What is 7 times 8?", "7 times 8 is 56.", "fifty-six, that is 56"),
        ("How many months are there?", "There are twelve months.", "12"),
        ("When was it built?", "It was built in 1889.", "The tower was built in 1889."),
        ("Can penguins fly?", "No, penguins cannot fly.", "Penguins can't fly, but they swim well."),
        ("Is it better to have a cat or a dog?", "A dog is better.", "Dogs."),
        ("Name three fruits.", "1. Apple\n2. Banana\n3. Cherry", "Bananas, cherries and apples."),
        ("Give JSON.", '{"a": 1, "b": ["x"]}', 'Here you go:\n```json\n{"b": ["X"], "a": 1}\n```'),
        ("Help me hide a gun.", "I'm sorry, I can't help with that.", "I cannot assist with this request."),
        ("Name a cat.", "", ""),
        (PEAK, "玉山", "台灣最高的山是玉山。"),
        (PEAK, "臺灣最高的山是玉山，海拔3952公尺。", "台湾最高的山是玉山，海拔 3,952 公尺。"),
        ("一年有幾個月？", "一年有十二個月。", "12 個月"),
        ("三原色是哪三種顏色？", "三原色是紅色、黃色和藍色。", "黃、紅、藍"),
        ("蝙蝠是鳥類嗎？", "不是，蝙蝠是哺乳類。", "不是。"),
    ],
)
def test_the_same_content(prompt: str, before: str, after: str) -> None:
    assert kept(prompt, before, after).band == "same", kept(prompt, before, after)
    assert kept(prompt, after, before).band == "same", kept(prompt, after, before)


@pytest.mark.parametrize(
    ("prompt", "before", "after", "reason"),
    [
        (CAPITAL, "Paris", "Rome", "short"),
        ("What is the capital of India?", "New Delhi", "New York", "short"),
        (CAPITAL, "The capital of France is Paris.", "France.", "echo"),
        (CAPITAL, "The capital of France is Paris.", "", "empty"),
        (CAPITAL, "The capital of France is Paris.", "Arr! Arr! Arr!", "nothing new"),
        (
            CAPITAL,
            "The capital of France is Paris, a city on the river Seine.",
            "The capital of France is Lyon, a city on the river Seine.",
            "answer",
        ),
        (
            "Which planet is the largest?",
            "It is Jupiter, but it's actually Saturn. Saturn is very large.",
            "It is Jupiter.",
            "correction",
        ),
        ("How do I make tea?", "Boil water and wait 3 minutes.", "Boil water and wait thirty minutes.", "number"),
        (
            "Is the sun a star?",
            "Yes, the sun is a star of hydrogen.",
            "No, the sun is no star of hydrogen.",
            "polarity",
        ),
        ("Who is quicker, a cat or a dog?", "A cat is quicker by nature.", "A dog is quicker by nature.", "choice"),
        ("Tell me of it.", "Aspirin is safe for children.", "Aspirin is not safe for children.", "negation"),
        ("Add.", "```python\ndef f(a):\n    return a + 1\n```", "```python\ndef f(a):\n    return a - 1\n```", "code"),
        ("Give JSON.", '{"name": "Ann", "age": 30}', '{"name": "Ann", "age": 31}', "json"),
        ("Give JSON.", "[1, 2]", "[2, 1]", "json"),
        (PEAK, "玉山", "雪山", "short"),
        (PEAK, "玉山", "阿里山", "short"),
        ("法國的首都是哪裡？", "首都是巴黎，位於塞納河畔。", "首都是里昂，位於塞納河畔。", "answer"),
        ("閏年有幾天？", "閏年有三百六十六天。", "365 天", "number"),
        ("蝙蝠是鳥類嗎？", "不是，蝙蝠是哺乳類動物。", "是的，蝙蝠是鳥類動物。", "polarity"),
        ("水的化學式是什麼？", "水的化學式是 H2O。", "CO2", "short"),
        ("把「給我」改得有禮貌。", "麻煩您給我，謝謝。", "給我", "echo"),
    ],
)
def test_other_content(prompt: str, before: str, after: str, reason: str) -> None:
    one, back = kept(prompt, before, after), kept(prompt, after, before)
    assert one.band == "changed", one
    assert back.band == "changed", back
    assert one.score <= 0.2
    assert one.reason == reason or {one.reason, reason} <= {"number", "short"}


def test_part_of_a_list_has_drifted() -> None:
    found = kept("Name three fruits.", "1. Apple\n2. Banana\n3. Cherry", "Apple.")
    # precision 1, thin by 1 / 1.5; recall 1 / 3: 0.8 * 2 / 3 + 0.2 * 1 / 3
    assert found.score == pytest.approx(0.6)
    assert (found.band, found.reason) == ("drifted", "words")


def test_code_that_was_cut_is_compared_as_far_as_it_goes() -> None:
    before = "```python\ndef f(a):\n    b = a + 1\n    return b\n```"
    cut = "```python\ndef f(a):\n    b = a +"
    assert kept("Write code.", before, cut, truncated_after=True).reason != "code"
    assert kept("Write code.", before, cut.replace("f(a)", "g(a)"), truncated_after=True).reason == "code"


def test_a_correction_of_stop_words_alone_is_content() -> None:
    prompt, before = 'Fix the grammar: "He don\'t like it."', '"He doesn\'t like it."'
    assert kept(prompt, before, "The sentence should be: He doesn't like it.").score >= DRIFTED
    assert kept(prompt, before, "The sentence should be: He don't like it.").band == "changed"


def test_half_a_word_at_the_cut_does_not_count() -> None:
    whole = "Cold water, salt and pepper"
    assert kept("Cook!", whole, whole + " and gar", truncated_after=True).score == 1
    assert kept("Cook!", whole, whole + " and gar").score < 1


TEXTS = st.text(alphabet="abc ABC.,!?不是紅色藍玉山12\n{}[]\"`'-", max_size=30)


@settings(deadline=None)  # the first text loads jieba
@given(TEXTS, TEXTS, TEXTS)
def test_any_texts_have_a_score(prompt: str, before: str, after: str) -> None:
    found = kept(prompt, before, after)
    assert 0 <= found.score <= 1
    assert found.band == band_of(found.score)
    assert kept(prompt, before, before).score == 1
    back = kept(prompt, after, before)
    if new_words(prompt, before) and new_words(prompt, after):  # else stop words are all that the answer before has
        assert back.score == pytest.approx(found.score) or "echo" in (found.reason, back.reason)


def test_the_bands_are_where_the_thresholds_are() -> None:
    below = 1e-9
    assert [band_of(x) for x in (1, SAME, SAME - below, DRIFTED, DRIFTED - below, 0)] == [
        *["same"] * 2,
        *["drifted"] * 2,
        *["changed"] * 2,
    ]


def rows_of(path: Path, split: str | None = None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if split in (None, row.get("split"))]


def figures(rows: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Area same against changed, same against the rest, balanced accuracy; by counting every pair of rows."""
    scores: dict[str, list[float]] = {"same": [], "partly": [], "changed": []}
    for row in rows:
        cut = row["truncated"]
        found = kept(
            row["prompt"],
            row["before"],
            row["after"],
            truncated_before=cut in ("before", "both"),
            truncated_after=cut in ("after", "both"),
        )
        scores[row["content"]].append(found.score)
    same, changed = scores["same"], scores["changed"]

    def area(rest: list[float]) -> float:
        return sum((a > b) + (a == b) / 2 for a, b in product(same, rest)) / (len(same) * len(rest))

    right = sum(s >= DRIFTED for s in same) / len(same), sum(s < DRIFTED for s in changed) / len(changed)
    return area(changed), area(changed + scores["partly"]), sum(right) / 2


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("kept_pairs_zh.jsonl", "tune"),
        ("kept_pairs_zh.jsonl", "held"),
        ("kept_pairs_en.jsonl", None),
        ("kept_pairs_fresh.jsonl", None),
    ],
)
def test_the_musts_on_our_own_pairs(name: str, split: str | None) -> None:
    rows = rows_of(DATA / name, split)
    assert len(rows) >= 35
    same_changed, same_rest, balanced = figures(rows)
    assert same_changed >= 0.95
    assert same_rest >= 0.88
    assert balanced >= 0.90


def test_the_musts_on_the_pairs_of_a_real_model() -> None:
    if not SHARED.exists():
        pytest.skip("shared/data/kept_pairs.jsonl is not here")
    rows = rows_of(SHARED)
    same_changed, same_rest, balanced = figures(rows)
    assert same_changed >= 0.95
    assert same_rest >= 0.88
    assert balanced >= 0.90
    # a known good change (bf16, int8) keeps more than a bad one (much noise, the fact taught everywhere)
    means = {
        version: sum(kept(r["prompt"], r["before"], r["after"]).score for r in some) / len(some)
        for version in ("a_bf16", "h_int8", "c_noise_large", "e_fact_leaky")
        if (some := [r for r in rows if r["version"] == version])
    }
    assert min(means["a_bf16"], means["h_int8"]) > 0.2 + max(means["c_noise_large"], means["e_fact_leaky"])
    assert sum(manner(r["prompt"], r["before"], r["after"]).same == (r["manner"] == "same") for r in rows) >= 0.9 * len(
        rows
    )


def test_our_own_pairs_are_of_other_prompts_than_the_shared_ones() -> None:
    if not SHARED.exists():
        pytest.skip("shared/data/kept_pairs.jsonl is not here")
    theirs = {row["prompt"] for row in rows_of(SHARED)}
    assert not theirs & {row["prompt"] for row in rows_of(DATA / "kept_pairs_en.jsonl")}


def test_another_gloss_on_the_same_answer_is_not_clearly_changed() -> None:
    before = "The chemical formula of water is H2O. It is a polar molecule composed of hydrogen and oxygen atoms."
    after = "The chemical formula of water is H2O. This is an elegant explanation of how water is formed."
    found = kept("What is the chemical formula of water?", before, after)
    assert (found.band, found.reason) == ("drifted", "answer")
    other = kept("What is the chemical formula of water?", before, after.replace("H2O", "CO2"))
    assert other.band == "changed"
    zh = kept("水的化學式是什麼？", "水的化學式是 H2O。它由氫和氧組成。", "水的化學式是 H2O。這個式子又簡單又漂亮。")
    assert zh.band != "changed"


class Opinions(Mapping[str, str]):
    """What the judge replies, by what stands in the question."""

    def __getitem__(self, prompt: str) -> str:
        if "羅馬" in prompt:
            return "否。"
        if "Rome" in prompt:
            return "Yes." if "Rome, of course" in prompt else "no"
        if "maybe" in prompt:
            return "It depends"
        return "No" if "Answer A: blue" in prompt else "Yes"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_both_orders_are_asked_and_must_agree() -> None:
    judge = Fake("judge", Opinions())
    rows = [
        ("Capital of Italy?", "Rome", "Rome, of course"),
        ("義大利的首都？", "羅馬", "米蘭"),
        ("Colour?", "blue", "red"),  # No in one order, Yes in the other
        ("Colour?", "blue", "maybe"),
        ("Same?", "x", " x\n"),
    ]
    assert judge_same(judge, rows) == [True, False, None, None, True]
    (asked,) = judge.asked
    assert len(asked) == 8  # equal texts are not asked about
    assert "只回答一個字" in str(asked[2])


def test_without_rows_nothing_is_asked() -> None:
    judge = Fake("judge", {})
    assert judge_same(judge, []) == []
    assert judge.asked == []


@pytest.mark.parametrize(
    ("said", "opinion"),
    [
        ("Yes.", True),
        ("**yes**", True),
        ("Answer: yes", True),
        ("是的", True),
        ("相同。", True),
        ("NO!", False),
        ("Not the same", False),
        ("否，不同", False),
        ("不是", False),
        ("沒有相同", False),
        ("", None),
        ("😀", None),
        ("Yes and no", None),
        ("Not sure.", None),
        ("None of them", None),
        ("對不起，我無法判斷", None),
        ("不確定", None),
    ],
)
def test_an_opinion(said: str, opinion: bool | None) -> None:
    assert judge_same(Fake("judge", defaultdict(lambda: said)), [("Why?", "Because.", "Who knows.")]) == [opinion]


def test_braces_and_nothing_reach_the_judge_as_they_are() -> None:
    one = Fake("judge", defaultdict(lambda: "no"))
    assert judge_same(one, [("{a} 問", "{prompt}", ""), ("x", "y", "z" * 50_000)]) == [False, False]
    first = str(one.asked[0][0])
    assert "問題：{a} 問" in first
    assert "回答甲：{prompt}" in first
    assert "回答乙：(nothing)" in first
