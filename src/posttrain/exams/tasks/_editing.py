"""What the exams of editing data sets share: the file with its slice, prompts and targets, and answers by group.

`template: plain`, the standard of all four, continues the prompt: a target follows after exactly one space, or, beside
Chinese, without one. The tokens that are scored are those that the respondent sees behind the prompt. `template: chat`
asks the prompt as a user of the chat template, and a target is the assistant's words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from posttrain.data.edits.files import EditSet, read_edit_set, split_part
from posttrain.data.scripts import CJK
from posttrain.errors import ConfigError, Problem
from posttrain.exams.matching import matches
from posttrain.exams.metrics.editing import answer_begins, answer_is, answer_says
from posttrain.exams.metrics.fluency import ngram_entropy, words
from posttrain.exams.records import Sample
from posttrain.exams.task import Ask, Item, Reply, TaskConfig, answered, resolve
from posttrain.inference.protocol import Answer, Plain, Prompt, Scored

GENERATED = 100
"""Number of tokens of a generation for fluency."""
GREEDY = (
    f"fluency is of greedy texts of at most {GENERATED} tokens; papers draw from the five likeliest tokens, "
    "which gives higher values"
)
_UNSPACED = re.compile(rf"[{CJK}、。，；：？！「」『』（）《》〈〉…]")
"""Matches a character beside which no space stands."""


class EditSetConfig(TaskConfig):
    """What every exam of an editing data set has."""

    max_new_tokens: int = Field(default=20, gt=0)
    """The longest free answer, in tokens; its first line counts."""

    def files(self) -> list[str]:
        """Return the file of the records, without a slice."""
        return [split_part(path)[0] for path in super().files()]

    def records(self, base: Path) -> tuple[Path, EditSet]:
        """Return the file and the records of the slice. ConfigError for a missing path and for perturbations, DataError
        with every wrong record.
        """
        self.source(base, what="the data set's .json file, perhaps with a slice such as [:200]")
        if self.perturbations:
            mend = "leave perturbations out, or disturb the file itself"
            cause = "a record asks several prompts, and none of them is the question"
            raise ConfigError(Problem(self.label, cause, mend))
        name, part = split_part(str(self.path))
        return resolve(name, base), read_edit_set(resolve(name, base), part, form=self.kind)

    @property
    def wording(self) -> Wording:
        """How prompts and targets are put."""
        return Wording(chat=self.template == "chat", max_new_tokens=self.max_new_tokens)

    def signed(self, version: str, *more: str) -> str:
        """Return the signature, without the slice: a larger one has the samples of a smaller one. version: of the
        scores; more: other settings that they depend on.
        """
        file, form = Path(split_part(str(self.path))[0]).name, "chat" if self.template == "chat" else "plain"
        return "|".join((self.kind, file, form, *more, f"{self.max_new_tokens} tokens", version))


class Wording(NamedTuple):
    """How prompts and targets are put. chat: as a user asks and an assistant answers, else as text that goes on."""

    chat: bool
    max_new_tokens: int

    def prompt(self, text: str) -> Prompt:
        """Return a prompt."""
        return text if self.chat else Plain(text.rstrip())

    def target(self, prompt: str, target: str) -> str:
        """Return a target as it follows a prompt: after one space in plain text, or without one beside Chinese."""
        target, end = target.strip(), prompt.rstrip()[-1:]
        unspaced = self.chat or _UNSPACED.match(end) or _UNSPACED.match(target)
        return target if unspaced else f" {target}"

    def score(self, prompt: str, target: str) -> Ask:
        """Return the request for the likelihood of a target."""
        return Ask("score", self.prompt(prompt), self.target(prompt, target))

    def free(self, prompt: str) -> Ask:
        """Return the request for a free answer."""
        return Ask("say", self.prompt(prompt), max_new_tokens=self.max_new_tokens)

    def long(self, prompt: str) -> Ask:
        """Return the request for a text whose fluency is measured."""
        return Ask("say", self.prompt(prompt), max_new_tokens=GENERATED)

    def text(self, prompt: str, answer: Answer) -> str:
        """Return a generated text: in plain text with its prompt, as in the official code."""
        return answer.text if self.chat else prompt.rstrip() + answer.text

    def is_(self, answer: str, accepted: Sequence[str]) -> float:
        """Return whether a free answer is an accepted one, 0 or 1."""
        return float(answer_is(answer, accepted))

    def begins(self, answer: str, accepted: Sequence[str]) -> float:
        """Return whether a free answer begins with an accepted one, 0 or 1."""
        return float(answer_begins(answer, accepted))

    def says(self, answer: str, accepted: Sequence[str], prompt: str) -> float:
        """Return whether a free answer says an accepted one, 0 or 1: in plain text anywhere in its first line, in a
        chat in whatever sentence, as in the change exam.
        """
        return float(matches(answer, accepted, prompt=prompt) if self.chat else answer_says(answer, accepted))


class Asked(NamedTuple):
    """A request with its role in the item. of: what the scores are grouped by."""

    of: str
    ask: Ask


def item_of(number: str, question: str, asked: Sequence[Asked], doc: Mapping[str, object], location: str) -> Item:
    """Return an item. number: its id; asked: its requests."""
    doc = {**doc, "of": [one.of for one in asked]}
    return Item(number, question, tuple(one.ask for one in asked), doc=doc, location=location)


class Replies:
    """The replies to an item by the role of their requests, in order; those of the model before have `before.`
    first."""

    def __init__(self, item: Item, replies: Sequence[Reply]) -> None:
        self._item = item
        self._found: defaultdict[str, list[tuple[Ask, Reply]]] = defaultdict(list)
        self.tokens = 0
        for i, reply in answered(item, replies):
            ask = item.asks[i]
            self._found[f"before.{item.doc['of'][i]}" if ask.of == "before" else item.doc["of"][i]].append((ask, reply))
            self.tokens += reply.tokens if isinstance(reply, Answer | Scored) and not ask.of else 0

    def scored(self, of: str) -> list[Scored]:
        """Return the scores of a role."""
        return [reply for _, reply in self._found.get(of, ()) if isinstance(reply, Scored)]

    def said(self, of: str) -> list[Answer]:
        """Return the answers of a role."""
        return [reply for _, reply in self._found.get(of, ()) if isinstance(reply, Answer)]

    def sample(self, answer: str, target: str, scores: Mapping[str, float], **more: Any) -> Sample:
        """Return the judged sample. answer: the free answer to the question; more: as in `Item.sample`."""
        return self._item.sample(answer, target, scores, tokens=self.tokens, **more)


def fluency(texts: Sequence[str]) -> dict[str, float]:
    """Return the mean weighted n-gram entropy of texts, in bits and as papers print it; empty without texts."""
    if not texts:
        return {}
    bits = sum(ngram_entropy(words(text)) for text in texts) / len(texts)
    return {"fluency": bits, "fluency_x100": 100 * bits}


def put(scores: dict[str, float], key: str, values: Sequence[float]) -> None:
    """Put the mean of some values under a key, if there are any."""
    if values:
        scores[key] = sum(values) / len(values)
