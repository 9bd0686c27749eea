"""Respondents that say what a table says, and count what they are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from posttrain.config.change import Change
from posttrain.exams.change import change_task
from posttrain.exams.kept import MAX_NEW_TOKENS, opinion_of, prompts_of
from posttrain.exams.records import ProbeResult
from posttrain.exams.running import Cache, TaskResult, run_task
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


def examined(
    before: Respondent,
    after: Respondent,
    change: Change,
    *,
    cache: Cache | None = None,
    judge: Respondent | None = None,
    **settings: Any,
) -> TaskResult[ProbeResult]:
    """The change exam of one change."""
    task = change_task(change, judge=judge, **settings)
    return run_task(after, task, before=before, judge=judge, cache=cache)


def judge_same(judge: Respondent, rows: Sequence[tuple[str, str, str]]) -> list[bool | None]:
    """What a judge thinks of each (prompt, answer before, answer after), all asked in one call."""
    asked = [prompts_of(judge, *row) for row in rows]
    prompts = [prompt for each in asked for prompt in each]
    said = iter(judge.generate(prompts, max_new_tokens=MAX_NEW_TOKENS) if prompts else [])
    return [opinion_of([next(said) for _ in each]) for each in asked]


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
        scored = [Scored(self.likes.get(answer, -9.0), len(answer), 0) for _, answer in pairs]
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
