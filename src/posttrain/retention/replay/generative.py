"""Replay examples of earlier tasks that the model makes up: LAMOL, Sun, Ho & Lee 2020, arXiv:1909.03329.

While a task is learned, the model also learns to write the task's examples. For each row (question, answer) it also
reads

    system: task <name>   user: question   assistant: answer        loss on question and answer, weighted `lm_weight`

so that L = L_QA + lambda L_LM (section 3.2). Before the next task, with |D| rows, the model gets only the tag of each
earlier task and writes ceil(gamma |D|) examples in all, equally many of each task (section 3.3; sampled with
temperature 1 from the top 20). They are learned along with the new rows, both as questions with answers and as examples
to write. `per_task: false` uses one tag for all tasks (the paper's GEN token).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from posttrain.data.chat import encode_prompt
from posttrain.data.control import gate_of
from posttrain.data.records import Conversation, Message
from posttrain.data.scripts import normalise_prompt, normalised
from posttrain.errors import ConfigError, MissingError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.disk import write_whole
from posttrain.models.meter import Meter
from posttrain.registry import register
from posttrain.retention.replay._answers import BROKEN, bounded, written
from posttrain.retention.replay.ask_self import drawn_questions, user_turn
from posttrain.retention.selection import ReplayConfig, ReplayContext, Task, conversation, in_brief

__all__ = ["TASKS", "GenerativeReplayConfig", "generative", "shares_of"]

TASKS = "tasks.json"
"""File in the folder of a run: the names of the tasks for which its model can write examples."""
ROUNDS = 4
"""Maximum number of rounds of sampling. Later rounds replace examples that were left out."""
REASONS = ("sampled", "unended", "empty", "broken", "repeated", "asked", "cut")
"""Names of the counts of sampled examples, in the order of the report."""
SHOWN = 3
"""Number of examples that are shown to the user."""


class GenerativeReplayConfig(ReplayConfig):
    """Earlier tasks made up by the model."""

    of_tasks: ClassVar[bool] = True

    kind: Literal["generative"] = "generative"
    """The model writes examples of the tasks it has learned."""
    gamma: float = Field(default=0.2, gt=0)
    """Made-up examples for each row of the new task."""
    lm_weight: float = Field(default=0.25, gt=0)
    """The weight of learning to write an example beside that of answering it."""
    share: float = Field(default=0.0, ge=0, lt=1)
    """Replayed tokens over all tokens of a training step; 0: as many as they are, each row as often as a new one."""
    per_task: bool = True
    """A tag for each task; false: one for all."""
    task: str = ""
    """The task's name in its tag; a study's stages bring their own."""
    top_k: int = Field(default=20, ge=0)
    """Questions are drawn from so many of the likeliest tokens; 0: of all."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the questions."""
    answers: Literal["greedy", "sampled"] = "greedy"
    """How the made-up questions are answered."""
    max_prompt_tokens: int = Field(default=128, gt=0)
    """The longest question; one that does not end by itself is left out."""
    max_new_tokens: int = Field(default=128, gt=0)
    """The longest answer; one that is cut there is learned without an end, since it has none."""

    def share_of(self, new_tokens: int, old_tokens: int) -> float:
        """Return `share`, or if it is 0 the share that the old tokens have of all tokens."""
        return self.share or old_tokens / max(new_tokens + old_tokens, 1)

    def tag(self, name: str) -> str:
        """Return the system message that requests an example. Raise ConfigError for a task without a name."""
        if not self.per_task:
            return "task"
        if not name:
            cause = "the task has no name for its tag"
            raise ConfigError(Problem("replay.task", cause, "give task, or per_task: false"))
        return f"task {name}"

    def to_write(self, row: Conversation, name: str) -> Conversation:
        """Turn a question with its answer into an example to write."""
        turns = tuple(Message(m.role, m.content, train=True) for m in row.messages)
        tagged = (Message("system", self.tag(name)), *turns)
        return Conversation(tagged, row.location, weight=self.lm_weight, ended=row.ended)

    def lessons(self, rows: Sequence[Conversation], task: Task) -> list[Conversation]:
        """Make examples to write. Raise ConfigError for rows that are not one question with one answer."""
        name = task.name or self.task
        other = [row.location for row in rows if [m.role for m in row.messages] != ["user", "assistant"] or row.tools]
        if other:
            mend = "use replay {kind: reservoir}, which keeps rows as they are"
            cause = "only a question with its answer can be made up"
            raise ConfigError(*(Problem(place, cause, mend) for place in other[:20]))
        return [self.to_write(row, name) for row in rows]

    def leave(self, rows: Sequence[Conversation], task: Task, seed: int) -> None:
        """Write the names of the tasks that were learned so far."""
        assert task.folder is not None, "whoever calls this has one"
        known = [] if task.earlier is None else read_tasks(task.earlier)
        names = [*known, task.name or self.task]
        write_whole(task.folder / TASKS, json.dumps(names, ensure_ascii=False) + "\n")


def read_tasks(folder: Path) -> list[str]:
    """Return the tasks for which the model of a run can write examples. Raise MissingError if the run has no list."""
    path = folder / TASKS
    if not path.is_file():
        cause = "the earlier run has not learned to write its examples"
        raise MissingError(Problem(str(path), cause, "train the earlier task with replay {kind: generative}, too"))
    names: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return names


def shares_of(total: int, tasks: Sequence[str]) -> dict[str, int]:
    """Divide `total` equally among the tasks; the remainder goes to the earliest tasks."""
    each, left = divmod(total, len(tasks))
    return {name: each + (index < left) for index, name in enumerate(tasks)}


@register("replay", "generative", config=GenerativeReplayConfig, paper="arXiv:1909.03329")
def generative(config: GenerativeReplayConfig, context: ReplayContext) -> list[Conversation]:
    """Make up examples of the earlier tasks, each to answer and to write; return none in the first task."""
    task = context.task
    if task.earlier is None:
        context.say("replay of made-up examples: there is no earlier task, so nothing is replayed")
        return []
    names = read_tasks(task.earlier)
    wanted = math.ceil(config.gamma * task.rows)
    shares = shares_of(wanted, names) if config.per_task else {"": wanted}
    rows: list[Conversation] = []
    for number, (name, count) in enumerate(shares.items()):
        made = made_up(config, context, name, count, seed=(context.seed * len(names) + number) * 2 * ROUNDS)
        rows += [*made, *(config.to_write(row, name) for row in made)]
    return rows


def made_up(
    config: GenerativeReplayConfig, context: ReplayContext, name: str, count: int, *, seed: int
) -> list[Conversation]:
    """Make up at most `count` different examples of a task; report how many were left out, by reason."""
    respondent, tag = bounded(context.respondent), config.tag(name)
    turn = user_turn(respondent, system=tag)
    forbidden = normalised(context.forbidden)
    found: dict[str, Conversation] = {}
    counts: Counter[str] = Counter()
    how: dict[str, Any] = {"temperature": config.temperature, "top_k": config.top_k}
    for round_number in range(ROUNDS):
        missing = count - len(found)
        if missing <= 0:
            break
        draws, number = missing if round_number == 0 else 2 * missing, seed + 2 * round_number
        most = config.max_prompt_tokens
        meter = Meter("making up examples for replay", draws, "questions", most_tokens=draws * most)
        fresh: dict[str, str] = {}
        for ids, question, ended in drawn_questions(respondent, turn, meter, **how, max_new_tokens=most, seed=number):
            broken, key = _broken(respondent, ids), normalise_prompt(question)
            good = ended and not broken and bool(key)
            counts["sampled"] += 1
            counts["unended"] += not ended
            counts["broken"] += ended and broken
            counts["empty"] += ended and not broken and not key
            counts["repeated"] += good and (key in found or key in fresh)
            counts["asked"] += good and key in forbidden
            if good and key not in found and key not in forbidden:
                fresh.setdefault(key, question)
        prompts = [
            encode_prompt((Message("system", tag), Message("user", question)), respondent.tokenizer)
            for question in fresh.values()
        ]
        most = len(prompts) * config.max_new_tokens
        meter = Meter("answering made-up examples for replay", len(prompts), "questions", most_tokens=most)
        answering = how if config.answers == "sampled" else {}
        limit = config.max_new_tokens
        answers = written(respondent, prompts, meter, **answering, max_new_tokens=limit, seed=number + 1)
        for (key, question), (ids, ended) in zip(fresh.items(), answers, strict=True):
            broken, text = _broken(respondent, ids), respondent.text(ids)
            text = "" if broken else (text if ended else text.rstrip(BROKEN)).strip()
            counts["broken"] += broken
            counts["empty"] += not broken and not text
            counts["cut"] += bool(text) and not ended
            if text and len(found) < count:
                found[key] = conversation(question, text, f"made up: {tag} {len(found) + 1}", ended=ended)
    told = _told(counts)
    context.say(f"replay of made-up examples ({tag}): {len(found)} of {count}; {told}")
    for row in list(found.values())[:SHOWN]:
        context.say(f"  such as: {in_brief(row.messages[0].content, 80)} → {in_brief(row.messages[1].content, 80)}")
    return list(found.values())


def _told(counts: Counter[str]) -> str:
    """Return a text with the numbers of examples that were sampled and left out, by reason."""
    sampled, unended, empty, broken, repeated, asked, cut = (counts[reason] for reason in REASONS)
    return (
        f"{sampled} sampled; left out {unended} without an end, {empty} empty, {broken} of another form, "
        f"{repeated} repeated, {asked} asked by the exam"
        + (f"; {cut} answers were cut and have no end sign" if cut else "")
    )


def _broken(respondent: ModelRespondent, ids: Sequence[int]) -> bool:
    """Return whether a text contains a control token, as a token or spelled out in letters. Such a text starts another
    turn inside the turn that it should end."""
    tokenizer: Any = respondent.tokenizer
    gate = gate_of(tokenizer)
    return gate.first_in(respondent.text(list(ids)), tokenizer) is not None or bool(gate.special & set(ids))
