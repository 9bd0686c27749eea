"""Respondents: anything that answers. Exams see nothing else.

`answers` and `generate` answer prompts, `logprobs` says how likely a given answer is, `next_token_logprobs` shows whole
distributions where the respondent has them. A prompt is the user's words, or a conversation that ends with them; how it
becomes tokens is `data.chat.encode_prompt`'s business, the same that training uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from posttrain.data.chat import IGNORED, encode_prompt, render
from posttrain.data.records import Conversation, Message
from posttrain.errors import DataError, PosttrainError, TemplateError
from posttrain.inference.decode import answer_logprobs, decode
from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.load import LoadedModel

__all__ = ["Answer", "Distributions", "ModelRespondent", "Prompt", "PromptedRespondent", "Respondent", "Scored"]

Prompt = str | tuple[Message, ...]


class Answer(NamedTuple):
    """text: without special tokens and thoughts, stripped; tokens: as generated, the stop token not counted;
    ended: the respondent stopped by itself, otherwise it was cut at the limit.
    """

    text: str
    tokens: int
    ended: bool


class Scored(NamedTuple):
    """An answer's log-probability: sum over its own tokens in nats (no end-of-turn token), how many they are, and
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


class Pair(NamedTuple):
    """Token ids of a prompt, of an answer, and of the end of its turn (one token, or none)."""

    prompt: list[int]
    answer: list[int]
    end: list[int]


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

    def answers(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[Answer]:
        """One answer per prompt, in order; greedy at temperature 0."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """The texts of `answers`."""
        ...

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Scored]:
        """How likely each answer is after its prompt, teacher-forced."""
        ...

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        """Distributions along given answers and their end of turn; None from a respondent that cannot show them."""
        ...


class ModelRespondent:
    """A loaded model that answers by itself. Its weights must stay as they are while it is asked.

    system_prefix: a system message put before every prompt; batch_tokens: padded tokens per forward pass.
    """

    def __init__(self, loaded: LoadedModel, *, system_prefix: str | None = None, batch_tokens: int = 16384) -> None:
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.name = loaded.name
        self.system_prefix = system_prefix
        self.batch_tokens = batch_tokens

    @cached_property
    def fingerprint(self) -> str:
        """Weights, template and system message."""
        parts = [weights_fingerprint(self.model), template_fingerprint(self.tokenizer)]
        return "-".join(parts + ([self.system_prefix] if self.system_prefix else []))

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token that the template puts after an assistant's words, or the tokenizer's eos without a template."""
        eos = self.tokenizer.eos_token_id
        if not self.tokenizer.chat_template:
            return eos
        talk = Conversation((Message("user", "a"), Message("assistant", "b")), "")
        try:
            return next(label for label in reversed(render(talk, self.tokenizer).labels) if label != IGNORED)
        except TemplateError:  # a template that training refuses can still be examined
            return eos

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
        return 0 if pad is None else int(pad)

    def encode(self, prompt: Prompt) -> list[int]:
        """Prompt -> token ids, ready for the answer."""
        return encode_prompt(prompt, self.tokenizer, system=self.system_prefix)

    def encode_pair(self, prompt: Prompt, answer: str) -> Pair:
        """Prompt and answer as training would see them: the template says how the answer follows and ends."""
        if self.tokenizer.chat_template:
            try:
                return self._rendered(prompt, answer)
            except DataError:  # a template that training refuses, or control tokens in the answer
                pass
        end = [] if self.end_of_turn is None else [self.end_of_turn]
        return Pair(self.encode(prompt), self._continuation(prompt, answer), end)

    def _rendered(self, prompt: Prompt, answer: str) -> Pair:
        asked = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        system = (Message("system", self.system_prefix),) if self.system_prefix else ()
        turns = tuple(replace(message, train=False) for message in (*system, *asked))
        row = render(Conversation((*turns, Message("assistant", answer)), ""), self.tokenizer)
        learned = [at for at, label in enumerate(row.labels) if label != IGNORED]
        first, last = learned[0], learned[-1]
        return Pair(row.input_ids[:first], row.input_ids[first:last], row.input_ids[last : last + 1])

    def _continuation(self, prompt: Prompt, answer: str) -> list[int]:
        """The answer as it continues a plain text: after a space, unless one of the two is Chinese.

        The line break in front keeps tokenizers from adding their own space.
        """
        if not self.tokenizer.chat_template and isinstance(prompt, str):
            spaced = prompt[-1:].isascii() and answer[:1].isascii() and not prompt[-1:].isspace()
            answer = f" {answer}" if spaced and answer else answer
        plain: list[int] = self.tokenizer.encode(answer, add_special_tokens=False)
        head: list[int] = self.tokenizer.encode("\n", add_special_tokens=False)
        both: list[int] = self.tokenizer.encode("\n" + answer, add_special_tokens=False)
        return both[len(head) :] if both[: len(head)] == head else plain

    def answers(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[Answer]:
        """One answer per prompt, in order; a sampled one depends on the seed and its place in the list."""
        decoded = decode(
            self.model,
            [self.encode(p) for p in prompts],
            stop=self.stop_ids,
            pad_id=self.pad_id,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_tokens=self.batch_tokens,
        )
        return [Answer(self._text(d.ids), len(d.ids), d.ended) for d in decoded]

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.rsplit("</think>", 1)[-1].strip()

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """The texts of `answers`."""
        return [
            a.text for a in self.answers(prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        ]

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Scored]:
        """Each answer's log-probability after its prompt. An empty answer has no tokens: 0 nats."""
        coded = [self.encode_pair(prompt, answer)[:2] for prompt, answer in pairs]
        scored: list[Scored] = [Scored(0.0, 0, True)] * len(coded)
        for i, table in answer_logprobs(self.model, coded, pad_id=self.pad_id, batch_tokens=self.batch_tokens):
            ids = torch.tensor(coded[i][1], dtype=torch.long, device=table.device)  # (A,)
            own = table.gather(1, ids[:, None])[:, 0]  # (A,)
            scored[i] = Scored(float(own.double().sum()), len(ids), bool((table.argmax(-1) == ids).all()))
        return scored

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions]:
        """Distributions along the answers, the end-of-turn token included, on the CPU in float32."""
        pairs = [self.encode_pair(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        coded = [(pair.prompt, pair.answer + pair.end) for pair in pairs]
        shown = answer_logprobs(self.model, coded, pad_id=self.pad_id, batch_tokens=self.batch_tokens)
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

    def told(self, prompt: Prompt) -> Prompt:
        """The prompt with the text in its place."""
        if self.place == "system":
            messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
            own = f"\n\n{messages[0].content}" if messages[0].role == "system" else ""
            return (Message("system", self.text + own), *messages[1 if own else 0 :])
        if isinstance(prompt, str):
            return f"{self.text}\n{prompt}"
        return (*prompt[:-1], Message("user", f"{self.text}\n{prompt[-1].content}"))

    def answers(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[Answer]:
        """The inner respondent's answers, told the text."""
        told = [self.told(p) for p in prompts]
        return self.inner.answers(told, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """The texts of `answers`."""
        told = [self.told(p) for p in prompts]
        return self.inner.generate(told, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Scored]:
        """The inner respondent's, told the text."""
        return self.inner.logprobs([(self.told(prompt), answer) for prompt, answer in pairs])

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        """The inner respondent's, told the text."""
        return self.inner.next_token_logprobs([self.told(p) for p in prompts], answers)
