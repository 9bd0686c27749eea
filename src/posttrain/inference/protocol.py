"""What an exam can ask of anything that answers: the base class `Respondent`, and what goes in and comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from posttrain.data.records import Message

__all__ = [
    "Answer",
    "Distributions",
    "Generation",
    "Plain",
    "Prompt",
    "Respondent",
    "Scored",
    "Spoken",
    "State",
    "Told",
    "Usage",
    "Wrapper",
    "nobody",
]


class Plain(NamedTuple):
    """Text as it is: no chat template and no system message; a continuation follows it letter by letter. Spaces at its
    end belong to what follows, as in lm-eval. An empty text stands for the beginning of a document."""

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
    """A text's log-probability: the sum over its own tokens in nats (no end-of-turn token), how many they are, and
    whether each of them is the likeliest there."""

    sum_nats: float
    tokens: int
    greedy: bool


class Distributions(NamedTuple):
    """Next-token log-probabilities in nats (A, V), a row for each of an answer's tokens `ids`; the last ends it."""

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
    """Why."""
    truncated: int = 0
    """Requests cut on the left because they were longer than the model's context."""
    cost_usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        """The sums; of the reasons the first."""
        own: dict[str, Any] = vars(self)
        both: dict[str, Any] = {
            n: own[n] or more if isinstance(more, str) else own[n] + more for n, more in vars(other).items()
        }
        return Usage(**both)


Told: TypeAlias = Callable[[int, Any], None]
"""Is told the number of a prompt, pair or text and its result as soon as that is known, in the order of finishing."""


def nobody(number: int, result: Any) -> None:
    """Is told what nobody wants to know."""


class Generation(NamedTuple):
    """How answers are generated: greedy at temperature 0; an answer ends before any of the strings `stop`. on_answer:
    is told each answer; on_token: by respondents that generate on this machine, told the ids of each answer so far."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    stop: Sequence[str] = ()
    on_answer: Told = nobody
    on_token: Told | None = None


class State(NamedTuple):
    """What a stateful respondent remembers: values that JSON can hold, and tensors by name."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Respondent(ABC):
    """Anything that answers. A kind writes `_answers`, `logprobs` and `rolling`, and the rest where it has it. A prompt
    is the user's words, a conversation that ends with them, or `Plain` text that no template may touch.

    A respondent that adapts to what it is asked is `stateful`. Whoever asks it keeps to this: `reset` comes before the
    first item of an exam; a call asks for one item; items come in their order, none is left out and none is asked
    twice; after a kill, `restore` gets what `state` gave after the last item that counts, and the items after that one
    are asked again.
    """

    name: str
    """As the user calls it."""
    usage: Usage
    """What has been spent so far."""
    stateful: bool = False
    tokenizer: Any = None
    """What makes tokens of its prompts; None where that is not known."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The same for two respondents only when they answer alike, stateful ones from `reset` on; keys of caches."""

    def answers(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        on_answer: Told = nobody,
        on_token: Told | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in order, as `Generation` has it; a sampled one depends on the seed and its index."""
        stop = tuple(filter(None, stop))  # an empty string stops nothing
        return self._answers(prompts, Generation(max_new_tokens, temperature, seed, stop, on_answer, on_token))

    @abstractmethod
    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        """See `answers`."""

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """The texts of `answers`."""
        said = self.answers(prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return [answer.text for answer in said]

    @abstractmethod
    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        """How likely each continuation is after its prompt, teacher-forced. An empty one has no tokens and 0 nats."""

    @abstractmethod
    def rolling(self, texts: Sequence[str], *, on_scored: Told = nobody) -> list[Scored]:
        """How likely whole texts are, each from the beginning of a document, in windows of the model's context that do
        not overlap (lm-eval's `loglikelihood_rolling`)."""

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        """Distributions along given answers and their end of turn; None from a respondent that cannot show them."""
        return None

    def held(self) -> AbstractContextManager[None]:
        """While this lasts the weights stay as they are, so that many exams in a row may be answered faster."""
        return nullcontext()

    def state(self) -> State:
        """What was learned from what was asked; it may share memory with the respondent."""
        return State({}, {})

    def restore(self, state: State) -> None:
        """Go on from a state, whose tensors lie on the CPU; from an empty one as if nothing had been asked."""
        if state.values or state.tensors:
            raise ValueError(f"{self.name} has no state")

    def reset(self) -> None:
        """Forget what was learned."""
        self.restore(State({}, {}))


class Wrapper(Respondent):
    """A respondent that passes on to another; a kind says what is different."""

    def __init__(self, inner: Respondent, name: str) -> None:
        self.inner, self.name, self.usage = inner, name, inner.usage
        self.stateful, self.tokenizer = inner.stateful, inner.tokenizer

    @property
    def fingerprint(self) -> str:
        """The inner respondent's."""
        return self.inner.fingerprint

    def held(self) -> AbstractContextManager[None]:
        """The inner respondent's."""
        return self.inner.held()

    def state(self) -> State:
        """The inner respondent's."""
        return self.inner.state()

    def restore(self, state: State) -> None:
        """The inner respondent's."""
        self.inner.restore(state)
