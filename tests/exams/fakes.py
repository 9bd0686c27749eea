"""Respondents that say what a table says, and count what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from posttrain.config.change import Change
from posttrain.exams.change import change_task
from posttrain.exams.judge import MAX_NEW_TOKENS, opinion_of, prompts_of
from posttrain.exams.records import ProbeResult
from posttrain.exams.running import Cache, TaskResult, run_task
from posttrain.inference.protocol import Respondent
from posttrain.inference.respondents import Answer, Distributions, Plain, Prompt, Scored, Usage


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


class Fake:
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
        self.fingerprint = name
        self.says = says
        self.likes = likes or {}
        self.tables = tables
        self.cut = cut
        self.asked: list[list[Prompt]] = []
        self.shown = 0
        self.usage = Usage()

    def answers(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        on_answer: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        self.asked.append(list(prompts))
        words = [p if isinstance(p, str) else p.text if isinstance(p, Plain) else p[-1].content for p in prompts]
        said = [Answer(self.says[w], len(self.says[w]), w not in self.cut) for w in words]
        for i, answer in enumerate(said if on_answer else ()):
            on_answer(i, answer)  # type: ignore[misc]
        return said

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        return [a.text for a in self.answers(prompts)]

    def logprobs(
        self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Callable[[int, Scored], None] | None = None
    ) -> list[Scored]:
        scored = [Scored(self.likes.get(answer, -9.0), len(answer), False) for _, answer in pairs]
        for i, one in enumerate(scored if on_scored else ()):
            on_scored(i, one)  # type: ignore[misc]
        return scored

    def rolling(self, texts: Sequence[str], *, on_scored: Callable[[int, Scored], None] | None = None) -> list[Scored]:
        return self.logprobs([("", text) for text in texts], on_scored=on_scored)

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        if self.tables is None:
            return None
        self.shown += len(prompts)
        tables = [torch.tensor(self.tables[str(p)]).log() for p in prompts]
        return [Distributions(tuple(range(len(t))), t) for t in tables]
