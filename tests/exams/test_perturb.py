from __future__ import annotations

import difflib
import unicodedata

import pytest

from posttrain.exams.perturb import _KINDS, _VARIANT, perturb
from posttrain.exams.task import Perturbation

ENGLISH = "Which mountain in Taiwan is the highest, and how high is it?"
CHINESE = "臺灣最高的山是哪座？裡面住著一群人，為什麼在3,952公尺的峰頂？"


@pytest.mark.parametrize("kind", _KINDS)
def test_the_same_text_and_seed_give_the_same(kind: Perturbation) -> None:
    for text in (ENGLISH, CHINESE):
        assert perturb(text, kind, seed=3) == perturb(text, kind, seed=3)
        assert perturb("", kind) == ""


@pytest.mark.parametrize("kind", ["typos", "spaces"])
def test_seeds_draw_differently(kind: Perturbation) -> None:
    for text in (ENGLISH, CHINESE):
        assert len({perturb(text, kind, seed=seed) for seed in range(10)}) > 3


def test_english_typos_are_slips_of_one_letter_and_spare_short_words_and_numbers() -> None:
    for seed in range(50):
        typed = perturb(ENGLISH, "typos", seed=seed)
        pairs = list(zip(ENGLISH.split(), typed.split(), strict=True))
        wrong = [(word, other) for word, other in pairs if word != other]
        assert wrong
        for word, other in wrong:
            assert len(word.strip(",?")) >= 4
            assert word[0] == other[0]
            assert abs(len(word) - len(other)) <= 1
            assert difflib.SequenceMatcher(None, word, other).ratio() > 0.7
    assert perturb("7 + 12 = ?", "typos") == "7 + 12 = ?"


def test_about_one_english_word_of_five_is_misspelt() -> None:
    text = " ".join(["letters"] * 2000)
    changed = sum(word != "letters" for word in perturb(text, "typos").split())
    assert 320 < changed < 480


def test_chinese_typos_are_characters_for_characters() -> None:
    typed = perturb("他在家做的飯", "typos", seed=1)
    assert len(typed) == 6
    assert typed != "他在家做的飯"
    slips = {"他": "她", "在": "再", "做": "作", "的": "得"}
    assert all(b in (a, slips.get(a)) for a, b in zip("他在家做的飯", typed, strict=True))
    assert perturb("鯨魚", "typos") == "鯨魚"


def test_spaces_only_add_spaces() -> None:
    for text in (ENGLISH, CHINESE):
        for seed in range(20):
            spaced = perturb(text, "spaces", seed=seed)
            assert len(spaced) > len(text) or text == CHINESE
            assert spaced.replace(" ", "") == text.replace(" ", "")
    assert perturb("one two", "spaces", seed=0) != "one two"  # a single space is always caught
    assert perturb("word", "spaces") == "word"


def test_lower_case() -> None:
    assert perturb("The ROC in Taiwan", "lower") == "the roc in taiwan"
    assert perturb(CHINESE, "lower") == CHINESE


def test_width_is_undone_by_unicode_and_by_itself() -> None:
    wide = perturb("Route 66!", "width")
    assert wide == "Ｒｏｕｔｅ ６６！"
    assert unicodedata.normalize("NFKC", wide) == "Route 66!"
    assert perturb(CHINESE, "width") == CHINESE.translate(
        {ord("？"): "?", ord("，"): ",", ord(","): "，"} | {ord(c): chr(ord(c) + 0xFEE0) for c in "0123456789"}
    )
    assert perturb(perturb(ENGLISH, "width"), "width") == ENGLISH


def test_scripts() -> None:
    assert perturb("臺灣的軟體工程師", "simplified") == "台湾的软体工程师"
    assert perturb("台湾的软件工程师", "traditional") == "臺灣的軟體工程師"  # with Taiwan's words
    assert perturb(ENGLISH, "simplified") == perturb(ENGLISH, "traditional") == ENGLISH


def test_variants_go_both_ways() -> None:
    assert perturb("台灣的山峰裡，為了一群人", "variants") == "臺灣的山峯裏，爲了一羣人"
    assert perturb(perturb(CHINESE, "variants"), "variants") == CHINESE
    assert all(_VARIANT[_VARIANT[character]] == character for character in _VARIANT)
    assert all(len(pair) == 1 for pair in _VARIANT.values())
