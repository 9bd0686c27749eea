"""BIG-bench's JSON tasks: a `task.json`, or a folder of subtasks with one each."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from posttrain.data.lengths import listed
from posttrain.errors import DataError, MissingError, Problem
from posttrain.exams.records import Sample
from posttrain.exams.rows import read_json
from posttrain.exams.score_spec import specs
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, choice_asks, chosen, the_answer
from posttrain.inference.protocol import Plain
from posttrain.registry import register

__all__ = ["BigbenchConfig", "bigbench"]

INPUT, OUTPUT, CHOICE = "\nQ: ", "\nA: ", "\n  choice: "
"""BIG-bench's prefixes, used when the file does not give its own."""
TEXTS = ("task_prefix", "example_input_prefix", "example_output_prefix", "choice_prefix", "output_regex", "stop_string")
KNOWN = ("multiple_choice_grade", "exact_str_match")


class BigbenchConfig(TaskConfig):
    """A task of BIG-bench."""

    kind: Literal["bigbench"] = "bigbench"
    """A BIG-bench JSON task."""
    shots: int = Field(default=0, ge=0)
    """Solved examples of the same file before each question, drawn by the seed for each."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Tokens of an answer that is said."""


@register("exam", "bigbench", config=BigbenchConfig, paper="arXiv:2206.04615")
def bigbench(config: BigbenchConfig, base: Path) -> Task:
    """Return the task of a `task.json`, of a folder that has one, or of a folder of subtasks, each of them a group.

    Raise MissingError without a `task.json`, and DataError with every wrong key and example.
    """
    path = config.source(base, what="a task.json or its folder")
    files = [path] if path.is_file() else sorted(path.rglob("task.json"))
    if not files:
        raise MissingError(Problem(str(path), "no task.json", "name the file, or the folder that has it"))
    problems: list[Problem] = []
    items: list[Item] = []
    notes: list[str] = []
    name = path.parent.name if path.is_file() else path.name
    for file in files:
        group = file.parent.name if len(files) > 1 else ""
        items += _items(file, group, config, problems, notes)
    if problems:
        raise DataError(*listed(problems))
    sizes = {len(item.doc["scores"]) for item in items if item.doc["scores"]}
    headline = "multiple_choice_grade" if sizes else "exact_str_match"
    form = "chat" if config.template == "chat" else "plain"
    return Task(
        items=items,
        judge=_judge,
        headline=headline,
        capabilities={headline: "can.reasoning"},
        scores=(*specs("multiple_choice_grade", unit="grade"), *specs("exact_str_match", "exact_loose")),
        signature=f"bigbench|{name}|{config.shots}-shot|{form}|{config.max_new_tokens} tokens|v1",
        chance=1 / sizes.pop() if len(sizes) == 1 else None,
        notes=tuple(notes),
    )


def _items(file: Path, group: str, config: BigbenchConfig, problems: list[Problem], notes: list[str]) -> list[Item]:
    """Return the questions of a `task.json`; add its errors to `problems`, and remarks to `notes`."""
    told = read_json(file)
    examples = told.get("examples") if isinstance(told, dict) else None
    if not isinstance(examples, list) or not examples:
        problems.append(Problem(str(file), "no list 'examples'", "a BIG-bench task.json is expected"))
        return []
    before = len(problems)
    metrics = told.get("metrics", [])
    if not isinstance(metrics, list) or not all(isinstance(metric, str) for metric in metrics):
        problems.append(Problem(str(file), "'metrics' must be a list of names"))
    problems += [
        Problem(str(file), f"'{key}' must be a text") for key in TEXTS if not isinstance(told.get(key) or "", str)
    ]
    try:
        re.compile(told.get("output_regex") or "")
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        problems.append(Problem(str(file), f"'output_regex' is no regular expression: {error}"))
    for number, example in enumerate(examples):
        if wrong := _wrong(example):
            problems.append(Problem(f"{file}: examples[{number}]", wrong))
    if len(problems) > before:
        return []
    unknown = [m for m in metrics if m not in KNOWN]
    if unknown:
        notes.append(f"{file.parent.name}: not scored by {', '.join(unknown)}")
    made: dict[str, Item] = {}
    prefix = f"{file.parent.name}-" if group else ""
    for number, example in enumerate(examples):
        rng = random.Random(f"{config.seed} {number}")
        body = _asked(told, example, rng)
        key = json.dumps(example, sort_keys=True)
        if key in made:  # BIG-bench asks equal examples once
            continue
        others = [e for i, e in enumerate(examples) if i != number]
        shown = rng.sample(others, min(config.shots, len(others)))
        text = (told.get("task_prefix") or "") + "".join(f"{_asked(told, e, rng)}{_right(e)}" for e in shown) + body
        item = _item(f"{prefix}{number}", group, told, example, text, config)
        made[key] = replace(item, location=f"{file}: examples[{number}]")
    twice = len(examples) - len(made)
    if twice:
        notes.append(f"{file.parent.name}: {twice} examples that stand twice are asked once")
    return list(made.values())


def _wrong(example: Any) -> str:
    """Return the error in an example, or an empty text when there is none."""
    if not isinstance(example, dict) or not isinstance(example.get("input"), str):
        return "'input' (a text) is expected"
    scores, targets = example.get("target_scores"), _targets(example)
    if scores is not None:
        right = isinstance(scores, dict) and len(scores) > 1
        if not right or not all(isinstance(v, int | float) for v in scores.values()):
            return "'target_scores' must be an object of two choices or more with a number each"
    elif not isinstance(targets, list) or not targets or not all(isinstance(t, str) for t in targets):
        return "'target' (a text or a list of texts) or 'target_scores' is expected"
    return ""


def _targets(example: Mapping[str, Any]) -> Any:
    """Return the accepted answers as a list; a single answer becomes a list of one."""
    target = example.get("target")
    return [target] if isinstance(target, str) else target


def _asked(told: Mapping[str, Any], example: Mapping[str, Any], rng: random.Random) -> str:
    """Return the prompt of an example up to its answer: the input and, if the file says so, the choices. The choices
    are in a random order."""
    text = f"{told.get('example_input_prefix', INPUT)}{example['input']}"
    if example.get("target_scores") and told.get("append_choices_to_input", True):
        choices = sorted(example["target_scores"])
        rng.shuffle(choices)
        text += "".join(f"{told.get('choice_prefix', CHOICE)}{choice}" for choice in choices)
    return f"{text}{told.get('example_output_prefix', OUTPUT)}"


def _right(example: Mapping[str, Any]) -> str:
    """Return the right answer: the choice with the highest target score, or the first accepted text."""
    scores = example.get("target_scores")
    return str(max(scores, key=lambda choice: scores[choice])) if scores else str(_targets(example)[0])


def _item(
    id: str, group: str, told: Mapping[str, Any], example: Mapping[str, Any], text: str, config: BigbenchConfig
) -> Item:
    scores = dict(example.get("target_scores") or {})
    doc = {"scores": scores, "target": [] if scores else _targets(example), "regex": told.get("output_regex", "")}
    prompt = text.strip() if config.template == "chat" else Plain(text)
    if scores:
        return Item(id, example["input"], choice_asks(prompt, list(scores)), group, doc)
    stop = told.get("stop_string") or told.get("example_input_prefix", INPUT)
    stops = (stop,) if stop.strip() and config.template != "chat" else ()
    ask = Ask("say", prompt, max_new_tokens=config.max_new_tokens, stop=stops)
    return Item(id, example["input"], (ask,), group, doc)


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    scores: dict[str, float] = dict(item.doc["scores"])
    if scores:
        names = list(scores)
        choice = chosen(replies, names)
        answer, target = names[choice.best], max(names, key=lambda name: scores[name])
        grade = {"multiple_choice_grade": float(scores[answer])}
        right, sure = scores[answer] == scores[target], max(choice.shares)
        extra = {"shares": [round(share, 6) for share in choice.shares]}
        return item.sample(answer, target, grade, correct=right, choices=len(names), confidence=sure, extra=extra)
    said = the_answer(replies)
    text = said.text
    if item.doc["regex"]:
        found = re.search(item.doc["regex"], text)
        text = ((found[1] or "") if found.groups() else found[0]) if found else ""
    right = text.strip() in {target.strip() for target in item.doc["target"]}
    nearly = right or _plain(text) in {_plain(target) for target in item.doc["target"]}
    matched = {"exact_str_match": float(right), "exact_loose": float(nearly)}
    return item.sample(said.text.strip(), item.doc["target"][0], matched, said, correct=right)


def _plain(text: str) -> str:
    """Return a text as `exact_loose` compares it: lower case, one space between words, no punctuation, no articles. A
    text that becomes empty by this is returned as it is."""
    words = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return " ".join(word for word in words if word not in ("a", "an", "the")) or text.strip()
