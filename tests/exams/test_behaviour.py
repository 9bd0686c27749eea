"""Length, formatting, language and script of answers."""

from __future__ import annotations

import pytest

from posttrain.exams.behaviour import behaviour, formatting, language_of, length, script_of


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
