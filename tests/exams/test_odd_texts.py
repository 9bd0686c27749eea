"""Texts that no careful person writes, and broken models do: every judge of an answer reads them and says something."""

import pytest

from posttrain.exams.behaviour import manner
from posttrain.exams.kept import kept
from posttrain.exams.matching import json_values, matches
from posttrain.exams.mentions import names
from posttrain.exams.refusals import is_refusal

CAPITAL, SAID, CHINESE = "What is the capital of Australia?", "The capital is Melbourne.", "澳洲的首都是墨爾本。"


def long(text: str) -> str:
    """100,000 characters of it."""
    return (text * (100_000 // len(text) + 1))[:100_000]


ODD = {
    "nothing": "",
    "blank": " \n\t ",
    "emoji": "😀🎉👍🏽👨‍👩‍👧",
    "right to left": "عاصمة أستراليا هي ملبورن. לא סידני",
    "mixed": "Canberra是澳洲的首都 столица Австралии メルボルン 수도",
    "table": "| a |\n|---|\n| 1 | 2 | 3 |\n||\n| |",
    "broken JSON": '{"a": ',
    "deep JSON": "[" * 5000 + "]" * 5000,
    "control characters": "\x00\x01\u200b\u202e",
    "lone surrogate": "\ud800",
    "one word": long("a"),
    "lines": long("\n"),
    "one character": long("金"),
    "commas": long("a,"),
    "quotes": long('"'),
    "JSON that never ends": long('[{"a": '),
    "a number that never ends": "three " + long("hundred and "),
    "a Chinese number that never ends": long("三百二十"),
    "refusing for ever": long("Canberra, and I can't help "),
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_every_judge_reads_it(text: str) -> None:
    assert not matches(text, ["Melbourne"], prompt=CAPITAL)
    assert not matches(text, ["墨爾本"], prompt="澳洲的首都是墨爾本還是雪梨？")
    assert not names(text, ["Melbourne"], prompt=CAPITAL)
    assert matches(SAID, ["Melbourne"], prompt=text, old=[text])
    assert is_refusal(text) == ("help" in text)
    assert 0 <= kept(CAPITAL, SAID, text).score < 0.4
    assert kept(text, text, text).score == 1
    assert kept(text, CHINESE, SAID).band == "changed"
    assert 0 <= manner(CAPITAL, SAID, text).score <= 1
    assert json_values(text) is None or text == ODD["deep JSON"]


@pytest.mark.parametrize("said", ["Melbourne ", "not Sydney, Melbourne. ", "1. Melbourne\n", "墨爾本，"])
def test_an_object_said_for_ever_is_said(said: str) -> None:
    assert names(long(said), ["Melbourne", "墨爾本"], prompt=CAPITAL)
    assert matches(long(said), ["Melbourne", "墨爾本"], prompt=CAPITAL)


def test_of_a_text_too_long_the_beginning_and_the_end_are_read() -> None:
    noise = long("word ")
    assert names(f"Melbourne. {noise}", ["Melbourne"])
    assert names(f"{noise} Melbourne.", ["Melbourne"])
    assert not names(f"{noise} Melbourne. {noise}", ["Melbourne"])
