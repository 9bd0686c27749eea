"""Perplexities by hand and against lm-eval's own counts and formulas."""

import math

import pytest
from lm_eval.api.metrics import bits_per_byte as their_bits
from lm_eval.api.metrics import weighted_perplexity

from posttrain.exams.metrics.perplexity import (
    Units,
    bits_per_byte,
    byte_perplexity,
    char_perplexity,
    cross_entropy,
    token_perplexity,
    units_of,
    word_perplexity,
)


def test_by_hand() -> None:
    """Four tokens of probability 1/8 each: perplexity 8, 3 bits each; over 6 bytes 2 bits per byte."""
    nats = 4 * math.log(1 / 8)
    assert token_perplexity(nats, 4) == pytest.approx(8)
    assert bits_per_byte(nats, 6) == pytest.approx(2)
    assert byte_perplexity(nats, 6) == pytest.approx(4)
    assert char_perplexity(nats, 12) == pytest.approx(2)
    assert word_perplexity(nats, 2) == pytest.approx(64)
    assert cross_entropy(nats, 4) == pytest.approx(math.log(8))


def test_equals_lm_eval_over_several_texts() -> None:
    nats, texts = [-20.0, -31.5], ["two words", "玉山 is high, 3,952 公尺"]
    units = units_of(texts)
    words = list(zip(nats, [2, 5], strict=True))  # lm-eval: len(re.split(r"\s+", text))
    sizes = list(zip(nats, [len(t.encode("utf-8")) for t in texts], strict=True))
    assert word_perplexity(sum(nats), units.words) == pytest.approx(weighted_perplexity(words))
    assert byte_perplexity(sum(nats), units.bytes) == pytest.approx(weighted_perplexity(sizes))
    assert bits_per_byte(sum(nats), units.bytes) == pytest.approx(their_bits(sizes))


def test_units() -> None:
    assert units_of("玉山 3,952") == Units(words=2, characters=8, bytes=12)
    assert units_of(["玉山", "a b"]) == Units(words=3, characters=5, bytes=9)


def test_too_surprised_for_a_float() -> None:
    assert token_perplexity(-2000.0, 1) == math.inf


def test_no_units_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 units"):
        token_perplexity(-1.0, 0)
