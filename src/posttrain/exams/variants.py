"""What a task asks in all: every item in its own words, then each of them as every perturbation has it.

Where a perturbation changes nothing in a text, nothing is asked: an answer to the same words is no evidence of
robustness.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from posttrain.data.records import Message
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.exams.perturb import perturb
from posttrain.exams.task import Item, Perturbation, Task
from posttrain.inference.protocol import Plain, Prompt

__all__ = ["Variant", "place_of", "variants_of"]


@dataclass(frozen=True)
class Variant:
    """An item as it is asked: in its own words, or perturbed. key: of the record that it becomes."""

    item: Item
    key: str
    perturbation: str = ""


def variants_of(task: Task[Any]) -> tuple[list[Variant], dict[str, int]]:
    """Every variant, and how many texts each perturbation leaves as they are. DataError for a task without items."""
    if not task.items:
        raise DataError(Problem(task.name, "the task has no items", "look at its file and its limit"))
    twice = [name for name, count in Counter(item.id for item in task.items).items() if count > 1]
    if twice:
        raise DataError(*(Problem(task.name, f"two items have the id '{name}'", "give each its own") for name in twice))
    found = [Variant(item, item.id if task.compares else f"{item.id}|") for item in task.items]
    unchanged: dict[str, int] = {}
    for kind in task.perturbations:
        other = [_perturbed(task, item, kind) for item in task.items]
        found += [Variant(item, f"{item.id}|{kind}", kind) for item in other if item is not None]
        unchanged[kind] = sum(item is None for item in other)
    return found, unchanged


def place_of(task: Task[Any], variant: Variant) -> str:
    """The exam, an item, and where that stands in a file."""
    if task.location is not None:
        return task.location(variant.item)
    disturbed = f", disturbed by '{variant.perturbation}'" if variant.perturbation else ""
    name = variant.item.id.removeprefix(":")  # :1 where the file names no subject
    named = f"exam {task.name}, item '{name}'{disturbed}"
    return f"{variant.item.location} ({named})" if variant.item.location else named


def _perturbed(task: Task[Any], item: Item, kind: Perturbation) -> Item | None:
    """The item with its question disturbed; None where nothing changes."""
    words = perturb(item.question, kind, seed=task.seed)
    if words == item.question:
        return None
    try:
        asks = tuple(ask._replace(prompt=_said(ask.prompt, item.question, words)) for ask in item.asks)
    except ValueError as error:
        cause = f"the task cannot be asked with '{kind}': the words of item '{item.id}' are not in its prompt"
        raise PosttrainError(Problem(place_of(task, Variant(item, "")), cause, "leave the perturbation out")) from error
    return replace(item, question=words, asks=asks)


def _said(prompt: Prompt, old: str, new: str) -> Prompt:
    """The prompt with the last `old` replaced: what stands before may be examples. ValueError when it is not there."""
    if isinstance(prompt, Plain):
        return Plain(_last_replaced(prompt.text, old, new))
    if isinstance(prompt, str):
        return _last_replaced(prompt, old, new)
    for at in range(len(prompt) - 1, -1, -1):
        if old and old in prompt[at].content:
            turn: Message = replace(prompt[at], content=_last_replaced(prompt[at].content, old, new))
            return (*prompt[:at], turn, *prompt[at + 1 :])
    raise ValueError(old)


def _last_replaced(text: str, old: str, new: str) -> str:
    if not old:
        raise ValueError(old)
    at = text.rindex(old)
    return text[:at] + new + text[at + len(old) :]
