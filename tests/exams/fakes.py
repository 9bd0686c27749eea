"""Respondents that say what a table says, and count what they are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from posttrain.inference.protocol import (
    Answer,
    Distributions,
    Generation,
    Plain,
    Prompt,
    Respondent,
    Scored,
    Told,
    Usage,
    nobody,
)


class Fake(Respondent):
    """says: prompt -> answer; likes: answer -> log-probability in nats; tables: prompt -> (A, V) distributions."""

    def __init__(
        self,
        name: str,
        says: Mapping[str, str],
        *,
        likes: Mapping[str, float] | None = None,
        tables: Mapping[str, Sequence[Sequence[float]]] | None = None,
        cut: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.says = says
        self.likes = likes or {}
        self.tables = tables
        self.cut = cut
        self.asked: list[list[Prompt]] = []
        self.shown = 0
        self.usage = Usage()

    @property
    def fingerprint(self) -> str:
        return self.name

    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        self.asked.append(list(prompts))
        words = [p if isinstance(p, str) else p.text if isinstance(p, Plain) else p[-1].content for p in prompts]
        said = [Answer(self.says[w], len(self.says[w]), w not in self.cut) for w in words]
        for i, answer in enumerate(said):
            how.on_answer(i, answer)
        return said

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        scored = [Scored(self.likes.get(answer, -9.0), len(answer), False) for _, answer in pairs]
        for i, one in enumerate(scored):
            on_scored(i, one)
        return scored

    def rolling(self, texts: Sequence[str], *, on_scored: Told = nobody) -> list[Scored]:
        return self.logprobs([("", text) for text in texts], on_scored=on_scored)

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        if self.tables is None:
            return None
        self.shown += len(prompts)
        tables = [torch.tensor(self.tables[str(p)]).log() for p in prompts]
        return [Distributions(tuple(range(len(t))), t) for t in tables]
