"""What a run is put together from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import Encoded
from posttrain.errors import ConfigError
from posttrain.inference.respondents import ModelRespondent
from posttrain.retention.penalty import _measured
from posttrain.training.preview import preview
from posttrain.training.run import train
from tests.training.tiny import PicoPath, config, load, rows


@pytest.mark.parametrize("tuner", ["lora", "ptuning_v2"])
def test_penalties_ask_the_model_as_it_was_before_the_tuner(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuner: str
) -> None:
    """A new prefix, drawn at random, would put other words into the model's mouth."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    before = ModelRespondent(load(pico_path)).logprobs([("Who are you?", "A tiny model.")])
    asked: list[Any] = []

    def answers(count: int, context: Any, respondent: ModelRespondent, fingerprint: str | None) -> list[Encoded]:
        asked.append(respondent.logprobs([("Who are you?", "A tiny model.")]))
        return rows(2)

    monkeypatch.setattr(_measured, "own_answers", answers)
    loaded = load(pico_path)
    train(config(tuner=tuner, penalty="ewc", optimizer={"max_steps": 1}), loaded=loaded, rows=rows(2))
    after = ModelRespondent(loaded).logprobs([("Who are you?", "A tiny model.")])
    assert asked == [before]
    if tuner == "ptuning_v2":
        assert after != before  # so the test could fail


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"objective": "dpo", "penalty": "kl_to_base"}, "kl_to_base compares logits"),
        ({"objective": "grad_ascent", "replay": "self"}, "grad_ascent retains nothing"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_before_anything_is_read(parts: dict[str, Any], message: str) -> None:
    settings = config(model="pocket:chat", **parts)
    for refused in (preview, train):
        with pytest.raises(ConfigError, match=message):
            refused(settings)
