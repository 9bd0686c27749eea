"""Read and generate text as lm-eval's `hf` backend (HFLM): tokens, empty contexts, limits, stop strings, settings.

Settings that our decoder does not have (beams, repetition penalties, other processors of `model.generate`) take the
plain path: `model.generate`, one prompt at a time, as HFLM with batch size 1. Such requests are counted and reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from posttrain.data.tokens import join
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.inference.decode import decode
from posttrain.inference.locations import among
from posttrain.inference.plain import TokenPair, move_spaces, prefix_token
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.marks import whole_prompts
from posttrain.models.meter import MOMENT_S, Meter

__all__ = ["Texts"]

TOKENISED_AT_ONCE = 1024
MAX_GEN_TOKENS = 256
"""An answer's limit in tokens if a task gives none (HFLM.max_gen_toks)."""
TOP_K = 50
"""The default top_k of `model.generate`."""
OWN = frozenset({"do_sample", "temperature", "top_p", "top_k"})
"""Settings that `decode` has."""
WITHOUT_EFFECT = OWN | {
    "bos_token_id", "eos_token_id", "pad_token_id", "max_length", "transformers_version", "use_cache",
    "_from_model_config", "cache_implementation", "output_attentions", "output_hidden_states", "output_scores",
    "return_dict_in_generate", "trust_remote_code",
}  # fmt: skip
"""Keys of a generation config that change no greedy answer, or that this module reads."""


class Settings(NamedTuple):
    """Settings of a group of requests: stop strings, limit of new tokens, sampling, and those of `model.generate`."""

    until: list[str]
    limit: int
    sampled: bool
    given: dict[str, Any]


@dataclass(eq=False)
class Texts:
    """The part of `PosttrainLM` that reads and generates text. own_prefix: id for an empty context, instead of bos."""

    respondent: ModelRespondent
    max_length: int
    batch_tokens: int
    add_bos_token: bool | None = None
    own_prefix: int | None = None
    think_end_token: str | int | None = None
    seed: int = 0

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self.respondent.tokenizer

    @property
    def eot_token_id(self) -> int | None:
        """The id of the tokenizer's eos, or None."""
        return self.tokenizer.eos_token_id

    @cached_property
    def prefix_token_id(self) -> int:
        """The id of the token for an empty context: `own_prefix`, else bos, else eos."""
        return prefix_token(self.tokenizer) if self.own_prefix is None else self.own_prefix

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """Return the text of ids."""
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def encoded(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Return ids by text. Each text is tokenised once, many at a time: few-shot prompts occur once per choice."""
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
        """Return the token pairs of all requests, as `TemplateLM.loglikelihood` and `_encode_pair` make them. DataError
        for continuations without a token.
        """
        split = [move_spaces(context, continuation) for context, continuation in arguments]
        coded = self.encoded(text for context, continuation in split for text in (context, context + continuation))
        pairs = []
        for (context, continuation), (given, _) in zip(split, arguments, strict=True):
            if given == "":
                ids = self.tokenizer.encode(continuation, add_special_tokens=False)
                own = ids[:1] == [self.prefix_token_id]
                pairs.append(TokenPair(ids[:1], ids[1:]) if own else TokenPair([self.prefix_token_id], ids))
            else:  # HFLM makes no token of a text of spaces only, unless the tokenizer puts bos in front
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

    # ---- generation ----------------------------------------------------------------------------------------------

    def generate(self, arguments: Sequence[tuple[str, dict[str, Any]]], done: Callable[[int, str], None]) -> None:
        """Answer every (context, settings), equal settings together; call `done` with each text when it is ready."""
        groups: dict[str, list[int]] = {}
        for i, (_, given) in enumerate(arguments):
            groups.setdefault(json.dumps(given, sort_keys=True), []).append(i)
        for rows in groups.values():
            with among(rows.__getitem__):
                self._generate_alike(rows, arguments, done)

    def _generate_alike(
        self, rows: list[int], arguments: Sequence[tuple[str, dict[str, Any]]], done: Callable[[int, str], None]
    ) -> None:
        settings = self._settings(arguments[rows[0]][1])
        prompts = self._prompts([arguments[i][0] for i in rows], settings.limit)
        self.respondent.check_tokens(prompts, "request")
        reason = self._only_plain(settings)
        if reason:
            self.respondent.usage.plain_requests += len(rows)
            self.respondent.usage.plain_reason = self.respondent.usage.plain_reason or reason
        ask = self._generate_plainly if reason else self._decode
        ask(prompts, settings, lambda at, ids: done(rows[at], self._text(ids, settings)))

    def _settings(self, given: dict[str, Any]) -> Settings:
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(given, MAX_GEN_TOKENS))
        eos = None if self.eot_token_id is None else self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        until = handle_stop_sequences(kwargs.pop("until", None), eos=eos)
        limit = kwargs.pop("max_gen_toks")
        if limit >= self.max_length:
            cause = f"max_gen_toks {limit} leaves no room for a prompt: the model has {self.max_length} positions"
            raise PosttrainError(Problem("generation_kwargs", cause, "--gen-kwargs max_gen_toks=64"))
        return Settings([term for term in until if term], limit, bool(kwargs["do_sample"]), kwargs)

    def _prompts(self, contexts: Sequence[str], limit: int) -> list[list[int]]:
        """Return the ids of the contexts, cut on the left so that `limit` more fit, as in `HFLM.tok_batch_encode`. An
        empty context becomes the prefix token."""
        room = self.max_length - limit
        coded = self.encoded(contexts)
        self.respondent.usage.truncated += sum(len(coded[text]) > room for text in contexts)
        return [coded[text][-room:] or [self.prefix_token_id] for text in contexts]

    def _only_plain(self, settings: Settings) -> str:
        """Return why `decode` cannot answer requests with these settings; empty when it can."""
        config = self.respondent.model.generation_config
        extra = sorted(settings.given.keys() - OWN)
        if config is not None:
            extra += sorted(k for k, v in config.to_diff_dict().items() if k not in WITHOUT_EFFECT and v is not None)
        if extra:
            return f"generation settings that only model.generate has: {', '.join(dict.fromkeys(extra))}"
        return "" if self._stop_ids <= set(self.tokenizer.all_special_ids) else "an end token that is ordinary text"

    @property
    def _stop_ids(self) -> frozenset[int]:
        """The end tokens of the generation config, and that of the tokenizer, which HFLM uses as a stop string."""
        config = self.respondent.model.generation_config
        listed = config.eos_token_id if config is not None else None
        listed = listed if isinstance(listed, list) else [listed]
        return frozenset(i for i in [*listed, self.eot_token_id] if i is not None)

    def _decode(self, prompts: list[list[int]], settings: Settings, done: Callable[[int, list[int]], None]) -> None:
        decode(
            self.respondent.model,
            prompts,
            stop=self._stop_ids,
            pad_id=self.respondent.pad_id,
            max_new_tokens=settings.limit,
            seed=self.seed,
            batch_tokens=self.batch_tokens,
            stop_texts=settings.until,
            text_of=self.tok_decode,
            on_done=lambda at, answer: done(at, answer.ids),
            usage=self.respondent.usage,
            **self._sampling(settings),
        )

    def _sampling(self, settings: Settings) -> dict[str, Any]:
        """Return temperature, top_p, top_k: the task's, else the generation config's, else those of `model.generate`.
        Temperature 0 is greedy; top_p 1 and top_k 0 exclude no token. Without any setting top_k is 50."""
        if not settings.sampled:
            return {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
        config = self.respondent.model.generation_config
        chosen: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": TOP_K}
        for given in ({} if config is None else config.to_dict(), settings.given):
            chosen |= {key: given[key] for key in chosen if given.get(key) is not None}
        return {key: int(value) if key == "top_k" else float(value) for key, value in chosen.items()}

    @torch.inference_mode()
    def _generate_plainly(
        self, prompts: list[list[int]], settings: Settings, done: Callable[[int, list[int]], None]
    ) -> None:
        from lm_eval.models.utils_hf import stop_sequences_criteria

        model, given = self.respondent.model, dict(settings.given)
        if not settings.sampled and not given.get("temperature"):
            given.pop("temperature", None)
        torch.manual_seed(self.seed)
        longest = given.pop("max_length", None)
        for at, prompt in enumerate(prompts):
            with whole_prompts(model):
                out = model.generate(
                    input_ids=torch.tensor([prompt], device=model.device),
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
                    max_length=longest or len(prompt) + settings.limit,
                    stopping_criteria=stop_sequences_criteria(self.tokenizer, settings.until, len(prompt), 1),
                    pad_token_id=self.respondent.pad_id,
                    use_cache=True,
                    **given,
                )
            done(at, out[0, len(prompt) :].tolist())

    def _text(self, ids: list[int], settings: Settings) -> str:
        """Return the answer without special tokens, thoughts, a stop string and the text after it."""
        from lm_eval.models.utils import postprocess_generated_text

        end = self.think_end_token
        if isinstance(end, int) and end in ids:
            ids = ids[len(ids) - ids[::-1].index(end) :]
        text = self.tok_decode(ids)
        text = text.lstrip() if isinstance(end, int) else text
        return postprocess_generated_text(text, settings.until, end if isinstance(end, str) else None)
