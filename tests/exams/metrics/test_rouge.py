"""ROUGE against rouge-score 0.1.2 with the same tokenizers, ROUGE-S by hand and by brute force."""

import time
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from posttrain.exams.metrics.rouge import Rouge, rouge, rouge_signature
from posttrain.exams.metrics.tokens import Tokenizer, characters, jieba_cut, jieba_simplified, jieba_words, latin
from tests.exams.metrics.texts import texts, wild

KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


class As:
    """A function as rouge-score's tokenizer object."""

    def __init__(self, function: Tokenizer) -> None:
        self.tokenize = function


def theirs(prediction: str, reference: str, tokenizer: Tokenizer | None) -> dict[str, float]:
    scorer: Any = RougeScorer(KINDS, tokenizer=As(tokenizer) if tokenizer else None)
    return {kind: score.fmeasure for kind, score in scorer.score(reference, prediction).items()}


@pytest.mark.parametrize("tokenizer", [characters, jieba_words, jieba_simplified, latin])
@given(texts, texts)
def test_equals_rouge_score(tokenizer: Tokenizer, a: str, b: str) -> None:
    ours = rouge(a, b, tokenizer=tokenizer)._asdict()
    assert {kind: ours[kind] for kind in KINDS} == theirs(a, b, None if tokenizer is latin else tokenizer)


@given(wild, wild)
def test_equals_rouge_score_on_anything(a: str, b: str) -> None:
    ours = rouge(a, b)._asdict()
    assert {kind: ours[kind] for kind in KINDS} == theirs(a, b, characters)


def test_by_hand() -> None:
    """13 and 17 characters without marks, 12 shared in order; 12 and 16 bigrams, 9 shared."""
    ours = rouge("今天天氣很好，我們去公園散步。", "今天天氣非常好，我們一起去公園散步吧。")
    assert ours.rouge1 == ours.rougeL == pytest.approx(2 * 12 / (13 + 17))
    assert ours.rouge2 == pytest.approx(2 * 9 / (12 + 16))


def test_lines_are_sentences_of_lsum() -> None:
    """Lin 2004, section 3.2: w1..w5 against 'w1 w2 w6 w7 w8' and 'w1 w3 w8 w9 w5': the union is w1 w2 w3 w5.

    With the lines the other way round, one line through both finds w1 w3 w5 only.
    """
    ours = rouge("1 3 8 9 5\n1 2 6 7 8", "1 2 3 4 5", tokenizer=str.split)
    assert ours.rougeLsum == pytest.approx(2 * (4 / 5) * (4 / 10) / (4 / 5 + 4 / 10))
    assert ours.rougeL == pytest.approx(2 * (3 / 5) * (3 / 10) / (3 / 5 + 3 / 10))


def test_beta_weighs_recall_of_the_longest_subsequence_only() -> None:
    """Recall 1, precision 2/4: F = (1 + 9) * 0.5 / (1 + 9 * 0.5) = 5 / 5.5."""
    ours, plain = (rouge("police killed the gunman", "police gunman", tokenizer=latin, beta=b) for b in (3.0, 1.0))
    assert ours.rougeL == ours.rougeLsum == pytest.approx(5 / 5.5)
    assert plain.rougeL == pytest.approx(2 * 0.5 / 1.5)
    assert (ours.rouge1, ours.rouge2, ours.rougeS) == (plain.rouge1, plain.rouge2, plain.rougeS)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [("police kill the gunman", 3 / 6), ("the gunman kill police", 1 / 6), ("the gunman police killed", 2 / 6)],
)
def test_skip_bigrams_of_the_paper(prediction: str, score: float) -> None:
    """Lin 2004, section 5: S1 'police killed the gunman' has 6 skip-bigrams; the three score 0.5, 0.167, 0.333."""
    assert rouge(prediction, "police killed the gunman", tokenizer=latin).rougeS == pytest.approx(score)


@given(st.text("abc", max_size=12), st.text("abc", max_size=12), st.none() | st.integers(0, 5))
def test_skip_bigrams_by_brute_force(a: str, b: str, max_skip: int | None) -> None:
    def pairs(text: str) -> Counter[tuple[str, str]]:
        near = (p for p in combinations(range(len(text)), 2) if max_skip is None or p[1] - p[0] - 1 <= max_skip)
        return Counter((text[i], text[j]) for i, j in near)

    ours, wanted = pairs(a), pairs(b)
    shared, total = (ours & wanted).total(), ours.total() + wanted.total()
    scored = rouge(a, b, tokenizer=list, max_skip=max_skip)
    assert scored.rougeS == pytest.approx(2 * shared / total if shared else 0)
    if max_skip == 0:
        assert scored.rougeS == scored.rouge2


@pytest.mark.parametrize(("a", "b"), [("", "好"), ("好", ""), ("", ""), ("。", "。"), ("好", "壞"), (" \n", "好")])
def test_nothing_shared_is_zero(a: str, b: str) -> None:
    for tokenizer in (characters, jieba_words, latin):
        assert rouge(a, b, tokenizer=tokenizer) == Rouge(0, 0, 0, 0, 0)


def test_one_character() -> None:
    assert rouge("好", "好的") == pytest.approx((2 / 3, 0, 2 / 3, 2 / 3, 0))


def test_tokenizers() -> None:
    assert characters("GPT-2 很好，x_y ＡＢ") == ["gpt", "2", "很", "好", "x", "y", "ａｂ"]
    assert latin("GPT-2 很好，é") == ["gpt", "2"]
    assert jieba_words("我們去公園，好嗎？") == ["我們", "去", "公園", "好", "嗎"]


def test_simplified_cuts_keep_the_characters() -> None:
    """jieba's dictionary is Simplified: it takes 計程車 apart and 計算機 stays whole only by its Simplified form."""
    text = "總統府發言人說明計算機軟體產業"
    assert "".join(jieba_simplified(text)) == text
    assert [len(word) for word in jieba_simplified(text)] == [
        len(word) for word in jieba_cut("总统府发言人说明计算机软体产业")
    ]


@given(wild)
def test_simplified_cuts_lose_nothing(text: str) -> None:
    kept = [c for c in text.lower() if c.isalnum()]
    assert [c for c in "".join(jieba_simplified(text)) if c.isalnum()] == kept


def test_signatures() -> None:
    assert rouge_signature() == "rouge:rouge-score-0.1.2|tok:char|beta:1|skip:any"
    assert rouge_signature(tokenizer=latin, beta=1.2, max_skip=4) == (
        "rouge:rouge-score-0.1.2|tok:latin|beta:1.2|skip:4"
    )
    words, simplified = rouge_signature(tokenizer=jieba_words), rouge_signature(tokenizer=jieba_simplified)
    assert words.startswith("rouge:rouge-score-0.1.2|tok:jieba-0.42")
    assert "dict:" in words
    assert ",cut:simplified,opencc:" in simplified
    assert "tok:builtins.list" in rouge_signature(tokenizer=list)


def test_thousands_of_answers_take_seconds() -> None:
    pairs = [(f"玉山的高度是{i}公尺，位於臺灣中部。" * 2, f"玉山高{i * 7}公尺。" * 3) for i in range(500)]
    start = time.process_time()
    for a, b in pairs:
        rouge(a, b)
    assert (time.process_time() - start) * 7 < 10  # for 3,500
