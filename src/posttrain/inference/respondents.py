"""Respondents of this machine: a loaded model, and anything that answers when told a text with every prompt.

How a prompt becomes tokens is `data.chat.encode_prompt`'s business, the same that training uses; what exams may ask is
in `inference/protocol.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from posttrain.data.control import gate_of
from posttrain.data.records import Message
from posttrain.errors import PosttrainError
from posttrain.inference.decode import Decoded, context_limit, decode
from posttrain.inference.encoding import PromptEncoder, spoken
from posttrain.inference.packed import packed
from posttrain.inference.places import each
from posttrain.inference.plain import TokenPair, cut_left, plain_pair
from posttrain.inference.protocol import Answer, Distributions, Plain, Prompt, Respondent, Scored, Usage
from posttrain.inference.scoring import distributions, score
from posttrain.inference.stops import cut_at_stop
from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.load import LoadedModel
from posttrain.models.meter import tick
from posttrain.models.vocabulary import rows_of

WORTH_STEPS = 16
"""Steps of an answer from which on it is worth laying out the weights for them (`packed`) ..."""
WORTH_TOKENS = 4096
"""... and tokens to be scored."""

__all__ = [
    "Answer",
    "Distributions",
    "ModelRespondent",
    "Plain",
    "Prompt",
    "PromptedRespondent",
    "Respondent",
    "Scored",
    "Usage",
    "held",
]


class ModelRespondent(PromptEncoder):
    """A loaded model that answers by itself. Its weights must stay as they are while it is asked.

    system_prefix: a system message put before every prompt; batch_tokens: padded tokens per forward pass.
    """

    def __init__(self, loaded: LoadedModel, *, system_prefix: str | None = None, batch_tokens: int = 16384) -> None:
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.name = loaded.name
        self.system_prefix = system_prefix
        self.batch_tokens = batch_tokens
        self.usage = Usage()

    @cached_property
    def fingerprint(self) -> str:
        """Weights, template and system message."""
        parts = [weights_fingerprint(self.model), template_fingerprint(self.tokenizer)]
        return "-".join(parts + ([self.system_prefix] if self.system_prefix else []))

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends an answer: the generation config's, the tokenizer's eos and the template's end of turn."""
        listed = self.model.generation_config.eos_token_id if self.model.generation_config else None
        listed = listed if isinstance(listed, list) else [listed]
        ids = frozenset(i for i in [*listed, self.tokenizer.eos_token_id, self.end_of_turn] if i is not None)
        if not ids:
            raise PosttrainError(f"{self.name}: neither model nor tokenizer names a token that ends an answer")
        return ids

    @property
    def pad_id(self) -> int:
        """Fills the left; masked, so any id will do."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None or pad >= rows_of(self.model) else int(pad)

    def answers(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        on_answer: Callable[[int, Answer], None] | None = None,
        on_token: Callable[[int, list[int]], None] | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in order; a sampled one depends on the seed and its place in the list. on_token: told
        each prompt's number and the ids of its answer so far."""
        answers: dict[int, Answer] = {}

        def done(place: int, decoded: Decoded) -> None:
            answers[place] = self._answer(prompts[place], decoded, stop)
            if on_answer is not None:
                on_answer(place, answers[place])

        asked = each("prompt", prompts, lambda prompt: self._fitting(prompt, max_new_tokens))
        self.check_tokens(asked, "prompt")
        with packed(self.model) if max_new_tokens >= WORTH_STEPS else nullcontext():
            decode(
                self.model,
                asked,
                stop=self.stop_ids,
                pad_id=self.pad_id,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                batch_tokens=self.batch_tokens,
                stop_texts=stop,
                text_of=self.text,
                on_done=done,
                on_token=on_token if on_token is not None else tick(),
                usage=self.usage,
            )
        return [answers[place] for place in range(len(prompts))]

    def text(self, ids: list[int]) -> str:
        """What an answer's tokens say, as they say it."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _fitting(self, prompt: Prompt, room: int) -> list[int]:
        """A prompt's ids; plain text is cut on the left so that `room` more tokens fit, and that is counted."""
        ids = self.encode(prompt)
        limit = context_limit(self.model) - room
        if isinstance(prompt, Plain) and len(ids) > limit > 0:
            self.usage.truncated += 1
            return ids[-limit:]
        return ids

    def _answer(self, prompt: Prompt, decoded: Decoded, stop: Sequence[str]) -> Answer:
        text, stopped = cut_at_stop(self.text(decoded.ids), stop)
        text = gate_of(self.tokenizer).without(text, self.tokenizer)
        return Answer(text if isinstance(prompt, Plain) else spoken(text), len(decoded.ids), decoded.ended or stopped)

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """The texts of `answers`."""
        return [
            a.text for a in self.answers(prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        ]

    def logprobs(
        self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Callable[[int, Scored], None] | None = None
    ) -> list[Scored]:
        """Each answer's log-probability after its prompt. An empty answer has no tokens: 0 nats."""
        contexts: dict[str, list[int]] = {}

        def encode(pair: tuple[Prompt, str]) -> TokenPair:
            prompt, answer = pair
            if isinstance(prompt, Plain):
                self.check_plain(prompt)
                if not self.spells_control(answer, prompt):
                    return plain_pair(prompt.text, answer, self.tokenizer, contexts)
            return TokenPair(*self.encode_pair(prompt, answer)[:2])

        coded = each("request", pairs, encode)
        limit = context_limit(self.model)
        fitting = [cut_left(c, limit) if isinstance(p, Plain) else c for c, (p, _) in zip(coded, pairs, strict=True)]
        self.usage.truncated += sum(new is not old and new != old for new, old in zip(fitting, coded, strict=True))
        return self._score(fitting, on_scored)

    def rolling(self, texts: Sequence[str], *, on_scored: Callable[[int, Scored], None] | None = None) -> list[Scored]:
        """Each text's log-probability from the beginning of a document, in windows that do not overlap."""
        return self.rolled(texts, context_limit(self.model), self._score, on_scored)

    def check_tokens(self, rows: Sequence[Sequence[int]], what: str) -> None:
        """DataError for texts with tokens that the model has no embeddings for."""
        self.check_known(rows, what, rows_of(self.model))

    def _score(self, coded: Sequence[TokenPair], on_scored: Callable[[int, Scored], None] | None) -> list[Scored]:
        self.check_tokens([[*pair.context, *pair.continuation] for pair in coded], "request")
        tokens = sum(len(context) + len(continuation) for context, continuation in coded)
        with packed(self.model) if tokens >= WORTH_TOKENS else nullcontext():
            return score(self.model, coded, usage=self.usage, batch_tokens=self.batch_tokens, on_scored=on_scored)

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions]:
        """Distributions along the answers, the end-of-turn token included, on the CPU in float32."""
        both = list(zip(prompts, answers, strict=True))
        pairs = each("prompt", both, lambda pair: self.encode_pair(*pair))
        coded = [(pair.prompt, pair.answer + pair.end) for pair in pairs]
        self.check_tokens([[*prompt, *answer] for prompt, answer in coded], "prompt")
        shown = distributions(self.model, coded, usage=self.usage, batch_tokens=self.batch_tokens)
        tables = {i: table.cpu() for i, table in shown}
        return [Distributions(tuple(ids), tables[i]) for i, (_, ids) in enumerate(coded)]


class PromptedRespondent:
    """A respondent that is told `text` with every prompt (the method `prompt`: change nothing but what it reads).

    place `user`: the text stands before the user's last words, on lines of its own. The default, since it works with
    every template and with base models. place `system`: the text is the system message (before one that is there);
    the template must have a place for it.
    """

    def __init__(
        self,
        inner: Respondent,
        text: str,
        *,
        place: Literal["user", "system"] = "user",
        name: str | None = None,
    ) -> None:
        self.inner = inner
        self.text = text
        self.place = place
        self.name = name or f"{inner.name} + prompt"

    @property
    def fingerprint(self) -> str:
        """The inner one's with the text."""
        return f"{self.inner.fingerprint}+{self.place}:{self.text}"

    @property
    def usage(self) -> Usage:
        """The inner one's."""
        return self.inner.usage

    def told(self, prompt: Prompt) -> Prompt:
        """The prompt with the text in its place; before plain text on a line of its own."""
        if isinstance(prompt, Plain):
            return Plain(f"{self.text}\n{prompt.text}")
        if self.place == "system":
            messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
            if messages[0].role == "system":
                return (replace(messages[0], content=f"{self.text}\n\n{messages[0].content}"), *messages[1:])
            return (Message("system", self.text), *messages)
        if isinstance(prompt, str):
            return f"{self.text}\n{prompt}"
        return (*prompt[:-1], replace(prompt[-1], role="user", content=f"{self.text}\n{prompt[-1].content}"))

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
        """The inner respondent's answers, told the text."""
        return self.inner.answers(
            [self.told(p) for p in prompts],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=stop,
            on_answer=on_answer,
        )

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """The texts of `answers`."""
        told = [self.told(p) for p in prompts]
        return self.inner.generate(told, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)

    def logprobs(
        self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Callable[[int, Scored], None] | None = None
    ) -> list[Scored]:
        """The inner respondent's, told the text."""
        return self.inner.logprobs([(self.told(prompt), answer) for prompt, answer in pairs], on_scored=on_scored)

    def rolling(self, texts: Sequence[str], *, on_scored: Callable[[int, Scored], None] | None = None) -> list[Scored]:
        """The inner respondent's: a document is not a question, so nothing is told."""
        return self.inner.rolling(texts, on_scored=on_scored)

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        """The inner respondent's, told the text."""
        return self.inner.next_token_logprobs([self.told(p) for p in prompts], answers)


def held(respondent: Respondent) -> AbstractContextManager[None]:
    """For as long as this lasts the respondent's weights stay as they are: many exams in a row are answered faster."""
    while isinstance(respondent, PromptedRespondent):
        respondent = respondent.inner
    return packed(respondent.model) if isinstance(respondent, ModelRespondent) else nullcontext()
