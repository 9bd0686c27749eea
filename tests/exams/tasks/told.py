"""A respondent for tests of tasks: it says and likes what functions of the prompt say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain import registry
from posttrain.exams import exam as exams
from posttrain.exams.capabilities import CAPABILITIES
from posttrain.exams.records import Sample
from posttrain.exams.task import Ask, Item, Task
from posttrain.inference.protocol import Answer, Plain, Prompt, Scored


def text_of(prompt: Prompt) -> str:
    if isinstance(prompt, Plain):
        return prompt.text
    return prompt if isinstance(prompt, str) else "\n".join(m.content for m in prompt)


def build(kind: str, base: Path, **settings: Any) -> Task:
    exam = exams.build(registry.load("exam", kind).config(**settings), base)
    assert isinstance(exam, exams.TaskExam)
    return exam.task


def judged(
    task: Task,
    says: Callable[[str], str] | str = "",
    likes: Callable[[str, str], float] | None = None,
) -> list[Sample]:
    """Every item judged. says: prompt -> answer; likes: (prompt, continuation) -> nats."""

    def reply(ask: Ask) -> Answer | Scored:
        prompt = text_of(ask.prompt)
        if ask.kind == "say":
            said = says if isinstance(says, str) else says(prompt)
            return Answer(said, len(said), True)
        nats = likes(prompt, ask.continuation) if likes is not None else -float(len(ask.continuation))
        return Scored(nats, max(1, len(ask.continuation)), 0)

    return [one(task, item, [reply(ask) for ask in item.asks]) for item in task.items]


def one(task: Task, item: Item, replies: Sequence[Answer | Scored]) -> Sample:
    sample = task.judge(item, replies)
    json.dumps(sample.to_json())  # a sample is a line of a file
    return Sample.from_json(json.loads(json.dumps(sample.to_json())))


def scores_of(task: Task, samples: Sequence[Sample]) -> Mapping[str, float]:
    made = task.aggregate(samples)
    assert task.headline in made
    for name in made:
        task.declared(name)
    assert set(task.capabilities.values()) <= set(CAPABILITIES)
    return {name: score.value for name, score in made.items()}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path
