"""Losses of heads: by hand, and as transformers' own models compute them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from posttrain.models.heads import load_head_model
from posttrain.models.notes import Head
from posttrain.objectives._loss import balanced
from posttrain.objectives.extractive_qa import ExtractiveQaConfig, extractive_qa
from posttrain.objectives.text_classification import TextClassificationConfig, text_classification
from posttrain.objectives.token_classification import TokenClassificationConfig, token_classification
from tests.pico import pico_encoder

PicoPath = Callable[[str], Path]
ABC = ("a", "b", "c")


def test_one_label_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = text_classification(logits, torch.tensor([1, 2]), TextClassificationConfig(labels=ABC))
    first = -math.log(math.exp(2) / (math.exp(1) + math.exp(2) + 1))
    assert loss.nats.tolist() == pytest.approx([first, math.log(3)])
    assert loss.units.tolist() == [1, 1]
    assert loss.metrics["accuracy"].tolist() == [1, 0]
    weighted = TextClassificationConfig(labels=ABC, class_weights={"c": 2.0})
    assert text_classification(logits, torch.tensor([1, 2]), weighted).nats.tolist() == pytest.approx(
        [first, 2 * math.log(3)]
    )


def test_several_labels_by_hand() -> None:
    config = TextClassificationConfig(labels=ABC, multi_label=True, class_weights={"a": 3.0})
    logits, targets = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[1, 0, 1]])
    loss = text_classification(logits, targets, config)

    def log_sigmoid(x: float) -> float:
        return -math.log(1 + math.exp(-x))

    expected = -(3 * log_sigmoid(1.0) + log_sigmoid(2.0) + log_sigmoid(0.5)) / 3
    assert loss.nats.item() == pytest.approx(expected)
    assert loss.metrics["accuracy"].item() == 1
    strict = config.model_copy(update={"threshold": 0.7})  # sigmoid(0.5) = 0.62 says no
    assert text_classification(logits, targets, strict).metrics["accuracy"].item() == 0


def test_tags_by_hand() -> None:
    logits = torch.zeros(2, 3, 2)
    logits[0, 1] = torch.tensor([0.0, 1.0])
    targets = torch.tensor([[-100, 1, 0], [-100, -100, 1]])
    loss = token_classification(logits, targets, TokenClassificationConfig(labels=("O", "X")))
    assert loss.nats.tolist() == pytest.approx([math.log(1 + math.e) - 1 + math.log(2), math.log(2)])
    assert loss.units.tolist() == [2, 1]
    assert loss.metrics["accuracy"].tolist() == [2, 0]  # of equal ones the first is taken


def test_spans_by_hand() -> None:
    start, end = torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[0.0, 2.0, 9.0]])
    real = torch.tensor([[True, True, False]])  # the third position is padding
    loss = extractive_qa(start, end, torch.tensor([[1, 1]]), real, ExtractiveQaConfig())
    expected = (math.log(1 + math.e) - 1 + math.log(1 + math.exp(2)) - 2) / 2
    assert loss.nats.item() == pytest.approx(expected)
    assert loss.metrics["accuracy"].item() == 1


def test_balanced_weights_are_scikit_learns() -> None:
    seen = ["a"] * 7 + ["b"] * 2 + ["c"]
    theirs = compute_class_weight("balanced", classes=np.array(ABC), y=seen)
    assert balanced(ABC, seen) == pytest.approx(dict(zip(ABC, theirs, strict=True)))
    assert balanced((*ABC, "d"), seen)["d"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": ["a", "a"]}, "stands twice"),
        ({"labels": ["a"]}, "at least 2"),
        ({"labels": ["a", "b"], "class_weights": {"c": 1.0}}, "'c' is none of the labels a, b"),
    ],
)
def test_labels_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TextClassificationConfig.model_validate(settings)
    assert TextClassificationConfig.model_validate({"labels": [0, True]}).labels == ("0", "true")


# ---- transformers' own losses -----------------------------------------------------------------------------------------


def folders(pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [pico_path("llama"), pico_path("gpt2"), pico_encoder(tmp_path_factory.mktemp("encoder"))]


def made(folder: Path, head: Head, labels: tuple[str, ...], **settings: object) -> object:
    return load_head_model(str(folder), head, labels, settings=settings, device="cpu", say=lambda _: None).model


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Rows of one length: transformers' losses for spans take padding into the softmax, ours does not."""
    return {"input_ids": torch.randint(5, 100, (3, 9), generator=torch.Generator().manual_seed(1))}


def test_as_transformers(
    pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory, batch: dict[str, Tensor]
) -> None:
    for folder in folders(pico_path, tmp_path_factory):
        model = made(folder, "sequence", ABC)
        targets = torch.tensor([0, 2, 1])
        theirs = model(**batch, labels=targets)  # type: ignore[operator]
        ours = text_classification(theirs.logits, targets, TextClassificationConfig(labels=ABC))
        assert ours.nats.mean().item() == pytest.approx(theirs.loss.item(), rel=1e-6)

        model = made(folder, "sequence", ABC, multi_label=True)
        many = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
        theirs = model(**batch, labels=many.float())  # type: ignore[operator]
        config = TextClassificationConfig(labels=ABC, multi_label=True)
        ours = text_classification(theirs.logits, many, config)
        assert ours.nats.mean().item() == pytest.approx(theirs.loss.item(), rel=1e-6)

        model = made(folder, "token", ABC)
        tags = torch.randint(0, 3, (3, 9), generator=torch.Generator().manual_seed(2))
        tags[0, :4] = tags[1, 5:] = -100
        theirs = model(**batch, labels=tags)  # type: ignore[operator]
        found = token_classification(theirs.logits, tags, TokenClassificationConfig(labels=ABC))
        assert (found.nats.sum() / found.units.sum()).item() == pytest.approx(theirs.loss.item(), rel=1e-6)

        model = made(folder, "answer", ())
        first, last = torch.tensor([1, 0, 4]), torch.tensor([3, 0, 8])
        theirs = model(**batch, start_positions=first, end_positions=last)  # type: ignore[operator]
        spans = torch.stack([first, last], 1)
        real = torch.ones(3, 9, dtype=torch.bool)
        loss = extractive_qa(theirs.start_logits, theirs.end_logits, spans, real, ExtractiveQaConfig())
        assert loss.nats.mean().item() == pytest.approx(theirs.loss.item(), rel=1e-6)
