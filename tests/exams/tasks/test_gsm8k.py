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


NUMBERS_AND_WORDS = [
    ("總共一百二十元，十分便宜", "120"),
    ("一百人，千萬別忘", "100"),
    ("答案是五個蘋果，大家一起吃", "5"),
    ("一百二十元在三民路", "120"),
    ("買了兩個。這是唯一的答案", "2"),
    ("買了三個，在百貨公司", "3"),
    ("共三個，兩岸都有", "3"),
    ("三個，四川來的", "3"),
    ("五元，感激萬分", "5"),
    ("五元，一定對", "5"),
    ("五元，一樣貴", "5"),
    ("五元，一直如此", "5"),
    ("五元，統一售價", "5"),
    ("五元，一般如此", "5"),
    ("五元，還有一些", "5"),
    ("五元，看一下", "5"),
    ("五元一共", "5"),
    ("五元，一旦買了", "5"),
    ("五元，萬一不夠", "5"),
    ("五元，百分之百正確", "5"),
    ("五元，四處都有", "5"),
    ("五元，四面八方", "5"),
    ("五元，三心二意", "5"),
    ("五元，十全十美", "5"),
    ("五元，七上八下", "5"),
    ("五元，五花八門", "5"),
    ("六元，給他一半", "6"),
    ("六元，信心十足", "6"),
    ("六元，百姓都有", "6"),
    ("六元，買三明治", "6"),
    ("六元，在九份", "6"),
    ("六元，六合彩", "6"),
    ("六元，八卦", "6"),
    ("六元，四季如春", "6"),
    ("六元，兩邊都是", "6"),
    ("六元，第一次買", "6"),
    ("六元，星期三付", "6"),
    ("六元，住中山一路", "6"),
    ("六元，他一走就哭", "6"),
    ("六元，一石二鳥", "6"),
    ("六元，幾十人看", "6"),
    ("六元，其一是", "6"),
    ("六元，在八德路", "6"),
    ("六元，在五福路", "6"),
    ("总共一百二十元，十分便宜", "120"),
    ("一百人，千万别忘", "100"),
    ("共三个，一起吃", "3"),
    ("统一价十五元", "15"),
    ("花了五百一般人不買", "500"),
    ("一共五個", "5"),
    ("總共是三十五", "35"),
    ("一百二十元", "120"),
    ("三個", "3"),
    ("兩千五", "2500"),
    ("十分鐘", "10"),
    ("他得了十分", "10"),
    ("小明得十分就走", "10"),
    ("三十分鐘", "30"),
    ("五點半", "5"),
    ("五點三十分", "30"),
    ("一千萬元", "10000000"),
    ("共千萬元", "10000000"),
    ("兩千萬人", "20000000"),
    ("答案是三", "3"),
    ("等於十二。", "12"),
    ("剩下一個", "1"),
    ("他有一百公斤", "100"),
    ("走了五公里", "5"),
    ("三十五個人", "35"),
    ("二十人", "20"),
    ("三百六十五天", "365"),
    ("九份報紙", "9"),
    ("答案是九份", "9"),
    ("四分之三", "0.75"),
    ("三又二分之一", "3.5"),
    ("萬分之一", "0.0001"),
    ("百分之五十", "50"),
    ("負三", "-3"),
    ("十五塊錢", "15"),
    ("一塊錢", "1"),
    ("答案是一", "1"),
    ("二加三等於五", "5"),
    ("十減三是七所以對", "7"),
    ("三人", "3"),
    ("一萬一", "11000"),
    ("一百", "100"),
    ("兩顆糖", "2"),
    ("七歲", "7"),
    ("三千五百", "3500"),
    ("三點五萬", "35000"),
    ("共三天", "3"),
    ("答案是第三", "3"),
    ("他點三份餐", "3"),
    ("八隻雞", "8"),
    ("六小時", "6"),
    ("四公尺", "4"),
    ("四元五角", "5"),
    ("二〇二四年", "2024"),
    ("一千兩百三十四", "1234"),
    ("答案為十", "10"),
    ("五折", "5"),
    ("三輛車", "3"),
    ("一百分", "100"),
    ("九十九朵", "99"),
    ("一億兩千萬元", "120000000"),
    ("十個，十分好吃", "10"),
    ("五隻狗和六隻貓", "6"),
    ("我們一起吃", None),
    ("十分便宜", None),
    ("千萬別忘", None),
    ("我住四川", None),
    ("一定一樣", None),
    ("四面八方", None),
    ("一半", "0.5"),
    ("在三民路", None),
    ("唯一的答案", None),
    ("三心二意", None),
    ("老百姓", None),
    ("萬一", None),
    ("五花八門", None),
    ("三千餘人", "3000"),
    ("九元，每一個人都給", "9"),
    ("九元，其中之一", "9"),
    ("五十兩銀子", "50"),
    ("九元，三不五時", "9"),
    ("九元，買九層塔", "9"),
    ("五百多萬元", "5000000"),
    ("三名學生在七賢國小", "3"),
    ("十二元，一毛不拔", "12"),
    ("十二元，一邊吃一邊走", "12"),
    ("十二元，這樣一來", "12"),
    ("十二元，四海一家", "12"),
    ("跳了五下", "5"),
    ("九元，再三說明", "9"),
    ("九元，張三李四王五", "9"),
    ("一而再，再三", None),
    ("住五福路", None),
]
"""What a text says, labelled by hand: numbers among words that hold numerals, numbers, and words alone."""


@pytest.mark.parametrize(("text", "number"), NUMBERS_AND_WORDS)
def test_words_that_hold_numerals_are_no_numbers(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"1.5\times10^{3}", "1500"),
        (r"2\cdot10^3", "2000"),
        ("+5", "5"),
        ("1'000", "1000"),
        ("1_000", "1000"),
        ("1_234_567", "1234567"),
        ("3k", "3000"),
        ("2.5K", "2500"),
        ("-3k", "-3000"),
    ],
)
def test_signs_groups_and_thousands(text: str, number: str) -> None:
    assert number_of(text) == last_number(f"so it is {text}.") == marked_number(f"#### {text}") == Decimal(number)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("\u20135", "-5"),
        ("\u20125", "-5"),
        ("\u20115", "-5"),
        ("\u2013$3,000", "-3000"),
        ("1又1/2", "1.5"),
        ("1 又 1/2", "1.5"),
        ("1又2分之1", "1.5"),
        ("1又二分之一", "1.5"),
        (r"1又\frac{1}{2}", "1.5"),
        ("-1又1/2", "-1.5"),
        ("一百二十三塊五", "123.5"),
        ("3塊5", "3.5"),
        ("3塊5毛", "3.5"),
        ("3块五", "3.5"),
        ("1,200塊5", "1200.5"),
        ("五塊半", "5.5"),
        ("5塊半", "5.5"),
        ("2 hundred thousand", "200000"),
        ("1.5 Million", "1500000"),
        (r"\boxed{1.5\text{ million}}", "1500000"),
        (r"\boxed{1.5 \text{million}}", "1500000"),
        (r"1.5\text{ million}", "1500000"),
        ("零下五", "-5"),
        ("零下5", "-5"),
        ("$2.5M", "2500000"),
        ("NT$2.5M", "2500000"),
        ("$3m", "3000000"),
        ("$1.2B", "1200000000"),
        ("$1.2bn", "1200000000"),
        ("3 * 10**5", "300000"),
        ("3*10**5", "300000"),
        ("3×10^5", "300000"),
        ("10**-2", "0.01"),
        ("一半", "0.5"),
        ("半數", "0.5"),
        ("七成", "0.7"),
        ("7成", "0.7"),
        ("七成五", "0.75"),
    ],
)
def test_more_ways_of_writing(text: str, number: str) -> None:
    assert number_of(text) == last_number(f"so it is {text}.") == marked_number(f"#### {text}") == Decimal(number)
    assert last_number(f"答案是{text}") == Decimal(number)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("氣溫是零下五度", "-5"),
        ("氣溫是零下5度", "-5"),
        ("降到零下，共三天", "3"),
        ("pages 3\u20135", "5"),
        ("5%\u201310%", "10"),
        ("5%-10%", "10"),
        ("要3元\u20135元", "5"),
        ("要3元-5元", "5"),
        ("第3題是-5", "-5"),
        ("走兩個半小時", "2.5"),
        ("走2個半小時", "2.5"),
        ("一個半月", "1.5"),
        ("三個半價的", "3"),
        ("等了3年半", "3.5"),
        ("三塊5元的餅", "5"),
        ("買3塊5個人分", "5"),
        ("切成五塊三份", "3"),
        ("一半給他，剩三個", "3"),
        ("占全班的半數", "0.5"),
        ("剩七成。", "0.7"),
        ("一成不變", None),
        ("八成會下雨，帶三把傘", "3"),
        ("分成三份", "3"),
        ("a rope of 5 M", "5"),
        ("a rope of 5m", "5"),
        ("a 0.2M solution", "0.2"),
        ("投票過半數", None),
        ("Room 12B", "12"),
        ("**10** 5 apples", "5"),
        ("it is **10**", "10"),
        ("he ran 5MB", "5"),
        ("2 thousands", "2"),
    ],
)
def test_what_is_near_them(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize("text", [r"\(18\)", "=18", "約18"])
def test_what_gsm8k_s_own_pattern_does_not_read_is_not_strict(text: str) -> None:
    assert marked_number(f"#### {text}") is None
    assert last_number(f"#### {text}") == 18


def test_what_only_looks_like_groups_or_thousands() -> None:
    assert last_number("he ran 3km") == 3
    assert last_number("a bag of 3 kg") == 3
    assert last_number("he is 5'6 tall") == 6
    assert last_number("row_12_000") != 12000
    assert last_number("3+5") == 5


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### **7**", 7),
        ("#### **-7**", -7),
        ("#### `7`", 7),
        ("#### **$1,200**", 1200),
        ("#### **三十五**", 35),
        ("#### 三個", 3),
        ("#### 一共", None),
    ],
)
def test_marked_numbers_in_bold(text: str, number: int | None) -> None:
    assert marked_number(text) == number


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
