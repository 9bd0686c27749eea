"""The ChatGLM scripts' scores against rouge_chinese 1.0.3, nltk and jieba, as the scripts call them, to the last digit."""

from typing import Any

import jieba
import pytest
from hypothesis import example, given, settings
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

from posttrain.exams.metrics.chatglm import CHATGLM_SCORES, chatglm_scores, chatglm_signature
from tests.exams.metrics.texts import texts, wild


def script(prediction: str, label: str) -> dict[str, float]:
    """`ptuning/main.py` and `finetune_hf.py`; what raises there is 0."""
    hypothesis, reference = list(jieba.cut(prediction)), list(jieba.cut(label))
    rouge: Any = Rouge()
    if not prediction.strip() or not label.strip():
        with pytest.raises(ValueError, match="is empty"):
            rouge.get_scores(" ".join(hypothesis), " ".join(reference))
        return dict.fromkeys(CHATGLM_SCORES, 0.0)
    found = rouge.get_scores(" ".join(hypothesis), " ".join(reference))[0]
    method3 = SmoothingFunction().method3
    return {
        **{f"rouge_jieba-{k[-1]}": round(v["f"] * 100, 4) for k, v in found.items()},
        "bleu4_char": round(sentence_bleu([list(label)], list(prediction), smoothing_function=method3) * 100, 4),
        "bleu4_jieba": sentence_bleu([reference], hypothesis, smoothing_function=method3) * 100,
    }


HARD = [
    ("今天天氣很好，我們去公園散步。", "今天天氣非常好，我們一起去公園散步吧。"),
    ("好", "好的"),  # three of four orders smoothed
    ("好好好好好", "好"),  # repeats count once in rouge, five times in bleu
    ("壞", "好"),
    ("去去去公園公園", "去公園去公園去"),
    ("你好。\n\n再見", "你好。再見"),  # a sentence of nothing but a space is an empty word
    ("你好。” 再見！’ 是嗎？", "你好。再見！是嗎？"),
    ("。。。", "。"),
    ("......好......", "好......"),
    ("今天", "今天........."),  # jieba keeps nine points together, rouge_chinese cuts them after six
    ("the cat sat on the mat", "the the the the"),
    ("\n \n好", "\n好"),
    ("好", " "),
    ("", "好"),
    ("好", ""),
    ("", ""),
    (" \n\u3000", "好"),
]


@pytest.mark.parametrize(("a", "b"), HARD)
def test_hard_cases(a: str, b: str) -> None:
    assert chatglm_scores(a, b) == script(a, b)


@settings(max_examples=300)
@given(texts, texts)
@example("你好。\n再見", "你好\n\n\n再見。")
def test_equals_the_scripts(a: str, b: str) -> None:
    assert chatglm_scores(a, b) == script(a, b)


@settings(max_examples=200)
@given(wild, wild)
def test_equals_the_scripts_on_anything(a: str, b: str) -> None:
    assert chatglm_scores(a, b) == script(a, b)


def test_by_hand() -> None:
    """What rouge_chinese and nltk printed for this pair; 好 of 好的: 100 e^(1-2) (1 * 1/2 * 1/4 * 1/8)^(1/4)."""
    found = chatglm_scores(*HARD[0])
    assert found["rouge_jieba-1"] == 81.8182
    assert found["rouge_jieba-2"] == 50.0
    assert found["rouge_jieba-l"] == 81.8182
    assert found["bleu4_char"] == 45.0478
    assert chatglm_scores("好", "好的")["bleu4_char"] == 13.0065


def test_identical_answers() -> None:
    found = chatglm_scores("今天天氣很好", "今天天氣很好")
    assert found["bleu4_char"] == 100.0
    assert found["rouge_jieba-1"] == 100.0  # 2 / (2 + 1e-8), rounded


def test_words_added_elsewhere_change_nothing() -> None:
    before = chatglm_scores("玉山國家公園真美", "玉山真美")
    jieba.add_word("玉山國家公園真美")
    try:
        assert chatglm_scores("玉山國家公園真美", "玉山真美") == before
    finally:
        jieba.del_word("玉山國家公園真美")


def test_signature_names_segmenter_and_dictionary() -> None:
    assert "tok:jieba-0.42" in chatglm_signature()
    assert "dict:" in chatglm_signature()
