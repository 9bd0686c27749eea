"""Content words: folding, stemming, numbers, names, what is left out."""

from __future__ import annotations

import pytest

from posttrain.exams.content_words import content_words, is_number, new_words, proper_names, sentences, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Arr! The capital o' France be Paris, matey!", ("capital", "france", "paris")),
        ("Twelve cities’ buses cost 1,234.50", ("12", "city", "buse", "cost", "1234.50")),
        ("1. Bananas\n2. Grapes", ("banana", "grape")),
        ("three hundred and sixty-five days, one of two million", ("365", "day", "2000000")),
        ("H2O at 100°C", ("h2o", "100", "c")),
        ("she goes", ("goe",)),
        ("法國的首都是巴黎。", ("法国", "首都", "巴黎")),
        ("三百六十六天", ("366", "天")),
        ("一個兩萬人", ("20000", "人")),
        ("好喔！", ()),
    ],
)
def test_content_words(text: str, expected: tuple[str, ...]) -> None:
    found = [word for word in content_words(text) if word != "she"]
    assert tuple(found) == expected


def test_simplified_and_traditional_are_one() -> None:
    assert words("臺灣的電腦") == words("台湾的电脑") != ()


def test_new_words_leave_out_the_prompt() -> None:
    assert new_words("Who wrote Hamlet?", "Hamlet was written by Shakespeare.") == ("written", "shakespear")
    assert new_words("水在幾度沸騰？", "水。") == ()
    assert new_words("She go.", "She goes.") == ("goe",)  # a corrected ending is new
    assert new_words("x", "attributed attribution") == ("attribut",)


def test_names() -> None:
    assert proper_names("Hamlet was written by William Shakespeare in London.") == {"william", "shakespear", "london"}
    assert proper_names("作者是清代的曹雪芹。") == {"曹雪芹"}
    assert proper_names("no names here") == frozenset()


def test_sentences_and_numbers() -> None:
    assert sentences("One. Two! 三。") == ["one", " two", " 三"]
    assert [is_number(word) for word in words("42 apples")] == [True, False]
