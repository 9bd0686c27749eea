"""Make token ids of prompts and answers, as training does, for every respondent that has a tokenizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from posttrain.data.chat import IGNORED, encode_prompt, render
from posttrain.data.control import check_text, gate_of
from posttrain.data.records import Conversation, Message
from posttrain.data.tokens import continued
from posttrain.errors import DataError, TemplateError
from posttrain.inference.decode import unfit
from posttrain.inference.locations import among, each, refuse
from posttrain.inference.plain import TokenPair, cut_left, encode_plain, plain_pair, prefix_token, rolling_windows
from posttrain.inference.protocol import Plain, Prompt, Respondent, Scored, Told, nobody
from posttrain.models.vocabulary import outside

__all__ = ["Pair", "PromptEncoder", "PromptReader", "TokenRespondent"]


class Pair(NamedTuple):
    """Token ids of a prompt, of an answer, and of the end of its turn (one token, or none)."""

    prompt: list[int]
    answer: list[int]
    end: list[int]


def shown(text: str, limit: int = 40) -> str:
    """Return the beginning of a text, to name the text in a message."""
    short = " ".join(text.split())
    return f"{short[:limit]!r}{'...' if len(short) > limit else ''}"


SEAM = 64
"""Number of characters before an answer in which a control token may begin."""


class PromptEncoder:
    """Makes token ids of prompts. `system_prefix` is a system message that is put before every prompt."""

    tokenizer: Any
    system_prefix: str | None

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token that the template puts after an assistant's words, or the tokenizer's eos without a template."""
        eos = self.tokenizer.eos_token_id
        if not self.tokenizer.chat_template:
            return eos
        talk = Conversation((Message("user", "a"), Message("assistant", "b")), "")
        try:
            return next(label for label in reversed(render(talk, self.tokenizer).labels) if label != IGNORED)
        except TemplateError:  # a template that training rejects can still be examined
            return eos

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, ready for the answer. Raise TemplateError if a text holds a
        control token.
        """
        if isinstance(prompt, Plain):
            self.check_plain(prompt)
            return encode_plain(prompt.text, self.tokenizer) if prompt.text else [prefix_token(self.tokenizer)]
        return encode_prompt(prompt, self.tokenizer, system=self.system_prefix)

    def check_plain(self, prompt: Plain) -> None:
        """Raise TemplateError if plain text holds a control token. Other prompts are checked when they are rendered."""
        check_text(prompt.text, self.tokenizer, "the prompt", shown(prompt.text))

    def encode_pair(self, prompt: Prompt, answer: str, coded: dict[str, list[int]] | None = None) -> Pair:
        """Return prompt and answer as training sees them: the template decides how the answer follows and ends.

        Raise TemplateError if the prompt holds a control token. A control token in the answer is read as its letters.
        `coded` is explained in `plain_pair`.
        """
        end = [] if isinstance(prompt, Plain) or self.end_of_turn is None else [self.end_of_turn]
        if self.spells_control(answer, prompt):
            return Pair(self.encode(prompt), self._spelt(answer), end)
        if isinstance(prompt, Plain):
            self.check_plain(prompt)
            return Pair(*plain_pair(prompt.text, answer, self.tokenizer, coded), [])
        if self.tokenizer.chat_template:
            try:
                return self._rendered(prompt, answer)
            except DataError:  # a template that training rejects
                pass
        return Pair(self.encode(prompt), self._continuation(prompt, answer), end)

    def spells_control(self, answer: str, prompt: Prompt = "") -> bool:
        """Return whether an answer to score holds a control token, or makes one together with the end of its prompt."""
        before = prompt.text if isinstance(prompt, Plain) else ""
        if isinstance(prompt, str) and not self.tokenizer.chat_template:
            before = prompt
        gate = gate_of(self.tokenizer)
        texts = (answer, before[-SEAM:] + answer) if before else (answer,)
        return any(gate.first_in(text, self.tokenizer, unknown=False) is not None for text in texts)

    def _spelt(self, answer: str) -> list[int]:
        """Return the ids of an answer with control tokens as their letters. A model may have written them,
        and they end nothing in the answer."""
        ids: list[int] = []
        for part in gate_of(self.tokenizer).cut(answer):
            head, both = (
                self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
                for text in ("\n", "\n" + part)  # the line break keeps tokenizers from adding a space
            )
            ids += both[len(head) :]
        return ids

    def _rendered(self, prompt: Prompt, answer: str) -> Pair:
        asked = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        system = (Message("system", self.system_prefix),) if self.system_prefix else ()
        turns = tuple(replace(message, train=False) for message in (*system, *asked))
        row = render(Conversation((*turns, Message("assistant", answer)), ""), self.tokenizer)
        learned = [at for at, label in enumerate(row.labels) if label != IGNORED]
        first, last = learned[0], learned[-1]
        return Pair(row.input_ids[:first], row.input_ids[first:last], row.input_ids[last : last + 1])

    def _continuation(self, prompt: Prompt, answer: str) -> list[int]:
        """Return the ids of the answer as it continues the prompt.

        After plain text the answer follows a space, unless one of the two is Chinese. After a template's tag it is
        encoded as after a line break, which keeps tokenizers from adding their own space."""
        if not self.tokenizer.chat_template and isinstance(prompt, str):
            spaced = prompt[-1:].isascii() and answer[:1].isascii() and not prompt[-1:].isspace()
            return continued(prompt, f" {answer}" if spaced and answer else answer, self.tokenizer)
        return continued("\n", answer, self.tokenizer)


class TokenRespondent(PromptEncoder, Respondent):
    """A respondent with known tokens. A subclass states its number of positions and scores pairs of token ids."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """The largest number of tokens that it reads to predict one."""

    @abstractmethod
    def _score(self, coded: Sequence[TokenPair], on_scored: Told) -> list[Scored]:
        """Return how likely each continuation is. `on_scored` is explained in `logprobs`."""

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        """Return how likely each continuation is after its prompt. Plain text that is too long is cut on the left."""
        contexts: dict[str, list[int]] = {}
        coded = each("request", pairs, lambda pair: TokenPair(*self.encode_pair(*pair, contexts)[:2]))
        limit = self.longest
        fitting = [cut_left(c, limit) if isinstance(p, Plain) else c for c, (p, _) in zip(coded, pairs, strict=True)]
        self.usage.truncated += sum(new is not old and new != old for new, old in zip(fitting, coded, strict=True))
        return self._score(fitting, on_scored)

    def rolling(self, texts: Sequence[str], *, on_scored: Told = nobody) -> list[Scored]:
        """Return how likely whole texts are, summed over windows. `on_scored` gets a text after its last window."""
        each("text", texts, lambda text: check_text(text, self.tokenizer, "the text", shown(text)))
        prefix, limit = prefix_token(self.tokenizer), self.longest
        windows = [list(rolling_windows(encode_plain(text, self.tokenizer), prefix, limit)) for text in texts]
        of = [i for i, own in enumerate(windows) for _ in own]  # the text of each window
        left = [len(own) for own in windows]
        whole = [Scored(0.0, 0, 0)] * len(texts)

        def add(window: int, part: Scored) -> None:
            i = of[window]
            so_far = whole[i]
            sum_nats, tokens = so_far.sum_nats + part.sum_nats, so_far.tokens + part.tokens
            whole[i] = Scored(sum_nats, tokens, so_far.hits + part.hits)
            left[i] -= 1
            if not left[i]:
                on_scored(i, whole[i])

        for i, count in enumerate(left):
            if not count:  # an empty text
                on_scored(i, whole[i])
        with among(of.__getitem__, "text"):
            self._score([window for own in windows for window in own], add)
        return whole


class PromptReader(PromptEncoder):
    """Checks prompts for a model without its weights. `rows` is the number of tokens that the model has
    embeddings for, None if unknown. `limit` is its number of positions.
    """

    def __init__(self, tokenizer: Any, rows: int | None, limit: int) -> None:
        self.tokenizer, self.rows, self.limit = tokenizer, rows, limit
        self.system_prefix = None

    def check(self, prompts: Sequence[Prompt], *, scored: bool = False) -> None:
        """Raise DataError that names everything that is wrong with prompts. With `scored`, the prompts
        include the answers to score, so they may fill all positions.
        """
        each("prompt", prompts, lambda prompt: self._read(self.encode(prompt), written=not scored))

    def check_documents(self, texts: Sequence[str]) -> None:
        """Do the same for whole texts that are scored."""
        each("text", texts, self._document)

    def _document(self, text: str) -> None:
        check_text(text, self.tokenizer, "the text", shown(text))
        self._read(encode_plain(text, self.tokenizer), written=False)

    def _read(self, ids: Sequence[int], *, written: bool) -> None:
        unknown = outside("", ids, self.rows, self.tokenizer) if self.rows is not None else None
        refuse([unknown, unfit("", len(ids), self.limit) if written else None], 1)
