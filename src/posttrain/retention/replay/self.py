"""Replay the untouched model's own answers to given prompts: rehearsal without old data.

Before training, the model answers varied prompts. These answers are mixed into training and keep its behaviour. They
are the likeliest training data for this model, so only those that conflict with the new rows change the weights. Own
answers as rehearsal: Magpie, arXiv:2406.08464; rehearsal from a model's own samples: LAMOL, arXiv:1909.03329.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from posttrain.config.load import by_line
from posttrain.data.records import Conversation
from posttrain.errors import DataError, Problem
from posttrain.inference.decode import context_limit
from posttrain.inference.encoding import PromptReader
from posttrain.inference.locations import located
from posttrain.models.vocabulary import rows_of
from posttrain.registry import register
from posttrain.retention.replay._answers import answered_once
from posttrain.retention.selection import (
    GENERAL_PROMPTS,
    PACKAGED_PROMPTS,
    ReplayConfig,
    ReplayContext,
    conversation,
    only_change_in_braces,
    packaged_prompts,
    read_prompts,
    select,
    short_of,
    sifted_prompts,
)

__all__ = ["SelfReplayConfig", "self_replay"]


class SelfReplayConfig(ReplayConfig):
    """The model's own answers to given prompts."""

    kind: Literal["self"] = "self"
    """The untouched model answers given prompts."""
    prompts: str | tuple[str, ...] | None = None
    """A JSONL file of {"prompt": ...} rows, or several; in a study, {change} in a path becomes the change's name. When
    left out, packaged ones in English and Chinese: 328 of 25 kinds, or for pocket 720 of the kinds that it knows."""
    n: int | None = Field(default=None, gt=0)
    """How many prompts are used, drawn by the seed; all when left out."""
    max_new_tokens: int = Field(default=128, gt=0)
    """The longest answer; one that is cut there is learned without an end, since it has none."""

    @field_validator("prompts")
    @classmethod
    def _only_change_in_braces(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        paths = (value,) if isinstance(value, str) else value
        if paths is not None and not (paths and all(paths)):
            raise ValueError("no file is named: leave prompts out for those of the package")
        only_change_in_braces(paths or ())
        return value

    def files(self) -> list[str]:
        """Return the paths of the prompts files."""
        return [self.prompts] if isinstance(self.prompts, str) else list(self.prompts or ())

    def for_change(self, name: str) -> SelfReplayConfig:
        """Return this replay with a change's name in the paths."""
        paths = tuple(path.replace("{change}", name) for path in self.files())
        return self.model_copy(update={"prompts": paths}) if paths else self

    def made_tokens(self, base: Path) -> int:
        """Return the tokens of all answers, if each is half as long as the limit."""
        paths = [base / path for path in self.files()] or [GENERAL_PROMPTS]
        count = len({prompt.text for path in paths for prompt in read_prompts(path)})
        return min(self.n or count, count) * self.max_new_tokens // 2

    def _paths(self, base: Path, tokenizer: Any) -> list[Path]:
        return [base / path for path in self.files()] or [packaged_prompts(tokenizer)]

    def asked(self, base: Path, tokenizer: Any, seed: int) -> tuple[dict[str, str], list[Problem]]:
        """Return the prompts for the model, each with its location, and the problems of bad rows."""
        locations: dict[str, str] = {}
        problems: list[Problem] = []
        for path in self._paths(base, tokenizer):
            good, bad = sifted_prompts(path)
            problems += bad
            for prompt in good:
                locations.setdefault(prompt.text, prompt.location)
        if self.n is None or self.n >= len(locations):
            return locations, problems
        return {prompt: locations[prompt] for prompt in random.Random(seed).sample(list(locations), self.n)}, problems

    def check(self, base: Path, reader: PromptReader, seed: int) -> str:
        """Raise DataError for all rows without a prompt and all prompts that the model cannot read, in order of lines.
        Return a sentence if there are fewer different prompts than `n`, else an empty string.
        """
        asked, problems = self.asked(base, reader.tokenizer, seed)
        try:
            with located(list(asked.values()).__getitem__):
                reader.check(list(asked))
        except DataError as error:
            problems += error.problems
        if problems:
            files = list(dict.fromkeys(problem.location.rpartition(":")[0] for problem in problems))
            files.sort(key=[*map(str, self._paths(base, reader.tokenizer)), ""].index)  # a count has no location
            of = {file: by_line([p for p in problems if p.location.rpartition(":")[0] == file]) for file in files}
            raise DataError(*(problem for file in files for problem in of[file]))
        return short_of(self.n, len(asked))

    def rows(self, base: Path) -> list[Conversation]:
        """Return the prompts as conversations with empty answers."""
        paths = [base / path for path in self.files()] or [GENERAL_PROMPTS, PACKAGED_PROMPTS]
        return [conversation(prompt.text, "", prompt.location) for path in paths for prompt in read_prompts(path)]


@register("replay", "self", config=SelfReplayConfig, paper="arXiv:2406.08464")
def self_replay(config: SelfReplayConfig, context: ReplayContext) -> list[Conversation]:
    """Answer the prompts greedily with the untouched model; leave out those that the exam asks."""
    respondent = context.respondent
    reader = PromptReader(respondent.tokenizer, rows_of(respondent.model), context_limit(respondent.model))
    # report all problems at once, before any prompt is answered
    if short := config.check(context.base, reader, context.seed):
        context.say(short)
    asked, _ = config.asked(context.base, respondent.tokenizer, context.seed)
    with located(list(asked.values()).__getitem__):
        made = answered_once(list(asked), context, config.max_new_tokens)
    selection = select(made, context.forbidden, ", ".join(config.files()) or "the packaged prompts")
    context.say(f"replay of own answers: {selection}")
    return selection.conversations
