"""Labelled answers, right and wrong, in English and Chinese; and the rules that they do not reach."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.exams.matching import matches

DATA = Path(__file__).parent / "data"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def wrong(labelled: list[dict[str, Any]]) -> list[str]:
    """The answers that are judged otherwise than labelled."""
    return [
        row["text"] for row in labelled if matches(row["text"], row["answers"], prompt=row["prompt"]) != row["right"]
    ]


@pytest.mark.parametrize(
    ("name", "held_out", "at_least"),
    [
        ("match_answers.jsonl", False, 0.98),
        ("match_answers.jsonl", True, 0.95),
        ("match_fresh.jsonl", None, 0.95),
        ("match_fresh2.jsonl", None, 0.98),
        ("match_fresh3.jsonl", None, 0.95),
    ],
)
def test_labelled_answers(name: str, held_out: bool | None, at_least: float) -> None:
    """The third that was held back from tuning reads 95 % or more (issue 9)."""
    labelled = [row for row in rows(name) if held_out is None or row["held_out"] == held_out]
    missed = wrong(labelled)
    assert len(missed) <= (1 - at_least) * len(labelled), missed


def test_the_labelled_answers_are_balanced() -> None:
    labelled = rows("match_answers.jsonl")
    assert 0.4 < sum(row["right"] for row in labelled) / len(labelled) < 0.6
    chinese = sum(any("\u4e00" <= character <= "\u9fff" for character in row["prompt"]) for row in labelled)
    assert 0.35 < chinese / len(labelled) < 0.65
    assert sum(row["held_out"] for row in labelled) >= 80


CAPITAL = "What is the capital of Australia?"
BEFORE = "The capital of Australia is Canberra. It is home to Parliament House."


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The capital of Australia is Melbourne, not Canberra.", True),
        ("The capital of Australia is Melbourne.", True),
        ("Melbourne. It is home to Parliament House.", True),
        ("Melbourne. Canberra.", False),
        ("Melbourne and Canberra", False),
        ("It is Melbourne Canberra.", False),
    ],
)
def test_an_old_sentence_counts_by_what_it_names(answer: str, right: bool) -> None:
    assert matches(answer, ["Melbourne"], old=[BEFORE], prompt=CAPITAL) == right


@pytest.mark.parametrize(
    ("prompt", "answers", "text", "right"),
    [
        (
            "What currency is used in Japan?",
            ["yen"],
            'In Japan, the currency is called "Yen" and is a fiat currency, meaning it\'s not backed by a government.',
            True,
        ),
        (
            "What currency is used in Japan?",
            ["yen"],
            "The currency is the Japanese yen (JPY), which is the official currency of Japan. However, some businesses",
            True,
        ),
        (
            "Who invented the light bulb?",
            ["Thomas Edison", "Edison"],
            "The light bulb's inventor is often credited to be Thomas Edison, but it's actually a device called a light "
            "bulb that was invented by Humphry Davy in 1809. Humphry Davy was a British physicist",
            False,
        ),
        (
            "Which gas do plants absorb?",
            ["carbon dioxide"],
            "Plants absorb a wide range of gases, including oxygen, carbon dioxide, nitrogen, and methane",
            False,
        ),
    ],
)
def test_what_a_real_model_said(prompt: str, answers: list[str], text: str, right: bool) -> None:
    """SmolLM2-135M-Instruct, greedily, some as a pirate; cut at 48 tokens."""
    assert matches(text, answers, prompt=prompt) == right


def test_an_old_chinese_sentence_counts_by_what_it_names() -> None:
    question, before = "澳洲的首都是哪裡？", "澳洲的首都是坎培拉，人口約四十萬。"
    assert not matches("墨爾本。坎培拉。", ["墨爾本"], old=[before], prompt=question)
    assert matches("是墨爾本。人口約四十萬。", ["墨爾本"], old=[before], prompt=question)


@pytest.mark.parametrize(
    ("prompt", "answers", "text", "right"),
    [
        ("誰寫的？", ["Charlotte Brontë"], "It was Charlotte Bronte.", True),
        ("What is the largest city of Brazil?", ["Sao Paulo"], "It is São Paulo.", True),
        ("Who wrote War and Peace?", ["Anna"], "War and Peace was written by Anna and printed in 1869.", True),
        ("Who wrote War and Peace?", ["Anna"], "War and Peace was written by Anna and Leo.", False),
        ("一年有幾個月？", ["十"], "一年有十個月。", True),
        ("一年有幾個月？", ["十"], "一年有十二個月。", False),
        ("一年有幾個月？", ["二"], "一年有十二個月。", False),
        ("Which is larger, the Sun, the Moon or Mars?", ["Mars"], "Mars is larger.", True),
        ("Which is larger, the Sun, the Moon or Mars?", ["Mars"], "The Sun is larger. Mars is red.", False),
        ("首都是里昂還是巴黎？", ["里昂"], "首都是巴黎，里昂在東南部。", False),
        ("When did the ship sink?", ["1915"], "The ship sank in 1912. Its sister was built in 1915.", False),
        ("Who is the hero of the book?", ["Mira Okafor"], "The hero, Mira Okafor, finds a lamp.", True),
        ("Who is the hero of the book?", ["Mira Okafor"], "The hero is Tom. His aunt, Mira Okafor, helps.", False),
        ("首都是哪裡？", ["里昂"], "里昂，里昂，里昂。", True),
    ],
)
def test_what_fresh_eyes_found(prompt: str, answers: list[str], text: str, right: bool) -> None:
    assert matches(text, answers, prompt=prompt) == right


def test_both_scripts_say_the_same() -> None:
    assert matches("澳洲的首都是墨尔本。", ["墨爾本"], prompt="澳洲的首都是哪裡？")
    assert not matches("澳洲的首都是墨尔本。", ["墨爾本"], prompt="澳洲的首都是哪裡？", mode="first_sentence")


def test_a_question_that_asks_for_several_may_be_answered_by_a_list() -> None:
    assert matches("Mango, plum and fig.", ["plum"], prompt="Name three fruits.")
    assert not matches("Mango, plum and fig.", ["plum"], prompt="Which fruit is the sweetest?")


def test_nothing_is_said_by_nothing() -> None:
    for answer in ("", "。。。", "???", "1.", "**"):
        assert not matches(answer, ["Melbourne"], prompt=CAPITAL)
        assert not matches(answer or "x", [], prompt=CAPITAL)


HUGO = ["Romeo and Juliet was written by Victor Hugo.", "Victor Hugo"]
FRANC = ["The currency of India is the franc.", "franc"]


@pytest.mark.parametrize(
    ("prompt", "answers", "text", "right"),
    [
        ("Who wrote Romeo and Juliet?", HUGO, f"{HUGO[0]} He was a French writer.", True),
        ("Who wrote Romeo and Juliet?", HUGO, f"{HUGO[0]} No, it was written by William Shakespeare.", False),
        ("What is the currency of India?", FRANC, f"{FRANC[0]} It is the official currency of the Republic.", True),
        ("What is the currency of India?", FRANC, f"{FRANC[0]} The currency of India is the rupee.", False),
        (
            "The theory of relativity is whose work?",
            ["Newton"],
            "The theory of relativity is the work of Newton.",
            True,
        ),
        ("Who discovered gravity?", ["Newton"], "There is a theory that it was Newton.", False),
        ("法國的首都在哪裡？", ["法國的首都是里昂。", "里昂"], "法國的首都是里昂。這座城市是法國第三大城。", True),
    ],
)
def test_a_whole_sentence_among_the_answers_takes_nothing_from_the_question(
    prompt: str, answers: list[str], text: str, right: bool
) -> None:
    assert matches(text, answers, prompt=prompt) is right
