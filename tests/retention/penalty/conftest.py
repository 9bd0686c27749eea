from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from posttrain.retention.penalty._base import PenaltyContext
from tests.talker import talker


class Told(list[str]):
    """Collects what a penalty says."""


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def context(tmp_path: Path, told: Told) -> PenaltyContext:
    """Two tensors of a model that answers; the tests of formulas look at `trainable` only."""
    loaded = load_model(str(talker()), device="cpu")
    loaded.model.requires_grad_(True)
    trainable = {n: p for n, p in loaded.model.named_parameters() if "norm" in n or "q_proj" in n}
    respondent = ModelRespondent(loaded)
    return PenaltyContext(
        respondent,
        "start",
        loaded=loaded,
        trainable=trainable,
        base=tmp_path,
        cache=tmp_path / "cache",
        say=told.append,
    )


def on(context: PenaltyContext, trainable: dict[str, nn.Parameter], **changed: object) -> PenaltyContext:
    """The same context for other parameters."""
    return dataclasses.replace(context, trainable=trainable, **changed)  # type: ignore[arg-type]


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (3, 4), "a.bias": (3,), "score.weight": (2, 3)}
    return {n: nn.Parameter(torch.randn(s, generator=draw, dtype=torch.float64)) for n, s in shapes.items()}
