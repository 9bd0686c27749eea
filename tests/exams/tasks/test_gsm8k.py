"""Sums: numbers as people write them, strict and flexible extraction, shots that are not asked."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.exams.numerals import last_number, marked_number, number_of
from posttrain.inference.protocol import Answer, Plain
from tests.exams.tasks.told import build, judged, scores_of, text_of, write_rows

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k_test.jsonl"
ROWS = [{"question": f"What is {i} + {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(1, 13)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.50", "1234.5"),
        ("$18", "18"),
        ("-$5", "-5"),
        ("１８", "18"),
        ("十八", "18"),
        ("十", "10"),
        ("一百零五", "105"),
        ("兩萬三千", "23000"),
        ("一億兩千萬", "120000000"),
        ("一萬億", "1000000000000"),
        ("二〇二四", "2024"),
        ("三點五", "3.5"),
        ("3.5萬", "35000"),
        ("負三", "-3"),
        ("貳拾", "20"),
        ("18元", "18"),
        ("NT$30", "30"),
        ("18.", "18"),
        ("abc", None),
        ("", None),
        ("點", None),
    ],
)
def test_numbers(text: str, number: str | None) -> None:
    assert number_of(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("一百二", "120"),
        ("兩千五", "2500"),
        ("两千五", "2500"),
        ("一萬二", "12000"),
        ("三億五", "350000000"),
        ("一億兩千", "120000000"),
        ("一億零兩千", "100002000"),
        ("一萬兩千五", "12500"),
        ("一萬兩千五百", "12500"),
        ("一萬兩千零五", "12005"),
        ("兩千零五", "2005"),
        ("一百零二", "102"),
        ("一百二十", "120"),
        ("百二十", "120"),
        ("百二", "120"),
        ("千二", "1200"),
        ("萬二", "12000"),
        ("十二", "12"),
        ("廿", "20"),
        ("廿五", "25"),
        ("卅一", "31"),
        ("零", "0"),
        ("〇", "0"),
        ("一兆五", "1500000000000"),
        ("三兆五千億", "3500000000000"),
        ("二〇二四", "2024"),
        ("二〇二四年", "2024"),
        ("3萬5千", "35000"),
        ("3萬5千元", "35000"),
        ("3萬5", "35000"),
        ("3萬500", "30500"),
        ("3萬5,000", "35000"),
        ("3 萬", "30000"),
        ("2千", "2000"),
        ("5百", "500"),
        ("1億2千萬", "120000000"),
        ("12億3456萬", "1234560000"),
        ("1億2千", "120000000"),
        ("3.5万", "35000"),
        ("三點五萬", "35000"),
        ("三点五", "3.5"),
        ("十點五", "10.5"),
        ("零點五", "0.5"),
        ("點五", "0.5"),
        ("負三", "-3"),
        ("负3萬5千", "-35000"),
        ("四分之一", "0.25"),
        ("4分之1", "0.25"),
        ("十分之三", "0.3"),
        ("三又二分之一", "3.5"),
        ("百分之五十", "50"),
        ("百分之十二點五", "12.5"),
        ("50%", "50"),
        ("12.5％", "12.5"),
        (r"12.5\%", "12.5"),
        (r"\boxed{8{,}000}", "8000"),
        (r"$\boxed{8{,}000}$", "8000"),
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{18 \text{ dollars}}", "18"),
        (r"8{,}000", "8000"),
        (r"8\,000", "8000"),
        (r"1{,}234{,}567.5", "1234567.5"),
        (r"\$8,000", "8000"),
        (r"\$8{,}000", "8000"),
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac12", "0.5"),
        (r"2\frac{1}{2}", "2.5"),
        (r"-\frac{3}{4}", "-0.75"),
        ("1/2", "0.5"),
        ("2 1/2", "2.5"),
        ("-2 1/2", "-2.5"),
        ("½", "0.5"),
        ("3½", "3.5"),
        ("1/0", None),
        ("1e5", "100000"),
        ("1E5", "100000"),
        ("1e+5", "100000"),
        ("2.5e-3", "0.0025"),
        ("-1.5e3", "-1500"),
        ("2.5×10^3", "2500"),
        ("3×10⁵", "300000"),
        (r"2.5 \times 10^{-3}", "0.0025"),
        ("10⁵", "100000"),
        ("\u22125", "-5"),
        ("－５", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("−$3,000", "-3000"),
        ("１２,０００", "12000"),
        ("１２，０００", "12000"),
        ("1,234.5", "1234.5"),
        ("1 234", "1234"),
        ("1\u202f234\u202f567", "1234567"),
        ("1.234.567", "1234567"),
        ("1.234,5", "1234.5"),
        ("12,0000", "120000"),
        ("1,00,000", "100000"),
        ("1,2,3", None),
        ("1.5 million", "1500000"),
        ("€20", "20"),
        (".5", "0.5"),
        ("萬一", None),
        ("3/4/2024", None),
        ("1e5e5", None),
    ],
)
def test_numbers_as_they_are_written(text: str, number: str | None) -> None:
    assert number_of(text) == (None if number is None else Decimal(number))
    if number is not None:
        assert last_number(f"so it is {text}") == Decimal(number)
        assert last_number(f"共{text}") == Decimal(number)
        assert marked_number(f"so\n#### {text}") == Decimal(number)


def test_thirds() -> None:
    assert number_of("三分之一") == number_of("1/3") == number_of(r"\frac{1}{3}") == Decimal(1) / 3


def test_which_number_is_the_answer() -> None:
    assert last_number("He had 3, then bought 1,000.") == 1000
    assert last_number("答案是十八元") == 18
    assert last_number("一共有 5 個，不是十個") == 5  # digits go before numerals
    assert last_number("no number") is None
    assert last_number("共3萬5千元") == 35000
    assert last_number("1,2,3") == 3
    assert last_number("between 3-5") == 5
    assert last_number("x=-5") == -5
    assert last_number(r"step 1: \\boxed{8{,}000} is the answer to question 3".replace("\\\\", "\\")) == 8000
    assert last_number("24/4 = 6.") == 6
    assert last_number("on 3/4/2024 he paid 7") == 7
    assert last_number("二〇二四年") == 2024
    assert last_number("the answer is 1e5.") == 100000
    assert last_number("1e999999999") is not None  # and no time is lost
    assert marked_number("so 4\n#### -3,000.\nQuestion: 7") == -3000
    assert marked_number("18") is None


def test_strict_and_flexible(tmp_path: Path) -> None:
    write_rows(tmp_path / "g.jsonl", ROWS[:9])
    task = build("gsm8k", tmp_path, path="g.jsonl")  # 8 shots leave one question: 9 + 9
    (item,) = task.items
    marked, loose, wrong, late = (
        judged(task, said)[0] for said in ("#### 18", "It is 18.", "#### 19", "#### 18\nor 5")
    )
    assert (marked.scores["flexible"], marked.scores["strict"]) == (1.0, 1.0)
    assert (loose.scores["flexible"], loose.scores["strict"]) == (1.0, 0.0)
    assert (wrong.scores["flexible"], wrong.scores["strict"]) == (0.0, 0.0)
    assert late.correct
    assert scores_of(task, [marked, loose])["strict"] == 0.5
    assert item.id == "g-9"


def test_shots_are_worked_and_not_asked(tmp_path: Path) -> None:
    write_rows(tmp_path / "g.jsonl", ROWS)
    task = build("gsm8k", tmp_path, path="g.jsonl", shots=2)
    prompt = task.items[0].asks[0].prompt
    assert isinstance(prompt, Plain)
    assert prompt.text == (
        "Question: What is 1 + 1?\nAnswer: 1 + 1 = 2\n#### 2\n\nQuestion: What is 2 + 2?\nAnswer: 2 + 2 = 4\n#### 4\n\n"
        "Question: What is 3 + 3?\nAnswer:"
    )
    assert task.items[0].question == "What is 3 + 3?"
    assert len(task.items) == 10
    chat = build("gsm8k", tmp_path, path="g.jsonl", shots=2, template="chat").items[0].asks[0].prompt
    assert [m.role for m in chat] == ["user", "assistant"] * 2 + ["user"]  # type: ignore[union-attr]
    write_rows(tmp_path / "train.jsonl", ROWS[:3])
    other = build("gsm8k", tmp_path, path="g.jsonl", shots=2, shots_path="train.jsonl")
    assert len(other.items) == 12
    assert other.fingerprint != task.fingerprint


def test_chinese_questions_have_chinese_labels(tmp_path: Path) -> None:
    rows = [{"question": f"小明有{i}顆糖，又買了一顆，共有幾顆？", "answer": f"#### {i + 1}"} for i in range(3)]
    write_rows(tmp_path / "g.jsonl", rows)
    task = build("gsm8k", tmp_path, path="g.jsonl", shots=1)
    assert text_of(task.items[0].asks[0].prompt).startswith("問題：小明有0顆糖")
    assert judged(task, "一共是兩顆")[0].correct


def test_bad_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "g.jsonl", [{"question": "q", "answer": "none"}, {"question": ""}])
    with pytest.raises(DataError) as error:
        build("gsm8k", tmp_path, path="g.jsonl", shots=0)
    assert "holds no number" in str(error.value)
    assert "'question' is empty" in str(error.value)
    write_rows(tmp_path / "h.jsonl", ROWS[:8])
    with pytest.raises(ConfigError, match="none is left to ask"):
        build("gsm8k", tmp_path, path="h.jsonl")
    with pytest.raises(ConfigError, match="'path' is missing"):
        build("gsm8k", tmp_path)


@pytest.mark.skipif(not GSM8K.exists(), reason=f"{GSM8K} is not there")
def test_the_worked_answers_of_gsm8k_are_right() -> None:
    task = build("gsm8k", GSM8K.parent, path=GSM8K.name)
    assert len(task.items) == 1319 - 8
    right = [task.judge(item, [Answer(item.doc["answer"], 1, True)]).scores for item in task.items]
    assert all(s["strict"] == s["flexible"] == 1.0 for s in right)
