"""Respondents of this machine: a loaded model, and anything that answers when told a text with every prompt.

`data.chat.encode_prompt`, which training uses too, makes tokens of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from posttrain.data.control import gate_of
from posttrain.data.records import Message
from posttrain.errors import PosttrainError
from posttrain.inference.decode import Decoded, context_limit, decode
from posttrain.inference.encoding import TokenRespondent
from posttrain.inference.locations import each, location_of, refuse
from posttrain.inference.packed import packed
from posttrain.inference.plain import TokenPair
from posttrain.inference.protocol import (
    Answer,
    Distributions,
    Generation,
    Plain,
    Prompt,
    Respondent,
    Scored,
    Told,
    Usage,
    Wrapper,
    nobody,
)
from posttrain.inference.scoring import distributions, score
from posttrain.inference.texts import cut_at_stop, spoken
from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.load import LoadedModel
from posttrain.models.meter import tick
from posttrain.models.vocabulary import outside, rows_of

__all__ = ["ModelRespondent", "PromptedRespondent"]

WORTH_STEPS = 16
"""Steps of an answer from which on it is worth laying out the weights for them (`packed`) ..."""
WORTH_TOKENS = 4096
"""... and tokens to be scored."""


class ModelRespondent(TokenRespondent):
    """A loaded model that answers by itself. Its weights must stay as they are while it is asked.

    system_prefix: a system message put before every prompt; batch_tokens: padded tokens per forward pass.
    """

    def __init__(self, loaded: LoadedModel, *, system_prefix: str | None = None, batch_tokens: int = 16384) -> None:
        self.model: Any = loaded.model
        self.tokenizer = loaded.tokenizer
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

    @property
    def longest(self) -> int:
        """The model's positions."""
        return context_limit(self.model)

    def held(self) -> AbstractContextManager[None]:
        """While this lasts the weights stay as they are, and are laid out for it once."""
        return nullcontext() if self.stateful else packed(self.model)

    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        answers: dict[int, Answer] = {}

        def done(number: int, decoded: Decoded) -> None:
            answers[number] = self._answer(prompts[number], decoded, how.stop)
            how.on_answer(number, answers[number])

        asked = each("prompt", prompts, lambda prompt: self._fitting(prompt, how.max_new_tokens))
        self.check_tokens(asked, "prompt")
        with packed(self.model) if how.max_new_tokens >= WORTH_STEPS else nullcontext():
            decode(
                self.model,
                asked,
                stop=self.stop_ids,
                pad_id=self.pad_id,
                max_new_tokens=how.max_new_tokens,
                temperature=how.temperature,
                seed=how.seed,
                batch_tokens=self.batch_tokens,
                stop_texts=how.stop,
                text_of=self.text,
                on_done=done,
                on_token=how.on_token or tick(),
                usage=self.usage,
            )
        return [answers[number] for number in range(len(prompts))]

    def text(self, ids: list[int]) -> str:
        """What an answer's tokens say, as they say it."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _fitting(self, prompt: Prompt, room: int) -> list[int]:
        """A prompt's ids; plain text is cut on the left so that `room` more tokens fit, and that is counted."""
        ids = self.encode(prompt)
        limit = self.longest - room
        if isinstance(prompt, Plain) and len(ids) > limit > 0:
            self.usage.truncated += 1
            return ids[-limit:]
        return ids

    def _answer(self, prompt: Prompt, decoded: Decoded, stop: Sequence[str]) -> Answer:
        text, stopped = cut_at_stop(self.text(decoded.ids), stop)
        text = gate_of(self.tokenizer).without(text, self.tokenizer)
        return Answer(text if isinstance(prompt, Plain) else spoken(text), len(decoded.ids), decoded.ended or stopped)

    def check_tokens(self, rows: Sequence[Sequence[int]], what: str) -> None:
        """DataError for texts with tokens that the model has no embeddings for."""
        known = rows_of(self.model)
        refuse((outside(location_of(what, i), ids, known, self.tokenizer) for i, ids in enumerate(rows)), len(rows))

    def _score(self, coded: Sequence[TokenPair], on_scored: Told) -> list[Scored]:
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


class PromptedRespondent(Wrapper):
    """A respondent that is told `text` with every prompt (the method `prompt`: change nothing but what it reads).

    role `user` (works with every template and with base models): the text stands before the user's last words, on lines
    of its own; `system`: it is the system message (before one that is there); the template must take one.
    """

    def __init__(
        self, inner: Respondent, text: str, *, role: Literal["user", "system"] = "user", name: str | None = None
    ) -> None:
        super().__init__(inner, name or f"{inner.name} + prompt")
        self.text, self.role = text, role

    @property
    def fingerprint(self) -> str:
        """The inner one's with the text."""
        return f"{self.inner.fingerprint}+{self.role}:{self.text}"

    def told(self, prompt: Prompt) -> Prompt:
        """The prompt with the text; before plain text on a line of its own."""
        if isinstance(prompt, Plain):
            return Plain(f"{self.text}\n{prompt.text}")
        if self.role == "system":
            messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
            if messages[0].role == "system":
                return (replace(messages[0], content=f"{self.text}\n\n{messages[0].content}"), *messages[1:])
            return (Message("system", self.text), *messages)
        if isinstance(prompt, str):
            return f"{self.text}\n{prompt}"
        return (*prompt[:-1], replace(prompt[-1], role="user", content=f"{self.text}\n{prompt[-1].content}"))

    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        return self.inner.answers([self.told(p) for p in prompts], **how._asdict())

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        """The inner respondent's, told the text."""
        return self.inner.logprobs([(self.told(prompt), answer) for prompt, answer in pairs], on_scored=on_scored)

    def rolling(self, texts: Sequence[str], *, on_scored: Told = nobody) -> list[Scored]:
        """The inner respondent's: a document is not a question, so nothing is told."""
        return self.inner.rolling(texts, on_scored=on_scored)

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        """The inner respondent's, told the text."""
        return self.inner.next_token_logprobs([self.told(p) for p in prompts], answers)
