from __future__ import annotations

from collections.abc import Iterator, Mapping

from posttrain.exams.judge import judge_same
from tests.exams.fakes import Fake


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
