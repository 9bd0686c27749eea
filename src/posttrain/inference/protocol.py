"""What an exam can ask of anything that answers: the protocol `Respondent`, and the values that cross it.

`answers` and `generate` answer prompts, `logprobs` says how likely a given continuation is, `rolling` how likely a
whole text is, `next_token_logprobs` shows whole distributions where the respondent has them. A prompt is the user's
words, a conversation that ends with them, or `Plain` text that no template may touch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from posttrain.data.records import Message

__all__ = ["Answer", "Distributions", "Plain", "Prompt", "Respondent", "Scored", "Spoken", "Usage"]


class Plain(NamedTuple):
    """Text as it is: no chat template and no system message; a continuation follows it letter by letter.

    Spaces at its end belong to what follows, as in lm-eval. An empty text stands for the beginning of a document.
    """

    text: str


Spoken = str | tuple[Message, ...]
"""The user's words, or a conversation that ends with them."""
Prompt = Spoken | Plain


class Answer(NamedTuple):
    """text: without special tokens and thoughts, stripped (after `Plain`: as it came); tokens: as generated, the stop
    token not counted; ended: the respondent stopped by itself or at a stop string, otherwise it was cut at the limit.
    """

    text: str
    tokens: int
    ended: bool


class Scored(NamedTuple):
    """A text's log-probability: sum over its own tokens in nats (no end-of-turn token), how many they are, and
    whether each of them is the likeliest in its place.
    """

    sum_nats: float
    tokens: int
    greedy: bool


class Distributions(NamedTuple):
    """Next-token log-probabilities in nats (A, V), each row predicting one of the answer's tokens `ids` (A).

    The end-of-turn token is the last.
    """

    ids: tuple[int, ...]
    logprobs: Tensor


@dataclass
class Usage:
    """What a respondent has spent so far; it only grows. A remote one knows tokens as billed, and what they cost."""

    requests: int = 0
    scored_tokens: int = 0
    """Positions forwarded while scoring, padding counted."""
    least_tokens: int = 0
    """Positions that no arrangement could save: the nodes of the prefix tree of what was scored."""
    logit_positions: int = 0
    """Positions of which logits were computed while scoring."""
    prompt_tokens: int = 0
    """Positions forwarded while reading prompts to answer, padding counted."""
    generated_tokens: int = 0
    shared_prefixes: int = 0
    """Prefixes forwarded once for several requests."""
    shared_tokens: int = 0
    """Positions saved by that."""
    plain_requests: int = 0
    """Requests on the plain path, one row each, because sharing would be wrong for this model."""
    plain_reason: str = ""
    truncated: int = 0
    """Requests cut on the left because they were longer than the model's context."""
    cost_usd: float = 0.0


class Respondent(Protocol):
    """What an exam can ask of anything that answers."""

    @property
    def name(self) -> str:
        """As the user calls it."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same for two respondents only when they answer alike; keys of caches."""
        ...

    @property
    def usage(self) -> Usage:
        """What has been spent so far."""
        ...

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
        """One answer per prompt, in order; greedy at temperature 0.

        stop: an answer ends before any of these strings; on_answer: told each prompt's number and answer as soon as it
        is known, in the order of finishing.
        """
        ...

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """The texts of `answers`."""
        ...

    def logprobs(
        self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Callable[[int, Scored], None] | None = None
    ) -> list[Scored]:
        """How likely each continuation is after its prompt, teacher-forced; on_scored: as on_answer."""
        ...

    def rolling(self, texts: Sequence[str], *, on_scored: Callable[[int, Scored], None] | None = None) -> list[Scored]:
        """How likely whole texts are: each from the beginning of a document, in windows of the model's context that do
        not overlap (lm-eval's `loglikelihood_rolling`).
        """
        ...

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        """Distributions along given answers and their end of turn; None from a respondent that cannot show them."""
        ...
