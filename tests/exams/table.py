"""A respondent for tests of tasks: replies by rule, counts its calls, and may break down in the middle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from posttrain.inference.protocol import Answer, Generation, Plain, Prompt, Respondent, Scored, Told, Usage, nobody

R = TypeVar("R")


class BrokeDownError(Exception):
    """The machine went dark."""


def words(prompt: Prompt) -> str:
    """A prompt's text; of a conversation every turn."""
    if isinstance(prompt, Plain):
        return prompt.text
    return prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)


class Table(Respondent):
    """says: prompt -> answer; likes: (prompt, continuation) -> nats; dies_after: so many replies, then BrokeDownError."""

    def __init__(
        self,
        *,
        says: Callable[[str], str] = lambda prompt: f"said {prompt}",
        likes: Callable[[str, str], float] = lambda prompt, text: -float(len(text)),
        dies_after: int | None = None,
        name: str = "table",
    ) -> None:
        self.name = name
        self.usage = Usage(scored_tokens=1000)  # what earlier exams have spent
        self.says, self.likes, self.left = says, likes, dies_after
        self.calls: list[tuple[str, list[object]]] = []

    @property
    def fingerprint(self) -> str:
        return self.name

    def _reply(
        self, kind: str, asks: Sequence[object], replies: Sequence[R], told: Callable[[int, R], None]
    ) -> list[R]:
        self.calls.append((kind, list(asks)))
        for i in reversed(range(len(replies))):  # no order is promised
            if self.left is not None:
                if not self.left:
                    raise BrokeDownError
                self.left -= 1
            self.usage.requests += 1
            told(i, replies[i])
        return list(replies)

    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        said = [self.says(words(p)) for p in prompts]
        self.usage.generated_tokens += sum(map(len, said))
        most = how.max_new_tokens
        return self._reply(
            "say", prompts, [Answer(text[:most], len(text), len(text) <= most) for text in said], how.on_answer
        )

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        self.usage.scored_tokens += len(pairs)
        replies = [Scored(self.likes(words(p), text), len(text), 0) for p, text in pairs]
        return self._reply("score", pairs, replies, on_scored)

    def rolling(self, texts: Sequence[str], *, on_scored: Told = nobody) -> list[Scored]:
        return self._reply("text", texts, [Scored(self.likes("", t), len(t), 0) for t in texts], on_scored)
