"""Respondents with a state, for tests: one that counts, and a model that learns a little from everything it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.inference.protocol import Answer, Generation, Prompt, Respondent, Scored, State, Told, Usage, nobody
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from tests.exams.table import BrokeDownError


class Counter(Respondent):
    """It answers how many calls it has had; `calls` has what was asked. dies_after: so many calls, then BrokeDownError."""

    stateful = True

    def __init__(self, dies_after: int | None = None) -> None:
        self.name, self.usage = "counter", Usage()
        self.seen, self.left = 0, dies_after
        self.calls: list[list[Any]] = []

    @property
    def fingerprint(self) -> str:
        return "counter"

    def _saw(self, asked: Sequence[Any]) -> None:
        if self.left == 0:
            raise BrokeDownError
        self.left = None if self.left is None else self.left - 1
        self.seen += 1
        self.calls.append(list(asked))

    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        self._saw(prompts)
        said = [Answer(str(self.seen), 1, True) for _ in prompts]
        for i, answer in enumerate(said):
            how.on_answer(i, answer)
        return said

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        self._saw(pairs)
        scored = [Scored(-float(self.seen + i), 1, 0) for i in range(len(pairs))]
        for i, one in enumerate(scored):
            on_scored(i, one)
        return scored

    def rolling(self, texts: Sequence[str], *, on_scored: Told = nobody) -> list[Scored]:
        return self.logprobs([("", text) for text in texts], on_scored=on_scored)

    def state(self) -> State:
        return State({"seen": self.seen}, {})

    def restore(self, state: State) -> None:
        self.seen = state.values.get("seen", 0)


class Adapting(ModelRespondent):
    """A model that takes a step of gradient on each item's prompt before it replies, in its last norm."""

    stateful = True

    def __init__(self, loaded: LoadedModel, rate: float = 3.0) -> None:
        super().__init__(loaded)
        self.rate = rate
        self.weight: Tensor = self.model.get_submodule("model.norm").weight
        self.first = self.weight.detach().clone()
        self.asked: list[list[Prompt]] = []
        assert self.fingerprint  # from now on, whatever is learned

    def _adapt(self, prompts: Sequence[Prompt]) -> None:
        self.asked.append(list(prompts))
        for prompt in dict.fromkeys(prompts):
            ids = torch.tensor([self.encode(prompt)])
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self.model(input_ids=ids, labels=ids).loss, self.weight)
            with torch.no_grad():
                self.weight -= self.rate * slope

    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        self._adapt(prompts)
        return super()._answers(prompts, how)

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        self._adapt([prompt for prompt, _ in pairs])
        return super().logprobs(pairs, on_scored=on_scored)

    def state(self) -> State:
        return State({"items": len(self.asked)}, {"weight": self.weight})

    @torch.no_grad()
    def restore(self, state: State) -> None:
        self.weight.copy_(state.tensors.get("weight", self.first))
