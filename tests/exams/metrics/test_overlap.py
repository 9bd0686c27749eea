"""BLEU: sacrebleu called another way, and by hand."""

import math

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.exams.metrics.overlap import BleuTokenizer, bleu, bleu_signature, sentence_bleu
from tests.exams.metrics.texts import texts

PAIR = ("今天天氣很好，我們去公園散步。", "今天天氣非常好，我們一起去公園散步吧。")
some = texts.filter(str.strip)


@pytest.mark.parametrize("tokenize", ["zh", "char", "13a", "intl"])
@settings(max_examples=40)
@given(st.lists(st.tuples(texts, some, some), min_size=1, max_size=4))
def test_corpus_equals_sacrebleu(tokenize: BleuTokenizer, rows: list[tuple[str, str, str]]) -> None:
    predictions, first, second = ([row[i] for row in rows] for i in range(3))
    theirs = sacrebleu.corpus_bleu(predictions, [first, second], tokenize=tokenize, force=True)
    assert bleu(predictions, list(zip(first, second, strict=True)), tokenize=tokenize).score == theirs.score


@given(texts, some)
def test_sentence_equals_sacrebleu(a: str, b: str) -> None:
    assert sentence_bleu(a, [b]).score == sacrebleu.sentence_bleu(a, [b], tokenize="zh").score


@pytest.mark.parametrize(("tokenize", "score"), [("13a", 0.0), ("intl", 18.9959), ("zh", 45.0478), ("char", 45.0478)])
def test_measured_pair(tokenize: BleuTokenizer, score: float) -> None:
    """The figures of the reference notes, by sacrebleu 2.6.0."""
    assert bleu([PAIR[0]], [[PAIR[1]]], tokenize=tokenize).score == pytest.approx(score, abs=1e-4)


def test_by_hand() -> None:
    """'a b c d' of 'a b c e': 3/4, 2/3, 1/2 and none of one, smoothed to 1/2; lengths equal."""
    expected = 100 * math.exp((math.log(3 / 4) + math.log(2 / 3) + math.log(1 / 2) + math.log(1 / 2)) / 4)
    assert bleu(["a b c d"], [["a b c e"]], tokenize="13a").score == pytest.approx(expected)


def test_truthfulqas_setting() -> None:
    """Its BLEU is a corpus of one: intl, exp, no effective order."""
    theirs = sacrebleu.corpus_bleu(
        ["The sky is blue"], [["the sky is green"]], smooth_method="exp", smooth_value=0.0, force=False,
        lowercase=False, tokenize="intl", use_effective_order=False,
    )  # fmt: skip
    assert bleu(["The sky is blue"], [["the sky is green"]], tokenize="intl").score == theirs.score


def test_empty_answers_score_nothing_and_cost_length() -> None:
    assert bleu([""], [["好的"]]).score == 0
    assert sentence_bleu("", ["好的"]).score == 0
    assert sentence_bleu(" \n", ["好的"]).score == 0
    alone, beside = bleu(["我們去公園"], [["我們去公園"]]), bleu(["我們去公園", ""], [["我們去公園"], ["散步去吧走"]])
    assert alone.score == pytest.approx(100)
    assert beside.score == pytest.approx(100 * math.exp(1 - 10 / 5))


def test_several_references_of_different_number() -> None:
    found = bleu(["我們去公園", "很好很好"], [["我們去公園"], ["不好", "很好很好", ""]])
    assert found.score == pytest.approx(100)
    assert "nrefs:var" in found.signature


def test_signature_is_sacrebleus() -> None:
    assert bleu([PAIR[0]], [[PAIR[1]]]).signature == (
        f"nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:{sacrebleu.__version__}"
    )
    assert sentence_bleu(PAIR[0], [PAIR[1]]).signature.endswith(bleu_signature(sentence=True))
    assert bleu([PAIR[0]], [[PAIR[1]]], tokenize="intl").signature.endswith(bleu_signature(tokenize="intl"))


def test_nothing_to_score_is_an_error() -> None:
    for predictions, references in ((), ()), (["好"], []), (["好"], [[]]), (["好"], [["", " "]]):
        with pytest.raises(ValueError, match=r"BLEU|references"):
            bleu(predictions, references)
