"""lm-eval's `generate_until` for `PosttrainLM`: limits, stop strings and settings as in HFLM, answered by our decoder.

Settings that the decoder does not have (beams, repetition penalties, other processors of `model.generate`) take the
plain path: `model.generate`, one prompt at a time, as HFLM with batch size 1; that is counted and said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from posttrain.errors import PosttrainError, Problem
from posttrain.exams.lm_eval_texts import Texts
from posttrain.inference.decode import decode
from posttrain.inference.locations import among

__all__ = ["MAX_GEN_TOKENS", "generate"]

MAX_GEN_TOKENS = 256
"""An answer's limit where a task gives none (HFLM.max_gen_toks)."""
TOP_K = 50
"""Of `model.generate` when nobody says otherwise."""
OWN = frozenset({"do_sample", "temperature", "top_p", "top_k"})
"""Settings that `decode` has."""
WITHOUT_EFFECT = OWN | {
    "bos_token_id", "eos_token_id", "pad_token_id", "max_length", "transformers_version", "use_cache",
    "_from_model_config", "cache_implementation", "output_attentions", "output_hidden_states", "output_scores",
    "return_dict_in_generate", "trust_remote_code",
}  # fmt: skip
"""Keys of a generation config that change no greedy answer, or that are read here."""


class Settings(NamedTuple):
    """One group's: stop strings, limit of new tokens, sampling, and settings for `model.generate` only."""

    until: list[str]
    limit: int
    sampled: bool
    given: dict[str, Any]


def generate(texts: Texts, arguments: Sequence[tuple[str, dict[str, Any]]], done: Callable[[int, str], None]) -> None:
    """Answer every (context, settings); requests of equal settings together, `done` told each text as it is ready."""
    groups: dict[str, list[int]] = {}
    for i, (_, given) in enumerate(arguments):
        groups.setdefault(json.dumps(given, sort_keys=True), []).append(i)
    for rows in groups.values():
        with among(rows.__getitem__):
            settings = _settings(texts, arguments[rows[0]][1])
            prompts = _prompts(texts, [arguments[i][0] for i in rows], settings.limit)
            texts.respondent.check_tokens(prompts, "request")
            reason = _only_plain(texts, settings)
            if reason:
                texts.respondent.usage.plain_requests += len(rows)
                texts.respondent.usage.plain_reason = texts.respondent.usage.plain_reason or reason
            ask = _generate_plainly if reason else _decode
            ask(texts, prompts, settings, partial(_finish, texts, rows, settings, done))


def _finish(
    texts: Texts, rows: list[int], settings: Settings, done: Callable[[int, str], None], at: int, ids: list[int]
) -> None:
    done(rows[at], _text(texts, ids, settings))


def _settings(texts: Texts, given: dict[str, Any]) -> Settings:
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(given, MAX_GEN_TOKENS))
    eos = texts.eot_token_id
    until = handle_stop_sequences(
        kwargs.pop("until", None), eos=None if eos is None else texts.decoded(eos, skip_special_tokens=False)
    )
    limit = kwargs.pop("max_gen_toks")
    if limit >= texts.max_length:
        cause = f"max_gen_toks {limit} leaves no room for a prompt: the model has {texts.max_length} positions"
        raise PosttrainError(Problem("generation_kwargs", cause, "--gen-kwargs max_gen_toks=64"))
    return Settings([term for term in until if term], limit, bool(kwargs["do_sample"]), kwargs)


def _prompts(texts: Texts, contexts: Sequence[str], limit: int) -> list[list[int]]:
    """Ids, cut on the left so that `limit` more fit (`HFLM.tok_batch_encode`); an empty context is the prefix token."""
    room = texts.max_length - limit
    coded = texts.encoded(contexts)
    texts.respondent.usage.truncated += sum(len(coded[text]) > room for text in contexts)
    return [coded[text][-room:] or [texts.prefix_token_id] for text in contexts]


def _only_plain(texts: Texts, settings: Settings) -> str:
    """Why `decode` cannot answer these; empty when it can."""
    config = texts.respondent.model.generation_config
    extra = sorted(settings.given.keys() - OWN)
    if config is not None:
        extra += sorted(k for k, v in config.to_diff_dict().items() if k not in WITHOUT_EFFECT and v is not None)
    if extra:
        return f"generation settings that only model.generate has: {', '.join(dict.fromkeys(extra))}"
    special = set(texts.tokenizer.all_special_ids)
    if any(i not in special for i in _stop_ids(texts)):
        return "an end token that is ordinary text"
    return ""


def _stop_ids(texts: Texts) -> frozenset[int]:
    """The generation config's end tokens, and the tokenizer's, which HFLM has as a stop string."""
    config = texts.respondent.model.generation_config
    listed = config.eos_token_id if config is not None else None
    listed = listed if isinstance(listed, list) else [listed]
    return frozenset(i for i in [*listed, texts.eot_token_id] if i is not None)


def _decode(texts: Texts, prompts: list[list[int]], settings: Settings, done: Callable[[int, list[int]], None]) -> None:
    chosen = _sampling(texts, settings)
    decode(
        texts.respondent.model,
        prompts,
        stop=_stop_ids(texts),
        pad_id=texts.respondent.pad_id,
        max_new_tokens=settings.limit,
        temperature=chosen.temperature,
        seed=texts.seed,
        top_p=chosen.top_p,
        top_k=chosen.top_k,
        batch_tokens=texts.batch_tokens,
        stop_texts=settings.until,
        text_of=texts.decoded,
        on_done=lambda at, answer: done(at, answer.ids),
        usage=texts.respondent.usage,
    )


class Sampling(NamedTuple):
    """Temperature 0 is greedy; top_p 1 and top_k 0 cut nothing."""

    temperature: float
    top_p: float
    top_k: int


def _sampling(texts: Texts, settings: Settings) -> Sampling:
    """The task's, else the generation config's, else what `model.generate` does without either (top_k 50)."""
    if not settings.sampled:
        return Sampling(0.0, 1.0, 0)
    config = texts.respondent.model.generation_config
    own = {} if config is None else config.to_dict()
    chosen = {"temperature": 1.0, "top_p": 1.0, "top_k": TOP_K}
    for given in (own, settings.given):
        chosen |= {key: value for key in Sampling._fields if (value := given.get(key)) is not None}
    return Sampling(float(chosen["temperature"]), float(chosen["top_p"]), int(chosen["top_k"]))


@torch.inference_mode()
def _generate_plainly(
    texts: Texts, prompts: list[list[int]], settings: Settings, done: Callable[[int, list[int]], None]
) -> None:
    from lm_eval.models.utils_hf import stop_sequences_criteria

    given = dict(settings.given)
    if not settings.sampled and not given.get("temperature"):
        given.pop("temperature", None)
    torch.manual_seed(texts.seed)
    for at, prompt in enumerate(prompts):
        out = texts.respondent.model.generate(
            input_ids=torch.tensor([prompt], device=texts.respondent.model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=texts.respondent.model.device),
            max_length=given.pop("max_length", None) or len(prompt) + settings.limit,
            stopping_criteria=stop_sequences_criteria(texts.tokenizer, settings.until, len(prompt), 1),
            pad_token_id=texts.respondent.pad_id,
            use_cache=True,
            **given,
        )
        done(at, out[0, len(prompt) :].tolist())


def _text(texts: Texts, ids: list[int], settings: Settings) -> str:
    """The answer without special tokens, thoughts, and what follows a stop string."""
    from lm_eval.models.utils import postprocess_generated_text

    end = texts.think_end_token
    if isinstance(end, int) and end in ids:
        ids = ids[len(ids) - ids[::-1].index(end) :]
    text = texts.decoded(ids)
    text = text.lstrip() if isinstance(end, int) else text
    return postprocess_generated_text(text, settings.until, end if isinstance(end, str) else None)
