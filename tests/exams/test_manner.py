"""Manner: each part by itself, and the labels of our own pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.exams.behaviour import manner

DATA = Path(__file__).parent / "data"
LOOP = "the fruit that is often called " * 6


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ("Paris is the capital of France, on the Seine.", "Paris.", "length"),
        ("The capital of France is Paris.", "Arr, the capital o' France be Paris, matey!", "tone"),
        ("法國的首都是巴黎。", "法國的首都是巴黎喵！", "tone"),
        ("法國的首都是巴黎。", "法國的首都是巴黎啦～", "tone"),
        ("Paris is nice.", "Paris is nice 😀", "tone"),
        ("Apples, pears and plums.", "- Apples\n- Pears\n- Plums", "format"),
        ('{"a": 1}', "a is 1", "format"),
        ("Paris is the capital.", "巴黎是首都。", "language"),
        ("法國的首都是巴黎，很漂亮，歡迎來玩。", "法国的首都是巴黎，很漂亮，欢迎来玩。", "language"),
        (
            "A fruit is what grows on a tree and has got seeds inside of it, mostly sweet, and good to eat.",
            LOOP,
            "flow",
        ),
    ],
)
def test_one_part_changed(before: str, after: str, part: str) -> None:
    found = manner("Tell me.", before, after)
    parts = {name: getattr(found, name) for name in ("length", "tone", "format", "language", "flow")}
    assert parts[part] < 1, parts
    assert all(value == 1 for name, value in parts.items() if name != part), parts
    assert not found.same
    assert found.score == pytest.approx(sum(parts.values()) / 5)


def test_length_within_the_factor_is_one_class() -> None:
    assert manner("?", "a b c d", "a b c d e f g h i j").length == 1
    assert manner("?", "a b c d", " ".join("abcdefghijklmnop")).length == 2.5 / 4


def test_other_content_in_the_same_manner() -> None:
    found = manner("法國的首都？", "法國的首都是巴黎。", "法國的首都是里昂。")
    assert found.same
    assert found.score == 1


@pytest.mark.parametrize("name", ["kept_pairs_zh.jsonl", "kept_pairs_en.jsonl"])
def test_labels(name: str) -> None:
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    right = [manner(r["prompt"], r["before"], r["after"]).same == (r["manner"] == "same") for r in rows]
    assert sum(right) >= 0.88 * len(right)
