"""A respondent for tests of editing exams: tokens are words, and what is likeliest stands in a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from posttrain.exams.running import TaskResult, run_task
from posttrain.exams.task import Task
from posttrain.inference.protocol import Prompt, Respondent, Scored, Told, nobody
from tests.exams.table import Table, words

Scores = Callable[[str, str], Scored]


def told(likeliest: str, target: str, nats: float = -1.0) -> Scored:
    """The score of a target whose tokens are its words, where these words are the likeliest."""
    best, own = tuple(likeliest.split()), target.split()
    return Scored(nats * len(own), len(own), sum(a == b for a, b in zip(best, own, strict=True)), best)


class Edited(Table):
    """scores: (prompt, continuation) -> score; says: prompt -> answer."""

    def __init__(
        self,
        scores: Scores = lambda prompt, text: told(text, text),
        says: Callable[[str], str] = lambda prompt: "",
        name: str = "edited",
        dies_after: int | None = None,
    ) -> None:
        super().__init__(says=says, name=name, dies_after=dies_after)
        self.scores = scores

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        return self._reply("score", pairs, [self.scores(words(prompt), text) for prompt, text in pairs], on_scored)


def taken(task: Task, respondent: Respondent, before: Respondent | None = None) -> TaskResult:
    """The result, with every declared score looked up, as an exam takes it."""
    found = run_task(respondent, task, before=before)
    for name in found.scores:
        task.declared(name)
    return found
