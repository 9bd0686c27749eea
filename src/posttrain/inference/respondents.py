"""Respondents on this machine: a loaded model, and a respondent that gets a text with every prompt.

`data.chat.encode_prompt`, which training uses too, makes token ids of prompts.
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
"""Number of steps of an answer from which on laying out the weights (`packed`) saves time."""
WORTH_TOKENS = 4096
"""Number of scored tokens from which on laying out the weights saves time."""


class ModelRespondent(TokenRespondent):
    """A loaded model that answers by itself. Its weights must not change during a call. `system_prefix` is a system
    message that is put before every prompt. `batch_tokens` is the largest number of padded tokens per forward pass.
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
        """The fingerprint of weights, template and system message."""
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
        """The id that fills rows on the left. It is masked, so any id is suitable."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None or pad >= rows_of(self.model) else int(pad)

    @property
    def longest(self) -> int:
        """The number of the model's positions."""
        return context_limit(self.model)

    def held(self) -> AbstractContextManager[None]:
        """Within this block, the weights do not change and are laid out once."""
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
        """Return the text of an answer's tokens, without special tokens and otherwise unchanged."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _fitting(self, prompt: Prompt, room: int) -> list[int]:
        """Return a prompt's ids. Plain text is cut on the left so that `room` more tokens fit; cuts are counted."""
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
        """Raise DataError for texts with tokens that the model has no embeddings for."""
        known = rows_of(self.model)
        refuse((outside(location_of(what, i), ids, known, self.tokenizer) for i, ids in enumerate(rows)), len(rows))

    def _score(self, coded: Sequence[TokenPair], on_scored: Told) -> list[Scored]:
        self.check_tokens([[*pair.context, *pair.continuation] for pair in coded], "request")
        tokens = sum(len(context) + len(continuation) for context, continuation in coded)
        with packed(self.model) if tokens >= WORTH_TOKENS else nullcontext():
            return score(self.model, coded, usage=self.usage, batch_tokens=self.batch_tokens, on_scored=on_scored)

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions]:
        """Return distributions along the answers, including the end-of-turn token, on the CPU in float32."""
        both = list(zip(prompts, answers, strict=True))
        pairs = each("prompt", both, lambda pair: self.encode_pair(*pair))
        coded = [(pair.prompt, pair.answer + pair.end) for pair in pairs]
        self.check_tokens([[*prompt, *answer] for prompt, answer in coded], "prompt")
        shown = distributions(self.model, coded, usage=self.usage, batch_tokens=self.batch_tokens)
        tables = {i: table.cpu() for i, table in shown}
        return [Distributions(tuple(ids), tables[i]) for i, (_, ids) in enumerate(coded)]


class PromptedRespondent(Wrapper):
    """A respondent that gets `text` with every prompt (the method `prompt`: change only what the respondent reads).

    With role `user` (for every template and for base models), the text comes before the user's last words, on its own
    lines. With role `system`, it is the system message (before an existing one); the template must accept one.
    """

    def __init__(
        self, inner: Respondent, text: str, *, role: Literal["user", "system"] = "user", name: str | None = None
    ) -> None:
        super().__init__(inner, name or f"{inner.name} + prompt")
        self.text, self.role = text, role

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the inner respondent with the text."""
        return f"{self.inner.fingerprint}+{self.role}:{self.text}"

    def told(self, prompt: Prompt) -> Prompt:
        """Return the prompt with the text. Before plain text it is on its own line."""
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
        """Return the inner respondent's scores, with the text in the prompts."""
        return self.inner.logprobs([(self.told(prompt), answer) for prompt, answer in pairs], on_scored=on_scored)

    def rolling(self, texts: Sequence[str], *, on_scored: Told = nobody) -> list[Scored]:
        """Return the inner respondent's scores. A document is not a question, so the text is not added."""
        return self.inner.rolling(texts, on_scored=on_scored)

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        """Return the inner respondent's distributions, with the text in the prompts."""
        return self.inner.next_token_logprobs([self.told(p) for p in prompts], answers)
