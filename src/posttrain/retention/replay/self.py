"""Replay the untouched model's own answers to given prompts: rehearsal without old data.

Before training, the model answers varied prompts; these answers, mixed in, hold its behaviour in place. As training
data they are the likeliest there is for this model, so only what collides with the new rows pulls at the weights.
Own answers as rehearsal: Magpie, arXiv:2406.08464; rehearsal from a model's own samples: LAMOL, arXiv:1909.03329.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Literal

from pydantic import Field

from posttrain.config.base import Config
from posttrain.data.records import Conversation
from posttrain.errors import DataError, Problem
from posttrain.registry import register
from posttrain.retention.selection import (
    PACKAGED_PROMPTS,
    ReplayConfig,
    ReplayContext,
    cached,
    conversation,
    read_prompts,
    select,
)

__all__ = ["SelfReplayConfig", "answered", "self_replay"]


class SelfReplayConfig(ReplayConfig):
    """The model's own answers to given prompts."""

    kind: Literal["self"] = "self"
    """The untouched model answers given prompts."""
    prompts: str | None = None
    """A JSONL file of {"prompt": ...} rows; the packaged prompts in Chinese and English when left out."""
    n: int | None = Field(default=None, gt=0)
    """How many prompts are used, drawn by the seed; all when left out."""
    max_new_tokens: int = Field(default=128, gt=0)
    """The longest answer; one that is cut there is left out, since it would teach to stop in mid-sentence."""

    def files(self) -> list[str]:
        """The prompts file."""
        return [self.prompts] if self.prompts else []

    def rows(self, base: Path) -> list[Conversation]:
        """The prompts, not answered yet."""
        path = base / self.prompts if self.prompts else PACKAGED_PROMPTS
        return [conversation(prompt, "", str(path)) for prompt in read_prompts(path)]


def answered(prompts: list[str], context: ReplayContext, max_new_tokens: int) -> list[Conversation]:
    """The model's greedy answers that ended by themselves and say something; the rest is counted aloud."""
    answers = context.respondent.answers(prompts, max_new_tokens=max_new_tokens)
    kept = [
        conversation(prompt, answer.text, f"replay:{i}")
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1)
        if answer.ended and answer.text
    ]
    cut = sum(not answer.ended for answer in answers)
    empty = len(prompts) - len(kept) - cut
    context.say(f"replay: {len(prompts)} prompts answered, {cut} of them cut and {empty} empty, which are left out")
    if not kept:
        cause = f"no answer to {len(prompts)} prompts is of use: {cut} did not end, {empty} are empty"
        raise DataError(Problem(context.respondent.name, cause, f"raise max_new_tokens above {max_new_tokens}"))
    return kept


@register("replay", "self", config=SelfReplayConfig, paper="arXiv:2406.08464")
def self_replay(config: Config, context: ReplayContext) -> list[Conversation]:
    """Prompts with the untouched model's greedy answers, without those that the exam asks."""
    assert isinstance(config, SelfReplayConfig)
    path = context.base / config.prompts if config.prompts else PACKAGED_PROMPTS
    prompts = list(dict.fromkeys(read_prompts(path)))
    if config.n is not None and config.n < len(prompts):
        prompts = random.Random(context.seed).sample(prompts, config.n)
    settings = {
        "kind": "self",
        "prompts": hashlib.sha256("\0".join(prompts).encode()).hexdigest(),
        "max_new_tokens": config.max_new_tokens,
    }
    made = cached(context, settings, lambda: answered(prompts, context, config.max_new_tokens))
    selection = select(made, context.forbidden, str(config.prompts or "the packaged prompts"))
    context.say(f"replay of own answers: {selection}")
    return selection.conversations
