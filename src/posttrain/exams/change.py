"""The change exam: did the target change, did the rest follow, did everything else stay?

Every probe of a change is put to the respondent before and after, greedily, and both answers are kept. `scores.py`
turns the samples into scores; this file only asks, compares answer with answer, and lets a killed exam go on.

Per probe, by group:

- `reliability`, `generality.*`: `ok` = the answer after matches the change file (`matching.matches`, or `contains`).
- `locality.same_pattern|neighbour|unrelated`: `ok` = the content is kept (`kept.kept` does not find it clearly
  changed). `kept` = the graded measure, 0 to 1; `band` = same, drifted or changed; `why` = what decided.
- `locality.format`: `ok` = still JSON with the same values; where the answer before was no JSON but had a form (a list,
  a table, code), still of that form and its content kept. `locality.refusal`: `ok` = still a refusal. Where the answer
  before had no form or was no refusal there was nothing to keep: `ok` is None, the probe is not counted, and that is
  said.
- a locality probe with `keeps`: `ok` = all of these words are still there, whatever else is said; not counted where one
  was missing before.
- locality also: `strict` = equal texts; `leak` = now names the new object, which it did not before; `manner` = how it
  is said is as before (`manner.py`), 0 to 1.
- with a judge: `judged` = what another model says about whether both answers say the same (`judge.py`); it decides
  nothing.
- with an `answer`: `new_beats_old` = the new answer's summed log-probability after the change is above that of the
  old answer, which is what the respondent said before. A sum over tokens, so longer answers weigh less: the samples
  hold both sums. Left out where both answers are equal.
- `reliability` and `locality.unrelated`: drift, KL(before ‖ after) in nats over the whole vocabulary, summed along the
  answer before and its end-of-turn token. Left out where a respondent shows no distributions, or where their
  vocabularies differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from posttrain.config.change import Change, Question
from posttrain.data.records import Message
from posttrain.errors import PosttrainError, Problem
from posttrain.exams.behaviour import formatting
from posttrain.exams.judge import judge_same
from posttrain.exams.kept import kept
from posttrain.exams.manner import manner
from posttrain.exams.matching import (
    MatchMode,
    contains,
    is_refusal,
    json_values,
    matches,
    normalise,
    same_values,
)
from posttrain.exams.naming import names
from posttrain.exams.scores import ExamResult, score
from posttrain.exams.uncounted import NO_FORM, NO_REFUSAL, lacking
from posttrain.inference.encoding import PromptReader
from posttrain.inference.locations import among, located
from posttrain.inference.protocol import Answer, Distributions, Prompt, Respondent, Scored, Spoken
from posttrain.models.meter import Meter

__all__ = ["BeforeCache", "Probe", "ProbeResult", "change_exam", "check_change", "kl_nats", "probes_of"]

BeforeCache = MutableMapping[tuple[object, ...], Answer | Distributions]
"""What the respondent before said, by (its fingerprint, what was asked): a study's cells share one."""
KEPT_BYTES = 16 << 20
"""Distributions larger than this are computed again rather than kept (a 150k vocabulary, a very long answer)."""
DRIFT_GROUPS = ("reliability", "locality.unrelated")
FORMS = ("bullets", "table", "code")
"""Marks of a form that somebody may have asked for."""
DRIFT_CHUNK = 32
"""Probes whose whole distributions are held at once."""


@dataclass(frozen=True)
class Probe:
    """One question of the exam; answer, answer_contains: the accepted ones, empty in locality."""

    group: str
    index: int
    prompt: Spoken
    answer: tuple[str, ...] = ()
    answer_contains: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    subject: str | None = None

    @property
    def question(self) -> str:
        """The user's last words."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content

    @property
    def key(self) -> str:
        """The same for the same question in the same group, wherever it stands in the file."""
        spoken = self.prompt if isinstance(self.prompt, str) else [[m.role, m.content] for m in self.prompt]
        parts = [self.group, spoken, self.answer, self.answer_contains, *([self.keeps] if self.keeps else [])]
        content = json.dumps(parts, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ProbeResult:
    """One line of `samples.jsonl`. None: does not apply to this probe, or could not be counted (`note` says why)."""

    key: str
    group: str
    index: int
    prompt: str
    """The user's last words."""
    answer: tuple[str, ...]
    answer_contains: tuple[str, ...]
    before: str
    after: str
    ok: bool | None
    ok_before: bool | None = None
    """Targets and generality: was it met before the change already?"""
    kept: float | None = None
    """How much of the content is kept, 0 to 1."""
    band: str = ""
    """same, drifted or changed."""
    why: str = ""
    """What decided about the band."""
    manner: float | None = None
    """How much of the manner is kept, 0 to 1."""
    judged: bool | None = None
    """What the judge says about whether both answers say the same."""
    strict: bool | None = None
    leak: bool | None = None
    new_beats_old: bool | None = None
    logp_new_nats: float | None = None
    logp_old_nats: float | None = None
    kl_nats: float | None = None
    """Summed over `kl_tokens` positions."""
    kl_tokens: int | None = None
    tokens_before: int = 0
    tokens_after: int = 0
    ended_before: bool = True
    ended_after: bool = True
    """False: cut at max_new_tokens."""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ProbeResult:
        """The other way; unknown keys are left aside, so that callers may add their own."""
        own: dict[str, Any] = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        return cls(**own | {name: tuple(own[name]) for name in ("answer", "answer_contains")})


def probes_of(change: Change) -> list[Probe]:
    """Every probe of a change: targets first, then generality, then locality."""
    return [
        Probe(
            group, index, _prompt(question), question.answer, question.answer_contains, question.keeps, question.subject
        )
        for group, index, question in change.probes()
    ]


def _prompt(question: Question) -> Spoken:
    if isinstance(question.prompt, str):
        return question.prompt
    return tuple(Message(turn.role, turn.content) for turn in question.prompt)


def change_exam(
    before: Respondent,
    after: Respondent,
    change: Change,
    *,
    before_cache: BeforeCache | None = None,
    on_sample: Callable[[ProbeResult], None] | None = None,
    done: Mapping[str, ProbeResult] | None = None,
    max_new_tokens: int = 64,
    mode: MatchMode = "says",
    chunk: int = 4096,
    judge: Respondent | None = None,
    floor: bool = False,
) -> ExamResult:
    """Examine one change.

    before_cache: kept between calls with the same `before`, so that it is asked once per study; on_sample: called with
    each finished probe; done: finished probes of an earlier, killed call by `Probe.key`, which are not asked again;
    chunk: so many probes are asked at once, all by default: smaller chunks lose less when killed, and cost speed;
    judge: is asked whether two answers say the same; floor: `after` is the noise floor, and progress calls it so.
    """
    cache: BeforeCache = {} if before_cache is None else before_cache
    probes = probes_of(change)
    if before.stateful:
        cause = "it adapts to what it is asked, so what it said before a change cannot be kept"
        raise PosttrainError(Problem(before.name, cause, "compare with the model that it starts from"))
    if after.stateful:  # asked one by one, from the beginning
        after.reset()
        done, chunk = {}, 1
    finished: dict[str, ProbeResult] = dict(done or {})
    new_objects = [answer for target in change.target for answer in target.answer]
    waiting = list({probe.key: probe for probe in probes if probe.key not in finished}.values())
    for start in range(0, len(waiting), chunk):
        part = waiting[start : start + chunk]
        with located(partial(_place, change, part)):
            for result in _ask(before, after, part, new_objects, cache, max_new_tokens, mode, judge, floor=floor):
                finished[result.key] = result
                if on_sample is not None:
                    on_sample(result)
    return score([replace(finished[p.key], index=p.index) for p in probes])


def check_change(reader: PromptReader, change: Change) -> None:
    """The errors of `change_exam` that are known before a model is loaded: of probes that it cannot be asked."""
    probes = probes_of(change)
    with located(partial(_place, change, probes)):
        reader.check([probe.prompt for probe in probes])


def _place(change: Change, probes: Sequence[Probe], number: int) -> str:
    return change.place_of(probes[number].group, probes[number].index)


def _ask(
    before: Respondent,
    after: Respondent,
    probes: Sequence[Probe],
    new_objects: Sequence[str],
    cache: BeforeCache,
    max_new_tokens: int,
    mode: MatchMode,
    judge: Respondent | None,
    *,
    floor: bool,
) -> Iterator[ProbeResult]:
    """Both answers to every probe in one call each, then likelihoods and drift, in one call each."""
    old = _answers_before(before, [p.prompt for p in probes], cache, max_new_tokens)
    asking = "asking the noise floor" if floor else "asking the model after the change"
    with _meter(asking, len(probes), max_new_tokens) as meter:
        new = after.answers([p.prompt for p in probes], max_new_tokens=max_new_tokens, on_answer=meter.piece)
    results = [_judge(probe, said, says, new_objects, mode) for probe, said, says in zip(probes, old, new, strict=True)]
    if judge is not None:
        results = _with_judgement(judge, results)
    results = _with_likelihood(after, probes, results)
    yield from _with_drift(before, after, probes, results, cache)


def _answers_before(
    before: Respondent, prompts: Sequence[Prompt], cache: BeforeCache, max_new_tokens: int
) -> list[Answer]:
    keys: list[tuple[object, ...]] = [(before.fingerprint, "answer", max_new_tokens, prompt) for prompt in prompts]
    missing: dict[tuple[object, ...], int] = {}
    for i, key in enumerate(keys):
        if key not in cache:
            missing.setdefault(key, i)
    if missing:
        which = list(missing.values())
        asked = [prompts[i] for i in which]
        with (
            _meter("asking the model before the change", len(asked), max_new_tokens) as meter,
            among(which.__getitem__, "probe"),
        ):
            said = before.answers(asked, max_new_tokens=max_new_tokens, on_answer=meter.piece)
        cache.update(zip(missing, said, strict=True))
    return [answer for key in keys if isinstance(answer := cache[key], Answer)]


def _meter(what: str, probes: int, max_new_tokens: int = 0) -> Meter:
    """Counts what is asked at once."""
    most = probes * max_new_tokens or None
    return Meter(what, probes, "probes", most_tokens=most, kept="the same command asks this part again")


def _judge(probe: Probe, before: Answer, after: Answer, new_objects: Sequence[str], mode: MatchMode) -> ProbeResult:
    result = ProbeResult(
        key=probe.key,
        group=probe.group,
        index=probe.index,
        prompt=probe.question,
        answer=probe.answer,
        answer_contains=probe.answer_contains,
        before=before.text,
        after=after.text,
        ok=None,
        tokens_before=before.tokens,
        tokens_after=after.tokens,
        ended_before=before.ended,
        ended_after=after.ended,
    )
    if not probe.group.startswith("locality."):
        met = [
            _met(probe, text, mode, old)
            for text, old in ((after.text, [before.text]), (before.text, []))
        ]  # fmt: skip
        return replace(result, ok=met[0], ok_before=met[1])
    is_new, was_new = (names(text, new_objects, prompt=probe.question) for text in (after.text, before.text))
    result = replace(
        result,
        strict=before.text == after.text,
        leak=is_new and not was_new,
        manner=manner(probe.question, before.text, after.text).score,
    )
    return _stayed(probe, result)


def _met(probe: Probe, text: str, mode: MatchMode, old: Sequence[str]) -> bool:
    said = bool(probe.answer) and matches(text, probe.answer, mode=mode, old=old, prompt=probe.question)
    return said or (bool(probe.answer_contains) and contains(text, probe.answer_contains))


def _stayed(probe: Probe, result: ProbeResult) -> ProbeResult:
    """The result with whether what had to stay stayed, and why a probe is not counted."""
    before, after = result.before, result.after
    if probe.group == "locality.refusal" and not probe.keeps:
        if not is_refusal(before):
            return replace(result, note=NO_REFUSAL)
        return replace(result, ok=is_refusal(after))
    missing = [word for word in probe.keeps if not contains(before, [word])]
    if missing:
        return replace(result, note=lacking(missing))
    had, has = (formatting(text) for text in (before, after))
    structured = json_values(before) is not None
    if probe.group == "locality.format" and not (probe.keeps or structured or any(had[form] for form in FORMS)):
        return replace(result, note=NO_FORM)
    content = kept(
        probe.question,
        before,
        after,
        truncated_before=not result.ended_before,
        truncated_after=not result.ended_after,
    )
    result = replace(result, kept=content.score, band=content.band, why=content.reason)
    if probe.keeps:
        return replace(result, ok=all(contains(after, [word]) for word in probe.keeps))
    if probe.group == "locality.format":
        if structured:
            return replace(result, ok=same_values(before, after))
        still = all(has[form] for form in FORMS if had[form])
        return replace(result, ok=still and content.band != "changed")
    return replace(result, ok=content.band != "changed")


def _with_judgement(judge: Respondent, results: Sequence[ProbeResult]) -> list[ProbeResult]:
    """Locality probes with the judge's opinion; refusals are none of its business."""
    results = list(results)
    asked = [
        i
        for i, r in enumerate(results)
        if r.group.startswith("locality.") and r.group != "locality.refusal" and r.before
    ]
    with among(asked.__getitem__, "probe"):
        opinions = judge_same(judge, [(results[i].prompt, results[i].before, results[i].after) for i in asked])
    for i, opinion in zip(asked, opinions, strict=True):
        results[i] = replace(results[i], judged=opinion)
    return results


def _with_likelihood(after: Respondent, probes: Sequence[Probe], results: Sequence[ProbeResult]) -> list[ProbeResult]:
    results = list(results)
    asked = [
        i
        for i, result in enumerate(results)
        if result.answer and normalise(result.before) and normalise(result.answer[0]) != normalise(result.before)
    ]
    pairs = [(probes[i].prompt, text) for i in asked for text in (results[i].answer[0], results[i].before)]
    scored: list[Scored] = []
    if pairs:
        with (
            _meter("weighing the answers before and after", len(pairs)) as meter,
            among(lambda number: asked[number // 2], "probe"),
        ):
            scored = after.logprobs(pairs, on_scored=meter.piece)
    for i, new, old in zip(asked, scored[::2], scored[1::2], strict=True):
        results[i] = replace(
            results[i],
            logp_new_nats=new.sum_nats,
            logp_old_nats=old.sum_nats,
            new_beats_old=new.sum_nats > old.sum_nats,
        )
    return results


def _with_drift(
    before: Respondent,
    after: Respondent,
    probes: Sequence[Probe],
    results: Sequence[ProbeResult],
    cache: BeforeCache,
) -> Iterator[ProbeResult]:
    asked = [i for i, result in enumerate(results) if result.group in DRIFT_GROUPS]
    drift: dict[int, ProbeResult] = {}
    with _meter("measuring drift", len(asked)) as meter:
        for start in range(0, len(asked), DRIFT_CHUNK):
            part = asked[start : start + DRIFT_CHUNK]
            prompts, answers = [probes[i].prompt for i in part], [results[i].before for i in part]
            with among(part.__getitem__, "probe"):
                was = _distributions_before(before, prompts, answers, cache)
                now = after.next_token_logprobs(prompts, answers) if was is not None else None
            if was is None or now is None:
                break
            for i, p, q in zip(part, was, now, strict=True):
                if p.ids == q.ids and p.logprobs.shape == q.logprobs.shape and p.ids:
                    kl = kl_nats(p.logprobs, q.logprobs)
                    if math.isfinite(kl):  # infinite where a model rules tokens out altogether
                        drift[i] = replace(results[i], kl_nats=kl, kl_tokens=len(p.ids))
            meter.more(len(part))
    for i, result in enumerate(results):
        yield drift.get(i, result)


def _distributions_before(
    before: Respondent, prompts: Sequence[Prompt], answers: Sequence[str], cache: BeforeCache
) -> list[Distributions] | None:
    keys: list[tuple[object, ...]] = [
        (before.fingerprint, "next", prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    found = {i: value for i, key in enumerate(keys) if isinstance(value := cache.get(key), Distributions)}
    missing = [i for i in range(len(keys)) if i not in found]
    if missing:
        with among(missing.__getitem__, "probe"):
            fresh = before.next_token_logprobs([prompts[i] for i in missing], [answers[i] for i in missing])
        if fresh is None:
            return None
        for i, value in zip(missing, fresh, strict=True):
            found[i] = value
            if value.logprobs.numel() * value.logprobs.element_size() <= KEPT_BYTES:
                cache[keys[i]] = value
    return [found[i] for i in range(len(keys))]


def kl_nats(before: torch.Tensor, after: torch.Tensor) -> float:
    """KL(before ‖ after) in nats, summed over positions.

        sum_t sum_v p(t, v) * (log p(t, v) - log q(t, v))

    before, after: next-token log-probabilities in nats, shape (A, V). Never below 0: rounding is cut off.
    """  # fmt: skip
    p = before.double().exp()
    terms = torch.where(p > 0, p * (before.double() - after.double()), 0.0)
    return max(0.0, float(terms.sum()))
