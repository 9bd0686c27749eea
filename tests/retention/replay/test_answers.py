from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from posttrain.retention.replay import _answers
from posttrain.retention.replay._answers import bounded, cached_tokens
from tests.pico import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_cached_token_takes(pico_path: Callable[[str], Path], family: str) -> None:
    """Against the cache itself: the bytes of all its tensors."""
    model = load_model(str(pico_path(family)), device="cpu").model
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cached_tokens(model, held) == 4
    assert cached_tokens(model, 1) == 1


def test_the_batch_is_bounded_by_the_cache(respondent: ModelRespondent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_answers, "cached_tokens", lambda model: 40)
    small = bounded(respondent)
    assert (small.batch_tokens, small.model) == (40, respondent.model)
    prompts = ["hello", "capital of France?"]
    assert small.answers(prompts) == respondent.answers(prompts)
