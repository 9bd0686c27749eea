"""Using models with a head: batches change nothing, spans by brute force, the null answer, what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.head_rows import SpanRow, TagRow
from posttrain.data.records import ReadingQuestion
from posttrain.errors import DataError, PosttrainError
from posttrain.inference import heads
from posttrain.inference.heads import (
    FoundSpan,
    WindowScores,
    answer_spans,
    best_answer,
    classify,
    said_labels,
    said_tags,
    tag,
    window_scores,
)
from posttrain.models.heads import load_head_model
from posttrain.models.load import LoadedModel
from posttrain.models.notes import Head
from tests.pico import pico_encoder

PicoPath = Callable[[str], Path]
TEXTS = ["Paris.", "The highest mountain in Taiwan is Yushan.", "日圓", "Who wrote Hamlet? William Shakespeare."]
FAMILIES = ("llama", "gpt2", "mistral", "bert")


@pytest.fixture(scope="module")
def loaded(pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedModel]:
    encoder = pico_encoder(tmp_path_factory.mktemp("encoder"))

    def load(family: str, head: Head, labels: tuple[str, ...] = ("a", "b", "O"), **settings: Any) -> LoadedModel:
        folder = encoder if family == "bert" else pico_path(family)
        made = load_head_model(str(folder), head, labels, settings=settings, device="cpu", say=lambda _: None)
        for parameter in made.model.parameters():  # outputs that differ: nothing is near a tie
            parameter.data.mul_(3)
        return made

    return load


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_change_nothing(
    loaded: Callable[..., LoadedModel], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = [text.split() for text in TEXTS]
    questions = ["Which?", "What is the capital of France?", "?", "Who wrote it?"]
    model, tagger, reader = loaded(family, "sequence"), loaded(family, "token"), loaded(family, "answer", ())
    together = classify(model, TEXTS), tag(tagger, sentences), answer_spans(reader, questions, TEXTS)
    monkeypatch.setattr(heads, "BATCH_TOKENS", 1)  # every row by itself
    for one, alone in zip(together[0], classify(model, TEXTS), strict=True):
        assert one.labels == alone.labels
        assert one.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)
    for row, row_alone in zip(together[1], tag(tagger, sentences), strict=True):
        assert row.tags == row_alone.tags
        assert row.probabilities == pytest.approx(row_alone.probabilities, abs=1e-5)
    for span, span_alone in zip(together[2], answer_spans(reader, questions, TEXTS), strict=True):
        assert span[:2] == span_alone[:2]
        assert span[2:] == pytest.approx(span_alone[2:], abs=1e-4)


def test_long_texts(loaded: Callable[..., LoadedModel]) -> None:
    model = loaded("llama", "sequence", max_length=12)
    long, short = classify(model, [TEXTS[1] * 5, "Hi"])
    assert (long.truncated, short.truncated) == (True, False)
    assert long.probabilities == pytest.approx(classify(model, [TEXTS[1] * 9])[0].probabilities, abs=1e-6)
    with pytest.raises(
        DataError,
        match=r"sentence 2: \d+ tokens, more than max_length 12; shorten it: the model was trained for no more",
    ):
        tag(loaded("llama", "token", max_length=12), [["Hi"], TEXTS[1].split() * 5])
    (found,) = answer_spans(loaded("llama", "answer", (), max_length=24, doc_stride=8), ["Which?"], [TEXTS[1] * 5])
    assert found.text in TEXTS[1] * 5


def test_pairs_and_several_labels(loaded: Callable[..., LoadedModel]) -> None:
    model = loaded("bert", "sequence", multi_label=True, threshold=0.2)
    (pair,) = classify(model, [("Paris.", "日圓")])
    assert set(pair.labels) == {label for label, p in pair.probabilities.items() if p >= 0.2}
    assert pair.probabilities != classify(model, ["Paris."])[0].probabilities


def test_said_labels() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    (one,) = said_labels(logits, ("a", "b", "c"), multi_label=False)
    assert one.labels == ("b",)
    assert list(one.probabilities) == ["b", "a", "c"]
    (many,) = said_labels(logits, ("a", "b", "c"), multi_label=True)
    assert many.labels == ("b", "a")  # sigmoid(0) is 0.5, which is enough
    assert said_labels(logits - 9, ("a", "b", "c"), multi_label=True)[0].labels == ()


def test_said_tags() -> None:
    row = TagRow([1, 2, 3, 4], None, [1, -1, 3], [], "f:1")
    logits = torch.tensor([[9.0, 0], [0, 9.0], [9.0, 0], [9.0, 0]])
    found = said_tags(logits, row, ("X", "O"))
    assert found.tags == ("O", "O", "X")  # the second token has no piece
    assert found.probabilities[1] == 0


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32)), min_size=4, max_size=9),
    st.integers(1, 5),
)
def test_the_best_span_by_brute_force(logits: list[tuple[float, float]], longest: int) -> None:
    start, end = torch.tensor([a for a, _ in logits]), torch.tensor([b for _, b in logits])
    count = len(logits) - 2  # one piece of the question before, the null token after
    row = SpanRow(
        [0] * len(logits), None, 0, 0, len(logits) - 1, 1, [(i * 2, i * 2 + 1) for i in range(count)],
        ReadingQuestion("q", "c", (), "f:1"), 0,
    )  # fmt: skip
    found = window_scores(start, end, row, longest)
    scores = {
        (i, j): logits[1 + i][0] + logits[1 + j][1] for i in range(count) for j in range(i, min(i + longest, count))
    }
    assert found.score == pytest.approx(max(scores.values()), abs=1e-5)
    assert scores[found.first // 2, (found.after - 1) // 2] == pytest.approx(found.score, abs=1e-5)
    assert found.null_score == pytest.approx(sum(logits[-1]), abs=1e-5)


def test_the_best_answer_of_all_windows() -> None:
    context = "It is Ada Lovelace, I think."
    windows = [WindowScores(1.0, 0, 2, 3.0), WindowScores(2.0, 5, 18, 2.5)]
    best = best_answer(windows, context, null_answers=False)
    assert best == FoundSpan("Ada Lovelace", 6, 2.0, 2.5)  # the space before a word is none of it
    assert context[best.start :].startswith(best.text)
    assert best_answer(windows, context, null_answers=True) == FoundSpan("", -1, 2.0, 2.5)
    assert best_answer(windows, context, null_answers=True, null_threshold=0.5).text == "Ada Lovelace"


def test_the_wrong_head(loaded: Callable[..., LoadedModel]) -> None:
    with pytest.raises(PosttrainError, match="has a head for classes of tokens, not one for classes of texts"):
        classify(loaded("llama", "token"), ["x"])
    assert classify(loaded("llama", "sequence"), []) == []
