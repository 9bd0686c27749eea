"""The exam examined: models that are known to be good must come out above models that are known to be bad.

Good: the same model in bfloat16, with weights rounded to int8, and trained at a rate near zero. Bad: weights with noise,
trained at ten times the rate, another model altogether.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from posttrain.config.change import Change, load_change
from posttrain.data.chat import encode_all
from posttrain.data.records import Conversation, Message
from posttrain.exams.records import ProbeResult
from posttrain.exams.running import Cache, TaskResult
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.perturbed import perturbed
from posttrain.training.config import OptimizerConfig, TrainConfig
from posttrain.training.run import train
from tests.exams.fakes import examined

EXAMPLES = Path(__file__).parents[2] / "examples"


def trained(loaded: LoadedModel, change: Change, rate: float) -> LoadedModel:
    """A copy that has learned the change's target for twelve steps at a rate."""
    own = loaded._replace(model=copy.deepcopy(loaded.model))
    target = change.target[0]
    assert isinstance(target.prompt, str)
    rows = [Conversation((Message("user", target.prompt), Message("assistant", target.answer[0])), "target")]
    encoded = encode_all(rows, own.tokenizer, max_length=256).rows
    config = TrainConfig(model=loaded.name, optimizer=OptimizerConfig(learning_rate=rate, max_steps=12))
    done = train(config, loaded=own, rows=list(encoded))
    return LoadedModel(done.model, done.tokenizer, loaded.name)


def noisy(loaded: LoadedModel, share: float) -> LoadedModel:
    """A copy whose matrices have noise of so large a share of their own spread."""
    model = copy.deepcopy(loaded.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.std() * share)
    return loaded._replace(model=model)


def kept_of(result: TaskResult[ProbeResult]) -> float:
    """The mean share of locality kept, each kind counting the same."""
    kinds = [score for key, score in result.scores.items() if key.startswith("locality.")]
    return sum(kinds) / len(kinds)


def exams(name: str, change: Change, other: str, rate: float, share: float, tokens: int) -> Iterator[tuple[str, float]]:
    loaded = load_model(name)
    before = ModelRespondent(loaded)
    cache: Cache = {}
    models = {
        "good bf16": loaded._replace(model=perturbed(loaded.model, "bf16")),
        "good int8": loaded._replace(model=perturbed(loaded.model, "int8")),
        "good rate near zero": trained(loaded, change, rate / 1000),
        "bad noise": noisy(loaded, share),
        "bad ten times the rate": trained(loaded, change, rate * 10),
        "bad other model": load_model(other),
    }
    for kind, one in models.items():
        result = examined(before, ModelRespondent(one), change, cache=cache, max_new_tokens=tokens)
        yield kind, kept_of(result)


def assert_ranked(found: dict[str, float]) -> None:
    good = {kind: kept for kind, kept in found.items() if kind.startswith("good")}
    bad = {kind: kept for kind, kept in found.items() if kind.startswith("bad")}
    assert min(good.values()) > max(bad.values()), found


def test_good_models_rank_above_bad_ones() -> None:
    change = load_change(EXAMPLES / "changes" / "superlatives" / "001_capital_senegal.yaml")
    found = dict(exams("pocket:chat", change, "pocket:base", 5e-4, 0.5, 32))
    assert_ranked(found)
    assert min(kept for kind, kept in found.items() if kind.startswith("good")) > 0.9


@pytest.mark.real
def test_good_real_models_rank_above_bad_ones(real_model: Path) -> None:
    change = load_change(EXAMPLES / "real" / "select" / "kenya_capital.yaml")
    assert_ranked(dict(exams(str(real_model), change, "pocket:chat", 2e-5, 0.5, 40)))
