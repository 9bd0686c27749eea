"""Length, formatting, language and script of answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.exams.behaviour import behaviour, formatting, language_of, length, manner, script_of


@pytest.mark.parametrize(
    ("text", "words"),
    [("one two", 2), ("it's well-known", 2), ("今天天氣好", 5), ("用 Python 3 寫", 4), ("", 0), ("。！", 0)],
)
def test_length(text: str, words: int) -> None:
    assert length(text) == words


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("plain text", set()),
        ("- a\n- b", {"bullets"}),
        ("1. a\n2. b", {"bullets"}),
        ("In 1999. It rained", set()),
        ("-5 degrees", set()),
        ("# Title\ntext", {"headings"}),
        ("| a | b |\n|---|---|\n| 1 | 2 |", {"table"}),
        ("a | b", set()),
        ("this is **bold**", {"bold"}),
        ("2 * 3 * 4", set()),
        ("run `ls`", {"code"}),
        ("好的😀", {"emoji"}),
    ],
)
def test_formatting(text: str, marks: set[str]) -> None:
    assert {name for name, used in formatting(text).items() if used} == marks


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("用 Python 寫一個程式", "zh"),
        ("The capital of France is 巴黎.", "en"),
        ("これは本です", "ja"),
        ("東京タワー", "ja"),
        ("안녕하세요 world", "ko"),
        ("Привет, как дела", "ru"),
        ("Le chat dort sur la table rouge", "other"),
        ("I don't know.", "en"),
        ("Shakespeare", "en"),
        ("42", "none"),
        ("", "none"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("台灣的里長在臺北", "traditional"),
        ("台湾的里长", "simplified"),
        ("台湾的里長", "mixed"),
        ("你好", "either"),
        ("皇后于飛干雲", "traditional"),
        ("hello", "none"),
    ],
)
def test_script(text: str, script: str) -> None:
    assert script_of(text) == script


def test_behaviour_of_an_answer() -> None:
    assert behaviour("誰？", "It is Bob.") == {"length": 3.0, "formatted": 0.0, "own_language": 0.0}
    assert behaviour("誰？", "42") == {"length": 1.0, "formatted": 0.0}


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
