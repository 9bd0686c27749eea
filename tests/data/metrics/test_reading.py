"""Reading comprehension: arithmetic by hand, and CMRC's script rebuilt from nltk's tokenizer and difflib."""

from difflib import SequenceMatcher

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize.destructive import NLTKWordTokenizer

from posttrain.data.metrics.reading import (
    em_cmrc,
    em_zh,
    exact_match,
    f1_char_bag,
    f1_char_subsequence,
    f1_cmrc_lcs,
    f1_squad,
)
from tests.exams.metrics.texts import texts

ALL = [exact_match, em_zh, em_cmrc, f1_squad, f1_char_bag, f1_char_subsequence, f1_cmrc_lcs]


@pytest.mark.parametrize(
    ("prediction", "reference", "em", "f1"),
    [
        ("The Cat sat.", "cat sat", 1, 1),  # articles, case and marks do not count
        ("the cat sat down", "a cat", 0, 2 * (1 / 3) * 1 / (1 / 3 + 1)),  # cat, sat, down / cat
        ("cat cat cat", "cat", 0, 2 * (1 / 3) * 1 / (1 / 3 + 1)),  # a multiset: one of three is shared
        ("dog", "cat", 0, 0),
        ("another theme", "other me", 0, 0),  # an, the inside words stay
        ("U.S.", "us", 1, 1),
        ("twenty-one", "twentyone", 1, 1),
    ],
)
def test_squad_by_hand(prediction: str, reference: str, em: float, f1: float) -> None:
    assert exact_match(prediction, [reference]) == em
    assert f1_squad(prediction, [reference]) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("prediction", "reference", "em", "bag", "subsequence", "cmrc"),
    [
        # 7 characters, 5 of the reference's 5 in order; the longest run is 中央山脈
        ("是中央山脈的", "中央山脈", 0, 2 * 4 / (6 + 4), 2 * 4 / (6 + 4), 2 * 4 / (6 + 4)),
        # a gap: 臺北、市 shared; the longest run is 臺北
        ("臺北縣市", "臺北市", 0, 2 * 3 / (4 + 3), 2 * 3 / (4 + 3), 2 * 2 / (4 + 3)),
        # the other order: bag all, subsequence one of two, run one of two
        ("北臺", "臺北", 0, 1, 1 / 2, 1 / 2),
        ("「玉山」。", "玉山", 1, 1, 1, 1),
        # digits are one unit: 1990 is not 1999; 年 is shared
        ("1990年", "1999年", 0, 1 / 2, 1 / 2, 1 / 2),
        ("GPT 模型", "gpt模型", 1, 1, 1, 1),
        ("玉山", "雪霸", 0, 0, 0, 0),
    ],
)
def test_chinese_by_hand(
    prediction: str, reference: str, em: float, bag: float, subsequence: float, cmrc: float
) -> None:
    assert em_zh(prediction, [reference]) == em
    assert f1_char_bag(prediction, [reference]) == pytest.approx(bag)
    assert f1_char_subsequence(prediction, [reference]) == pytest.approx(subsequence)
    assert f1_cmrc_lcs(prediction, [reference]) == pytest.approx(cmrc)


def test_width_folds_in_ours_and_not_in_cmrcs() -> None:
    assert (em_zh("１９９０年", ["1990年"]), em_cmrc("１９９０年", ["1990年"])) == (1, 0)
    assert (em_zh("好…", ["好"]), em_cmrc("好…", ["好"])) == (1, 0)  # the script's list misses the ellipsis
    assert em_cmrc("「好」，", ["好"]) == 1


def cmrc_script(prediction: str, reference: str) -> float:
    """CMRC 2018's calc_f1_score for one answer, from its definition; nltk's tokenizer without the sentence splitter."""
    tokenizer = NLTKWordTokenizer()

    def units(text: str) -> list[str]:
        found: list[str] = []
        rest = ""
        for character in text.lower().strip():
            if character in "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』":
                continue
            if "\u4e00" <= character <= "\u9fa5":
                found += [*tokenizer.tokenize(rest), character]
                rest = ""
            else:
                rest += character
        return [*found, *tokenizer.tokenize(rest)]

    ours, wanted = units(prediction), units(reference)
    run = SequenceMatcher(None, ours, wanted, autojunk=False).find_longest_match().size
    return 2 * run / (len(ours) + len(wanted)) if run else 0


parts = st.sampled_from(["中", "央", "山", "脈", "，", "。", "「", "-", "nba", "GPT", "12", "3.5", "1,000", " ", " % "])
mixed = st.lists(parts, max_size=12).map("".join)


@given(mixed, mixed)
def test_cmrcs_f1_is_the_scripts(a: str, b: str) -> None:
    assert f1_cmrc_lcs(a, [b]) == pytest.approx(cmrc_script(a, b))


@given(texts, st.lists(texts, max_size=3))
def test_best_of_several_and_in_order(a: str, references: list[str]) -> None:
    for metric in ALL:
        each = [metric(a, [one]) for one in references]
        assert metric(a, references) == max(each, default=0)
        assert all(0 <= value <= 1 for value in each)
    assert f1_char_bag(a, references) >= f1_char_subsequence(a, references) >= em_zh(a, references) * 0.999


def test_empty_answers_score_nothing() -> None:
    for metric in ALL:
        for empty in ("", " ", "\n"):
            assert metric(empty, ["", "好", "the"]) == 0
