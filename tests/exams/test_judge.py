from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import pytest

from tests.exams.fakes import Fake, judge_same


class Opinions(Mapping[str, str]):
    """What the judge replies, by what stands in the question."""

    def __getitem__(self, prompt: str) -> str:
        if "羅馬" in prompt:
            return "否。"
        if "Rome" in prompt:
            return "Yes." if "Rome, of course" in prompt else "no"
        if "maybe" in prompt:
            return "It depends"
        return "No" if "Answer A: blue" in prompt else "Yes"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_both_orders_are_asked_and_must_agree() -> None:
    judge = Fake("judge", Opinions())
    rows = [
        ("Capital of Italy?", "Rome", "Rome, of course"),
        ("義大利的首都？", "羅馬", "米蘭"),
        ("Colour?", "blue", "red"),  # No in one order, Yes in the other
        ("Colour?", "blue", "maybe"),
        ("Same?", "x", " x\n"),
    ]
    assert judge_same(judge, rows) == [True, False, None, None, True]
    (asked,) = judge.asked
    assert len(asked) == 8  # equal texts are not asked about
    assert "只回答一個字" in str(asked[2])


def test_without_rows_nothing_is_asked() -> None:
    judge = Fake("judge", {})
    assert judge_same(judge, []) == []
    assert judge.asked == []


@pytest.mark.parametrize(
    ("said", "opinion"),
    [
        ("Yes.", True),
        ("**yes**", True),
        ("Answer: yes", True),
        ("是的", True),
        ("相同。", True),
        ("NO!", False),
        ("Not the same", False),
        ("否，不同", False),
        ("不是", False),
        ("沒有相同", False),
        ("", None),
        ("😀", None),
        ("Yes and no", None),
        ("Not sure.", None),
        ("None of them", None),
        ("對不起，我無法判斷", None),
        ("不確定", None),
    ],
)
def test_an_opinion(said: str, opinion: bool | None) -> None:
    assert judge_same(Fake("judge", defaultdict(lambda: said)), [("Why?", "Because.", "Who knows.")]) == [opinion]


def test_braces_and_nothing_reach_the_judge_as_they_are() -> None:
    one = Fake("judge", defaultdict(lambda: "no"))
    assert judge_same(one, [("{a} 問", "{prompt}", ""), ("x", "y", "z" * 50_000)]) == [False, False]
    first = str(one.asked[0][0])
    assert "問題：{a} 問" in first
    assert "回答甲：{prompt}" in first
    assert "回答乙：(nothing)" in first
