"""Checkable instructions: each checker with an answer that keeps it and one that does not; strict and loose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError
from posttrain.exams.instructions import CHECKERS, is_followed, unsupported
from tests.exams.tasks.told import build, judged, scores_of, write_rows

IFEVAL = """
keywords:existence keywords:frequency keywords:forbidden_words keywords:letter_frequency language:response_language
length_constraints:number_sentences length_constraints:number_paragraphs length_constraints:number_words
length_constraints:nth_paragraph_first_word detectable_content:number_placeholders detectable_content:postscript
detectable_format:number_bullet_lists detectable_format:constrained_response
detectable_format:number_highlighted_sections detectable_format:multiple_sections detectable_format:json_format
detectable_format:title combination:two_responses combination:repeat_prompt startend:end_checker startend:quotation
change_case:capital_word_frequency change_case:english_capital change_case:english_lowercase punctuation:no_comma
"""
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["salt", "Gull"]}, "SALT and gulls", "salt only"),
    ("keywords:frequency", {"keyword": "wind", "frequency": 2, "relation": "at least"}, "Wind, wind", "wind"),
    ("keywords:frequency", {"keyword": "wind", "frequency": 2, "relation": "less than"}, "wind", "wind wind"),
    ("keywords:forbidden_words", {"forbidden_words": ["light"]}, "a lightning bolt", "the Light."),
    ("keywords:forbidden_words", {"forbidden_words": ["細菌"]}, "要刷牙", "細菌很多"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Qq", "q"),
    ("language:response_language", {"language": "zh"}, "今天天氣很好", "The weather is fine"),
    ("language:response_language", {"language": "en"}, "The weather is fine", "今天天氣很好"),
    ("language:response_language", {"language": "ko"}, "안녕하세요", "こんにちは"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", "these are three"),
    ("length_constraints:number_words", {"num_words": 3}, "it's three words", "two words"),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        "Dr. A came. B!",
        "Red. Blue. Green.",
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2}, "先洗米。再煮飯！", "先洗米，再煮飯。"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n***\ntwo", "one\n***\n***\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "however"},
        "one\n\nHowever, two",
        "However\n\ntwo",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "但是"},
        "一\n\n但是二",
        "一\n\n二",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi.\nP. S. bye", "Hi. PS bye"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S. bye", "P.S. bye"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and * *"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section A\na\nSection B",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<rain>>\nfalls", "<<>>\nfalls"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi! Say hi."),
    ("startend:end_checker", {"end_phrase": "Bye now"}, 'ok bye NOW"', "bye now, then"),
    ("startend:quotation", {}, '"all of it"', 'not "all" of it'),
    ("startend:quotation", {}, "「全部」", "「全部」嗎"),
    ("change_case:english_capital", {}, "ALL IS FINE", "All IS FINE"),
    ("change_case:english_lowercase", {}, "all is fine", "All is fine"),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "ONE two",
        "ONE TWO",
    ),
    ("punctuation:no_comma", {}, "one two; three", "one, two"),
    ("chinese:script", {"script": "traditional"}, "台灣的里長", "台湾的里长"),
    ("chinese:script", {"script": "simplified"}, "台湾的里长", "臺灣"),
    ("chinese:number_characters", {"num_characters": 4, "relation": "less than"}, "三個字。", "這是五個字"),
    ("chinese:no_comma", {}, "雲白而輕。", "雲白，而輕"),
    ("chinese:full_width_punctuation", {}, "好，3.5 分。", "好,分類。"),
    ("chinese:start", {"start_phrase": "首先"}, "首先洗米", "洗米首先"),
]


@pytest.mark.parametrize(("name", "arguments", "kept", "broken"), CASES)
def test_each_checker_both_ways(name: str, arguments: dict[str, Any], kept: str, broken: str) -> None:
    assert is_followed(name, kept, arguments)
    assert not is_followed(name, broken, arguments)
    assert not is_followed(name, " ", arguments)


def test_every_id_of_ifeval_is_there_and_every_checker_tested() -> None:
    assert set(IFEVAL.split()) <= set(CHECKERS)
    assert {name for name, *_ in CASES} == set(CHECKERS)


def test_what_cannot_be_checked_is_named() -> None:
    assert unsupported("keywords:existence", {}) == "'keywords:existence' needs keywords in its kwargs"
    assert "not known" in str(unsupported("keywords:exist", {}))
    words = "length_constraints:number_words"
    assert unsupported(words, {"num_words": "x"}) == f"'num_words' of '{words}' must be a number, got 'x'"
    assert "'relation' of" in str(unsupported(words, {"num_words": 5, "relation": "about"}))
    assert unsupported(words, {"num_words": "5", "relation": "at least"}) is None
    assert "'fr'" in str(unsupported("language:response_language", {"language": "fr"}))
    assert unsupported("language:response_language", {"language": "zh-TW"}) is None


def test_strict_and_loose(tmp_path: Path) -> None:
    rows = [
        {"key": 1, "prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"letter": None}]},
        {
            "key": 2,
            "prompt": "b",
            "instruction_id_list": ["startend:end_checker", "keywords:existence"],
            "kwargs": [{"end_phrase": "bye"}, {"keywords": ["never"]}],
        },
    ]
    write_rows(tmp_path / "i.jsonl", rows)
    task = build("ifeval", tmp_path, path="i.jsonl")
    said = {"a": "Sure, here it is:\nno marks", "b": "so **bye**"}
    samples = judged(task, lambda prompt: said[prompt])
    scores = scores_of(task, samples)
    assert (scores["prompt_strict"], scores["prompt_loose"]) == (0.0, 0.5)
    assert scores["instruction_strict"] == 0.0
    assert scores["instruction_loose"] == pytest.approx(2 / 3)
    assert scores["instruction_strict/startend"] == 0.0


def test_unsupported_ones_are_an_error_or_counted(tmp_path: Path) -> None:
    rows = [
        {"key": 1, "prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {"key": 2, "prompt": "b", "instruction_id_list": ["made:up"], "kwargs": [{}]},
        {"key": 3, "prompt": "c", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []},
    ]
    write_rows(tmp_path / "i.jsonl", rows[:2])
    with pytest.raises(DataError, match=r"i\.jsonl:2: the instruction 'made:up' is not known; unsupported: skip"):
        build("ifeval", tmp_path, path="i.jsonl")
    write_rows(tmp_path / "twice.jsonl", [rows[0], rows[0]])
    with pytest.raises(DataError, match=r"twice\.jsonl:2: the key '1' stands twice"):
        build("ifeval", tmp_path, path="twice.jsonl")
    task = build("ifeval", tmp_path, path="i.jsonl", unsupported="skip")
    assert len(task.items) == 1
    assert "1 prompts left out" in task.notes[0]


def test_the_prompts_in_the_box(tmp_path: Path) -> None:
    task = build("ifeval", tmp_path)
    assert len(task.items) == 40
    assert len({item.question for item in task.items}) == 40
    used = {name for item in task.items for name in item.doc["ids"]}
    assert len(used) >= 25
    # nothing is kept by saying nothing, and no prompt is kept by every answer
    assert scores_of(task, judged(task, ""))["instruction_loose"] == 0.0
    assert scores_of(task, judged(task, "no, 不要，bad light wind 牙齒"))["prompt_strict"] < 0.4
