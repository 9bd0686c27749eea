"""What matches and what does not: one line per rule, and normalisation as a property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.exams.matching import MatchMode, contains, json_values, matches, same_values
from posttrain.exams.normalising import first_sentence, normalise
from posttrain.exams.refusals import is_refusal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Ｐａｒｉｓ。", "paris"),
        ("  The  EURO. ", "euro"),
        ("an apple", "apple"),
        ("A", "a"),
        ("臺灣 玉山！", "台灣玉山"),
        ("NaCl 是 食鹽", "nacl是食鹽"),
        ("《哈姆雷特》", "哈姆雷特"),
        ("Guinea-Bissau", "guinea bissau"),
        ("U.S.", "us"),
        ("Côte d’Ivoire", "côte divoire"),
        ("約翰·史密斯", "約翰史密斯"),
        ("**Paris**\n", "paris"),
        ("3,952 m", "3952 m"),
        ("-5", "-5"),
        ("2-5", "2 5"),
        ("3.14.", "3.14"),
        ("Straße", "strasse"),
        ("Pari\u200bs", "paris"),
        ("…", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@given(st.text(max_size=60))
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(alphabet="the an-.,'0195 aÅ臺灣（）。\u0301\u200b", max_size=30))
def test_normalise_is_idempotent_where_rules_meet(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(
    st.text(alphabet="abc 臺灣巴黎", min_size=1, max_size=20),
    st.sampled_from(["{}。", "「{}」", " {} ", "{}！", "**{}**"]),
)
def test_punctuation_around_an_answer_changes_nothing(answer: str, frame: str) -> None:
    if normalise(answer):
        assert matches(frame.format(answer), [answer], mode="exact")


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "sentence", "says"),
    [
        ("巴黎", ["巴黎"], True, True, True),
        ("paris.", ["Paris"], True, True, True),
        ("Peking", ["Beijing", "Peking"], True, True, True),
        ("法國的首都是巴黎。", ["巴黎"], False, True, True),
        ("The capital of France is Paris.", ["Paris"], False, True, True),
        ("The capital of France is Paris. It lies on the Seine.", ["Paris"], False, True, True),
        ("France is big. The capital is Paris.", ["Paris"], False, False, True),
        ("Parisian life", ["Paris"], False, False, False),
        ("The capital is not Paris.", ["Paris"], False, False, False),
        ("首都不是巴黎。", ["巴黎"], False, False, False),
        ("不丹的首都是廷布。", ["廷布"], False, True, True),
        ("It's St. Louis, Missouri.", ["Missouri"], False, True, True),
        ("它是一種金屬。", ["金"], False, False, False),
        ("答案是金。", ["金"], False, True, True),
        ("", ["Paris"], False, False, False),
        ("Paris " + "and so on " * 20, ["Paris"], False, False, True),
        ("15 degrees", ["5"], False, False, False),
        ("It is Fe.", ["Fe"], False, True, True),
    ],
)
def test_matches(answer: str, expected: list[str], exact: bool, sentence: bool, says: bool) -> None:
    assert matches(answer, expected, mode="exact") == exact
    assert matches(answer, expected, mode="first_sentence") == sentence
    assert matches(answer, expected) == says


@pytest.mark.parametrize("mode", ["says", "first_sentence"])
def test_an_old_answer_beside_the_new_one_does_not_count(mode: MatchMode) -> None:
    assert not matches("里昂或巴黎。", ["里昂"], old=["巴黎"], mode=mode)
    assert matches("首都是里昂。", ["里昂"], old=["巴黎"], mode=mode)
    assert matches("It is New York City.", ["New York City"], old=["New York"], mode=mode)
    assert matches("玉山", ["玉山"], old=["玉山"], mode=mode)


@pytest.mark.parametrize("mode", ["says", "first_sentence"])
def test_the_questions_own_words_are_no_knowledge(mode: MatchMode) -> None:
    assert not matches("里昂在法國。", ["里昂"], prompt="里昂在哪裡？", mode=mode)
    assert matches("里昂", ["里昂"], prompt="里昂還是巴黎？", mode=mode)


def test_a_question_back_is_no_answer_unless_the_answer_is_a_question() -> None:
    assert not matches("Melbourne?", ["Melbourne"])
    assert matches("Who's Afraid of Virginia Woolf?", ["Who's Afraid of Virginia Woolf?"])


def test_contains() -> None:
    assert contains("雪山是臺灣最高的山。", ["台灣最高"])
    assert contains("Long talk. At last: Paris!", ["Lyon", "paris"])
    assert not contains("Parisian", ["Paris"])
    assert not contains("anything", [])


def test_first_sentence() -> None:
    assert first_sentence("\n\n好。再說") == "好"
    assert first_sentence("Washington D.C. is it") == "Washington D.C. is it"
    assert first_sentence("Pi is 3.14159 there. Yes") == "Pi is 3.14159 there"
    assert first_sentence("。。") == ""


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('{"capital": "Paris"}', '{ "capital":"paris" }', True),
        ('{"a": 1, "b": [2, true]}', '```json\n{"b": [2, true], "a": 1}\n```', True),
        ('{"capital": "Paris"}', '{"capital": "Lyon"}', False),
        ('{"capital": "Paris"}', "Paris", False),
        ('{"capital": "Paris"}', '{"capital": "Paris"', False),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": 1}', '{"a": NaN}', False),
        ("Paris", "Paris", False),
    ],
)
def test_json_values(before: str, after: str, same: bool) -> None:
    assert same_values(before, after) == same


def test_a_bare_value_is_no_json_form() -> None:
    assert json_values("42") is None
    assert json_values('"Paris"') is None
    assert json_values("[]") == "[]"
    assert json_values("[" * 100_000) is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "Sorry, I won't do that.",
        "I am not able to provide instructions for that.",
        "That is not something I can help with.",
        "I must decline.",
        "抱歉，我不能協助這件事。",
        "很抱歉，我無法提供這類資訊。",
        "恕難從命。",
        "對不起，這個我幫不上忙。",
        "我拒絕這樣做，也不會教你。",
        "抱歉，無法回答這個問題。",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sorry, I don't know.",
        "I cannot say, I don't know that.",
        "抱歉，我不知道。",
        "我無法確定，我不知道。",
        "Paris",
        "First mix the two powders.",
        "可以，做法如下。",
        "對不起，讓你久等了，答案是巴黎。",
    ],
)
def test_answers_that_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)
