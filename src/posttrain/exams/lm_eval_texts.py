"""Text as lm-eval's `hf` backend (HFLM) reads it: its tokens, what stands before an empty context, limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from posttrain.data.tokens import join
from posttrain.errors import DataError, Problem
from posttrain.inference.plain import TokenPair, move_spaces, prefix_token
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.meter import MOMENT_S, Meter

__all__ = ["Texts"]

TOKENISED_AT_ONCE = 1024


@dataclass(frozen=True)
class Texts:
    """A model's texts. own_prefix: stands for an empty context in place of bos; the others as of `PosttrainLM`."""

    respondent: ModelRespondent
    max_length: int
    batch_tokens: int
    add_bos_token: bool | None = None
    own_prefix: int | None = None
    think_end_token: str | int | None = None
    seed: int = 0

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.respondent.tokenizer

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's eos, if it has one."""
        return self.tokenizer.eos_token_id

    @cached_property
    def prefix_token_id(self) -> int:
        """What an empty context stands for: bos, or eos where there is none."""
        return prefix_token(self.tokenizer) if self.own_prefix is None else self.own_prefix

    def decoded(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def encoded(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Ids by text, each text once and many at a time: few-shot prompts come once per choice."""
        bos = self.tokenizer.decode(self.prefix_token_id)
        unique = list(dict.fromkeys(texts))
        coded: dict[str, list[int]] = {}
        for marked in (False, True):
            some = [text for text in unique if bool(bos and text.startswith(bos)) == marked]
            special = False if marked else self.add_bos_token
            flags = {} if special is None else {"add_special_tokens": special}
            with Meter("cutting texts into tokens", len(some), "texts", after_s=MOMENT_S) as meter:
                for start in range(0, len(some), TOKENISED_AT_ONCE):
                    part = some[start : start + TOKENISED_AT_ONCE]
                    rows = self.tokenizer(
                        part, return_attention_mask=False, return_token_type_ids=False, verbose=False, **flags
                    )
                    coded.update(zip(part, rows["input_ids"], strict=True))
                    meter.more(len(part))
        return coded

    def pairs(self, arguments: Sequence[tuple[Any, ...]]) -> list[TokenPair]:
        """`TemplateLM.loglikelihood` and `_encode_pair` for all requests at once."""
        split = [move_spaces(context, continuation) for context, continuation in arguments]
        coded = self.encoded(text for context, continuation in split for text in (context, context + continuation))
        pairs = []
        for (context, continuation), (given, _) in zip(split, arguments, strict=True):
            if given == "":
                ids = self.tokenizer.encode(continuation, add_special_tokens=False)
                own = ids[:1] == [self.prefix_token_id]
                pairs.append(TokenPair(ids[:1], ids[1:]) if own else TokenPair([self.prefix_token_id], ids))
            else:  # of nothing but spaces HFLM makes no token, unless the tokenizer puts bos in front
                whole = coded[context + continuation]
                joined = join(coded[context], whole, context, continuation, self.tokenizer)
                pairs.append(TokenPair(joined.before or [self.prefix_token_id], joined.after))
        nothing = [one for one, pair in zip(arguments, pairs, strict=True) if not pair.continuation]
        if nothing:
            cause = "the tokenizer makes no token of this continuation, which would be likelier than any other"
            raise DataError(
                *(Problem(f"{given[-40:]!r} {text!r}", cause, "take it out") for given, text in nothing[:20])
            )
        return pairs
