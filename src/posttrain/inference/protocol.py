"""The interface between exams and anything that answers: the base class `Respondent`, its inputs and its outputs."""

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
    """Text without a chat template and without a system message. A continuation follows it letter by letter. Spaces at
    its end belong to what follows, as in lm-eval. An empty text means the beginning of a document.
    """

    text: str


Spoken = str | tuple[Message, ...]
"""The user's words, or a conversation that ends with them."""
Prompt = Spoken | Plain


class Answer(NamedTuple):
    """An answer to a prompt.

    `text` has no special tokens and thoughts, and no spaces around it (after `Plain`: unchanged). `tokens` counts
    generated tokens without the stop token. `ended` says that the respondent stopped by itself or at a stop string;
    otherwise the answer was cut at the limit.
    """

    text: str
    tokens: int
    ended: bool


class Scored(NamedTuple):
    """The log-probability of a text. It has the sum over the text's own tokens in nats (without an end-of-turn token),
    the number of these tokens, and how many of them are the likeliest at their positions (teacher-forced).

    `likeliest` has the likeliest token at each position: its id, or its text where only the text is known (a remote
    model). It is empty for whole texts, and where a respondent does not show it.
    """

    sum_nats: float
    tokens: int
    hits: int
    likeliest: tuple[int | str, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether every token is the likeliest at its position."""
        return self.hits == self.tokens


class Distributions(NamedTuple):
    """Next-token log-probabilities in nats (A, V), with a row for each of an answer's tokens `ids`. The last token ends
    the answer.
    """

    ids: tuple[int, ...]
    logprobs: Tensor


@dataclass
class Usage:
    """The amount of work that a respondent has done so far; it only grows. A remote respondent knows the tokens that
    are billed, and their cost.
    """

    requests: int = 0
    scored_tokens: int = 0
    """Positions forwarded for scoring, including padding."""
    least_tokens: int = 0
    """Positions that no arrangement can save: the nodes of the prefix tree of the scored texts."""
    logit_positions: int = 0
    """Positions with logits computed for scoring."""
    prompt_tokens: int = 0
    """Positions forwarded for reading prompts to answer, including padding."""
    generated_tokens: int = 0
    shared_prefixes: int = 0
    """Prefixes forwarded once for several requests."""
    shared_tokens: int = 0
    """Positions saved by sharing prefixes."""
    plain_requests: int = 0
    """Requests on the plain path, one row each, because sharing would be wrong for this model."""
    plain_reason: str = ""
    """Why requests take the plain path."""
    truncated: int = 0
    """Requests cut on the left because they were longer than the model's context."""
    cost_usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        """Return the sums; of the reasons the first one that is not empty."""
        own: dict[str, Any] = vars(self)
        both: dict[str, Any] = {
            n: own[n] or more if isinstance(more, str) else own[n] + more for n, more in vars(other).items()
        }
        return Usage(**both)


Told: TypeAlias = Callable[[int, Any], None]
"""A function that gets the index of a prompt, pair or text and its result as soon as the result is known. The order is
that of finishing.
"""


def nobody(number: int, result: Any) -> None:
    """Do nothing. It is the default for callers that need no reports."""


class Generation(NamedTuple):
    """Settings for generating answers.

    Generation is greedy at temperature 0. An answer ends before any of the strings `stop`. `on_answer` gets each
    answer. `on_token` gets the ids of each answer so far; vLLM and remote models do not call it.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    stop: Sequence[str] = ()
    on_answer: Told = nobody
    on_token: Told | None = None


class State(NamedTuple):
    """The memory of a stateful respondent: values that JSON can hold, and tensors by name."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Respondent(ABC):
    """Anything that answers.

    A subclass writes `_answers`, `logprobs` and `rolling`, and the other methods if it has them. A prompt is the user's
    words, a conversation that ends with them, or `Plain` text that no template may change.

    A respondent that adapts to its inputs is `stateful`. Its caller must follow these rules: `reset` comes before the
    first item of an exam. A call has one item. Items come in their order, none is left out and none comes twice. After
    a kill, `restore` gets the result of `state` after the last item that counts, and the items after that one are asked
    again.
    """

    name: str
    """The name that the user gives it."""
    usage: Usage
    """The work done so far."""
    stateful: bool = False
    tokenizer: Any = None
    """The tokenizer for its prompts; None if it is not known."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for two respondents only if they answer alike, stateful ones from `reset` on. It is used as a cache
        key.
        """

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
        """Return one answer per prompt, in order, with the settings of `Generation`. A sampled answer depends on the
        seed and on its index.
        """
        stop = tuple(filter(None, stop))  # an empty string stops nothing
        return self._answers(prompts, Generation(max_new_tokens, temperature, seed, stop, on_answer, on_token))

    @abstractmethod
    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        """Return one answer per prompt; see `answers`."""

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Return the texts of `answers`."""
        said = self.answers(prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return [answer.text for answer in said]

    @abstractmethod
    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        """Return how likely each continuation is after its prompt, teacher-forced. An empty one has 0 tokens and 0
        nats.
        """

    @abstractmethod
    def rolling(self, texts: Sequence[str], *, on_scored: Told = nobody) -> list[Scored]:
        """Return how likely whole texts are, each from the beginning of a document. Texts are read in windows of the
        model's context that do not overlap (lm-eval's `loglikelihood_rolling`).
        """

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        """Return distributions along given answers and their end of turn; None if the respondent cannot show them."""
        return None

    def held(self) -> AbstractContextManager[None]:
        """Within this block, the weights do not change, so that many exams in a row may be answered faster."""
        return nullcontext()

    def state(self) -> State:
        """Return what was learned from earlier inputs. It may share memory with the respondent."""
        return State({}, {})

    def restore(self, state: State) -> None:
        """Continue from a state with tensors on the CPU. An empty state means that nothing was asked before. Raise
        ValueError if the respondent has no state.
        """
        if state.values or state.tensors:
            raise ValueError(f"{self.name} has no state")

    def reset(self) -> None:
        """Remove everything that was learned."""
        self.restore(State({}, {}))


class Wrapper(Respondent):
    """A respondent that passes calls on to another one. A subclass states the differences."""

    def __init__(self, inner: Respondent, name: str) -> None:
        self.inner, self.name, self.usage = inner, name, inner.usage
        self.stateful, self.tokenizer = inner.stateful, inner.tokenizer

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the inner respondent."""
        return self.inner.fingerprint

    def held(self) -> AbstractContextManager[None]:
        """Hold the weights of the inner respondent."""
        return self.inner.held()

    def state(self) -> State:
        """Return the state of the inner respondent."""
        return self.inner.state()

    def restore(self, state: State) -> None:
        """Restore the state of the inner respondent."""
        self.inner.restore(state)
