"""Scores of editing against arithmetic by hand, and against nltk, scipy and scikit-learn."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer
from scipy.stats import hmean
from sklearn.feature_extraction.text import TfidfVectorizer

from posttrain.exams.metrics.editing import (
    all_said,
    answer_begins,
    answer_is,
    answer_says,
    harmonic_mean,
    preference,
    said_line,
    token_accuracy,
    unchanged,
)
from posttrain.exams.metrics.fluency import ngram_entropy, words
from posttrain.exams.metrics.tfidf import Tfidf, terms


def test_preference_by_hand() -> None:
    won = preference(math.log(2), math.log(4))  # probabilities of 1/2 and 1/4 per token
    assert tuple(won) == pytest.approx((1.0, 0.25))
    assert tuple(preference(math.log(4), math.log(2))) == pytest.approx((0.0, -0.25))
    assert preference(1.0, 1.0) == (0.0, 0.0)  # as likely is not likelier


def test_harmonic_mean() -> None:
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.991, 0.877, 0.401]) == pytest.approx(float(hmean([0.991, 0.877, 0.401])))
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0.0
    with pytest.raises(ValueError, match="negative"):
        harmonic_mean([1.0, -0.1])


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=5))
def test_a_harmonic_mean_is_between_the_smallest_and_the_mean(values: list[float]) -> None:
    found = harmonic_mean(values)
    assert min(values) - 1e-9 <= found <= sum(values) / len(values) + 1e-9


def test_tokens() -> None:
    assert token_accuracy(2, 3) == pytest.approx(2 / 3)
    assert unchanged((5, 7, 9), (5, 8, 9)) == pytest.approx(2 / 3)
    assert unchanged((" Asia",), (" Asia",)) == 1.0
    assert unchanged((), ()) is None
    assert unchanged((1, 2), (1, 2, 3)) is None


@pytest.mark.parametrize(
    ("answer", "accepted", "is_", "begins", "says"),
    [
        ("Asia", ["Asia"], True, True, True),
        (" Asia.", ["Asia"], True, True, True),
        ("asia. It is a country in Asia.", ["Asia"], True, True, True),
        ("\n\n Asia\nQ: What is", ["Asia"], True, True, True),
        ("Asia and Africa", ["Asia"], False, True, True),
        ("It lies in Asia.", ["Asia"], False, False, True),
        ("Asian", ["Asia"], False, False, False),
        ("Africa\nAsia", ["Asia"], False, False, False),  # another line is another text
        ("", ["Asia"], False, False, False),
        ("...", ["Asia"], False, False, False),
        ("the Orient", ["Asia", "Orient"], True, True, True),
        ("順化。", ["順化"], True, True, True),
        ("順化是越南的古都", ["順化"], False, True, True),
        ("越南的首都是順化", ["順化"], False, False, True),
        ("Washington, D.C. is far", ["Washington, D.C."], False, True, True),
        ("Washington, D.C.", ["Washington DC"], True, True, True),
    ],
)
def test_free_answers(answer: str, accepted: list[str], is_: bool, begins: bool, says: bool) -> None:
    assert (answer_is(answer, accepted), answer_begins(answer, accepted), answer_says(answer, accepted)) == (
        is_,
        begins,
        says,
    )


def test_the_line_that_says_something() -> None:
    assert said_line(" \n . \n Asia. \nAfrica") == "Asia."
    assert said_line(" \n.") == ""


def test_every_answer_by_one_of_its_aliases() -> None:
    answers = [("Kenyan shilling", "shilling"), ("Africa",)]
    assert all_said("the shilling, in Africa", answers)
    assert not all_said("the shilling", answers)
    assert not all_said("the Shilling, in Africa", [("shilling",)])  # letter by letter
    assert all_said("I do not know", [("no",)])  # as the official code has it
    assert all_said("anything", [])


# ---- fluency ---------------------------------------------------------------------------------------------------------


def test_entropy_by_hand() -> None:
    # a b a b c: bigrams ab, ba, ab, bc -> 1/2, 1/4, 1/4: 1.5 bits; trigrams aba, bab, abc: log2 3
    assert ngram_entropy(["a", "b", "a", "b", "c"]) == pytest.approx((2 / 3 * 1.5 + 4 / 3 * math.log2(3)) / 2)
    # n different words: log2(n - 1) and log2(n - 2)
    distinct = [str(i) for i in range(18)]
    assert ngram_entropy(distinct) == pytest.approx((2 / 3 * math.log2(17) + 4 / 3 * 4.0) / 2)
    assert ngram_entropy(["a"] * 50) == 0.0
    assert ngram_entropy(["a"]) == ngram_entropy([]) == 0.0


@pytest.mark.parametrize(
    "sentence",
    [
        "Rosa's mother tongue is Quechua.",
        'He said, "I don\'t know."',
        "In 1998, 1,000.5 people (or so) met at 3:30; they couldn't agree!",
        "The U.S. is a well-known country.",
        "Mr. Smith went to Lima.",
        "It's Rosa's, isn't it? We'll see... they've gone -- away.",
        "The authors' books: a, b and c.",
        "Price: $5 & 10%",
        "You cannot go to room 9.",
        "J. Smith and A.B. Lee live here",
    ],
)
def test_words_are_those_of_nltk(sentence: str) -> None:
    quotes = {"``": '"', "''": '"'}
    assert words(sentence) == [quotes.get(word, word) for word in NLTKWordTokenizer().tokenize(sentence)]


def test_words_of_several_sentences_and_of_chinese() -> None:
    assert words("Lima is old. It rains.\nWhy?") == ["Lima", "is", "old", ".", "It", "rains", ".", "Why", "?"]
    assert words("越南的首都，順化。") == [*"越南的首都，順化。"]
    assert words("") == []


# ---- consistency -----------------------------------------------------------------------------------------------------

TEXTS = [
    "Cusco was the capital of the Inca Empire, high in the mountains of Peru.",
    "Nepal is a country in Asia. It lies between India and China.",
    "War and Peace is a novel; a NOVEL by Leo Tolstoy_1.",
]


def test_cosine_is_that_of_scikit_learn() -> None:
    vectorizer = TfidfVectorizer().fit(TEXTS)
    own = Tfidf.of(TEXTS)
    assert set(own.idf) == set(vectorizer.get_feature_names_out())
    for one in [*TEXTS, "A novel country in the mountains", "China China Peru unknown"]:
        for other in TEXTS:
            a, b = vectorizer.transform([one, other]).toarray()
            expected = float(a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b)))
            assert own.cosine(one, other) == pytest.approx(expected, abs=1e-12)


def test_cosine_by_hand() -> None:
    own = Tfidf.of(["aa bb", "aa cc"])  # idf: aa ln(3/3) + 1 = 1, bb and cc ln(3/2) + 1
    rare = math.log(1.5) + 1
    assert own.idf == {"aa": 1.0, "bb": pytest.approx(rare), "cc": pytest.approx(rare)}
    assert own.cosine("aa bb", "aa cc") == pytest.approx(1 / (1 + rare**2))
    assert own.cosine("zz", "aa") == own.cosine("", "") == 0.0
    assert own.cosine("aa bb", "bb aa") == pytest.approx(1.0)


def test_chinese_terms_are_characters() -> None:
    assert terms("順化 is a City") == ["順", "化", "is", "city"]
    assert Tfidf.of(["順化是古都", "河內是首都"]).cosine("順化", "順化") == pytest.approx(1.0)
