"""A source that makes its rows while the model trains: the same again after a kill, and without a number of steps."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.chat import Encoded, encode_all
from posttrain.data.records import Conversation, Message, PromptOnly
from posttrain.errors import ConfigError, Interrupted, TrainingError
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel, load_model
from posttrain.training.batches import Learner
from posttrain.training.run import TrainResult, train
from posttrain.training.steps import Drawn, StepRows
from tests.processes import Started
from tests.talker import KNOWN, talker
from tests.training.test_resume import assert_same_run
from tests.training.tiny import Remembers, config, weights

PROMPTS = [PromptOnly((Message("user", q),), f"prompts.jsonl:{i}") for i, q in enumerate(KNOWN, start=1)]
WANTED = "o"
"""The letter that answers shall hold."""


class Rollouts:
    """Each step: two prompts are answered four times each, by lot; the answers with most wanted letters are learned.

    It ends when the best scores add up to enough. What it holds besides its number of steps is the best score of each
    prompt: an answer is learned only where it beats that.
    """

    def __init__(self, learner: Learner, *, enough: int = 99, kill_before: int = 0, most: int | None = None) -> None:
        self.learner, self.enough, self.kill_before, self.total = learner, enough, kill_before, most
        self.given = 0
        self.best: dict[str, int] = {}
        self.said: list[list[str]] = []

    def __iter__(self) -> Iterator[StepRows]:
        while sum(self.best.values()) < self.enough and self.given != self.total:
            if self.kill_before and self.given + 1 == self.kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            rows = self._rows()
            self.given += 1
            yield StepRows([[Drawn(row) for row in rows]])

    def state(self) -> Mapping[str, Any]:
        return {"best": self.best}

    def restore(self, steps: int, state: Mapping[str, Any]) -> None:
        self.given, self.best = steps, dict(state.get("best", {}))

    def _rows(self) -> list[Encoded]:
        asked = [PROMPTS[(2 * self.given + i) % len(PROMPTS)] for i in range(2) for _ in range(4)]
        model, tokenizer = self.learner.model, self.learner.tokenizer
        respondent = ModelRespondent(LoadedModel(model, tokenizer, "policy"))
        model.eval()
        said = respondent.generate([p.text for p in asked], max_new_tokens=6, temperature=2.5, seed=self.given)
        model.train()
        self.said.append(said)
        scored = sorted(zip(asked, said, strict=True), key=lambda pair: -pair[1].count(WANTED))
        chosen = []
        for prompt, answer in scored[:3]:
            if answer.count(WANTED) >= self.best.get(prompt.location, 0):
                self.best[prompt.location] = answer.count(WANTED)
                chosen.append(
                    Conversation((*prompt.messages, Message("assistant", answer.strip() or "no")), prompt.location)
                )
        return encode_all(chosen or [_fallback(asked[0])], tokenizer, max_length=64).rows


def _fallback(prompt: PromptOnly) -> Conversation:
    return Conversation((*prompt.messages, Message("assistant", KNOWN[prompt.text])), prompt.location)


OPTIMIZER = {"learning_rate": 3e-3, "max_steps": 6, "schedule": "linear"}


def go(output: Path | None = None, *, kill_before: int = 0, resume: bool = True, **more: Any) -> TrainResult:
    chosen = {"optimizer": OPTIMIZER, "save_every_steps": 2, "tuner": {"kind": "lora", "rank": 4}, **more}
    made: list[Rollouts] = []

    def source(learner: Learner) -> Rollouts:
        made.append(Rollouts(learner, kill_before=kill_before))
        return made[0]

    loaded = copy.deepcopy(load_model(str(talker()), device="cpu"))
    result = train(config(**chosen), loaded=loaded, source=source, output=output, resume=resume)
    assert made[0].given == result.steps
    return result


def killed(folder: str, output: Path) -> None:
    """In a process of its own, which has the talker of this one: killed before step 4, two steps after a checkpoint."""
    talker.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.training.test_rollouts.talker", lambda: folder)
        go(output, kill_before=4)


@pytest.fixture(scope="module")
def whole() -> TrainResult:
    """Six steps without a stop."""
    return go()


def test_rows_are_made_by_the_model_as_it_is(whole: TrainResult) -> None:
    sources: list[Rollouts] = []

    def source(learner: Learner) -> Rollouts:
        sources.append(Rollouts(learner))
        return sources[0]

    loaded = copy.deepcopy(load_model(str(talker()), device="cpu"))
    frozen = train(
        config(optimizer={**OPTIMIZER, "learning_rate": 1e-12}, tuner={"kind": "lora", "rank": 4}),
        loaded=loaded,
        source=source,
    )
    still = sources.pop().said
    train(
        config(optimizer={**OPTIMIZER, "learning_rate": 3e-2}, tuner={"kind": "lora", "rank": 4}),
        loaded=copy.deepcopy(load_model(str(talker()), device="cpu")),
        source=source,
    )
    moved = sources.pop().said
    assert frozen.steps == whole.steps == len(still) == len(moved) == 6
    assert moved[0] == still[0]  # the same weights, the same lot
    assert moved[-1] != still[-1]


def test_kill_9_and_the_same_command_are_one_run(tmp_path: Path, whole: TrainResult) -> None:
    output = tmp_path / "run"
    process = Started(killed, str(talker()), output, folder=tmp_path, threads=torch.get_num_threads())
    code, _, err = process.finish()
    assert code == -signal.SIGKILL, err
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-2"]
    assert (output / "checkpoints" / "step-2" / "source.json").is_file()
    assert_same_run(whole, go(output))


def test_ctrl_c_saves_the_source_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: TrainResult) -> None:
    made, rows = [], Rollouts._rows

    def interrupted(self: Rollouts) -> list[Encoded]:
        made.append(self.given)
        if self.given == 2:
            signal.raise_signal(signal.SIGINT)
        return rows(self)

    with monkeypatch.context() as patch:
        patch.setattr(Rollouts, "_rows", interrupted)
        with pytest.raises(Interrupted, match=r"stopped after step 3 of 6"):
            go(tmp_path / "run")
    assert made == [0, 1, 2]
    assert_same_run(whole, go(tmp_path / "run"))


def test_the_number_of_steps_need_not_be_known(tmp_path: Path) -> None:
    """The source ends by itself; the last step is validated and saved like any other."""
    sources: list[Rollouts] = []

    def source(learner: Learner) -> Rollouts:
        sources.append(Rollouts(learner, enough=3))
        return sources[0]

    remembers = Remembers()
    settings: dict[str, Any] = {"evaluate_every_steps": 50, "optimizer": {"learning_rate": 3e-2, "warmup_steps": 2}}
    loaded = copy.deepcopy(load_model(str(talker()), device="cpu"))
    held = encode_all([_fallback(PROMPTS[0])], loaded.tokenizer, max_length=64).rows
    result = train(
        config(**settings), loaded=loaded, source=source, validation_rows=held, output=tmp_path, progress=remembers
    )
    assert result.steps == sources[0].given > 0
    assert sum(sources[0].best.values()) >= 3
    assert result.best_step == result.steps  # measured once, at the end
    assert [e["step"] for e in result.history if "loss_nats" in e] == list(range(1, result.steps + 1))
    assert any(torch.any(a != b) for a, b in zip(weights(loaded.model).values(), _before().values(), strict=True))


def _before() -> dict[str, torch.Tensor]:
    return weights(load_model(str(talker()), device="cpu").model)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"optimizer": {"schedule": "cosine"}},
            r"optimizer\.schedule: needs the number of steps.*optimizer\.max_steps",
        ),
        ({"optimizer": {"warmup_share": 0.1}}, r"optimizer\.warmup_share.*or warmup_steps"),
        ({"optimizer": {"epochs": 2}}, r"optimizer\.epochs"),
        ({"objective": "kto"}, "objective.*looks at all rows before the first step"),
    ],
)
def test_settings_that_need_the_number_of_steps_say_so(settings: dict[str, Any], named: str) -> None:
    loaded = load_model(str(talker()), device="cpu")
    with pytest.raises(ConfigError, match=named):
        train(config(**settings), loaded=loaded, source=Rollouts)
    given = {"optimizer": {"schedule": "cosine", "max_steps": 1, "warmup_share": 0.1}}
    assert train(config(**given), loaded=loaded, source=Rollouts).steps == 1


def test_validation_without_a_number_of_steps_wants_its_own() -> None:
    loaded = load_model(str(talker()), device="cpu")
    held = encode_all([_fallback(PROMPTS[0])], loaded.tokenizer, max_length=64).rows
    with pytest.raises(ConfigError, match=r"evaluate_every_steps: needs the number of steps.*or evaluate_every_steps"):
        train(config(), loaded=loaded, source=Rollouts, validation_rows=held)


def test_a_source_without_a_step_is_an_error() -> None:
    with pytest.raises(TrainingError, match="there is no step to learn from"):
        train(
            config(optimizer={"max_steps": 3}),
            loaded=load_model(str(talker()), device="cpu"),
            source=lambda learner: Rollouts(learner, most=0),
        )


def test_a_rate_may_be_searched_on_rows_that_are_made(tmp_path: Path) -> None:
    settings = {"optimizer": {"learning_rate": "find", "max_steps": 2}}
    result = train(
        config(**settings),
        loaded=copy.deepcopy(load_model(str(talker()), device="cpu")),
        source=Rollouts,
        output=tmp_path / "run",
    )
    assert result.steps == 2
