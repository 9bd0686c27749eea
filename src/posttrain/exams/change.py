"""The change exam: did the target change, did related answers follow, and did everything else stay?

Every probe of a change is put to the respondent before and after the change, greedily, and both answers are kept. This
file says what is asked, and compares the answers; `running.py` asks, and `scores.py` turns the samples into scores. By
group:

- `reliability`, `generality.*`: `ok` = the answer after matches the change file (`matching.matches`, or `contains`).
- `locality.same_pattern|neighbour|unrelated`: `ok` = the content is kept (`kept.kept` finds no clear change).
- `locality.format`: `ok` = still JSON with the same values, or still in the same format (a list, a table, code) and
  the content is kept. `locality.refusal`: `ok` = still a refusal. If the answer before had no such format or was no
  refusal, `ok` is None and the probe is not counted.
- a locality probe with `keeps`: `ok` = all of these words are still there; not counted if one was missing before.
- locality also: `strict` = equal texts; `leak` = the answer now names the new object, and did not before; `manner`,
  0 to 1; `judged` = the opinion of a judge, which decides nothing.
- with an `answer`: `new_beats_old` = the summed log-probability of the new answer after the change is above that of the
  answer before. Left out if both texts are equal.
- `reliability` and `locality.unrelated`: drift, KL(before ‖ after) in nats over the whole vocabulary, summed along the
  answer before and its end-of-turn token. Left out if a respondent shows no distributions, or if their vocabularies
  differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from posttrain.config.change import Change, Question
from posttrain.data.records import Message
from posttrain.errors import ConfigError, Problem
from posttrain.exams.behaviour import formatting, manner
from posttrain.exams.capabilities import CHANGE_EXAM
from posttrain.exams.exam import Exam, Part, Sitting
from posttrain.exams.exam_config import ExamConfig
from posttrain.exams.kept import MAX_NEW_TOKENS, kept, opinion_of, prompts_of
from posttrain.exams.matching import MatchMode, contains, json_values, matches, same_values
from posttrain.exams.mentions import names
from posttrain.exams.normalising import normalise
from posttrain.exams.records import ProbeResult
from posttrain.exams.refusals import is_refusal
from posttrain.exams.results import CHANGE, ExamInfo
from posttrain.exams.running import TaskResult, open_log, run_task
from posttrain.exams.sample_log import SampleLog
from posttrain.exams.scores import CUT_FORM, HEADLINE, NO_FORM, NO_REFUSAL, SPECS, lacking, notes_of, outcomes, score
from posttrain.exams.task import Ask, Item, Reply, Task, content_id, the_scored
from posttrain.inference.protocol import Answer, Distributions, Respondent, Spoken

__all__ = ["ChangeExam", "change_task", "kl_nats", "needs_two"]

MEASURE = 3
"""Version of the judging rules, raised when they change, so that samples judged by older rules are not reused."""
DRIFT_GROUPS = ("reliability", "locality.unrelated")
FORMS = ("bullets", "table", "code")
"""Formats in `behaviour.formatting` that a prompt may have asked for."""
ASKING = "asking the model after the change"
DOING = {
    ("before", "say"): "asking the model before the change",
    ("", "say"): ASKING,
    ("", "score"): "weighing the answers before and after",
    ("", "next"): "measuring drift",
}
DOING_OF_FLOOR = {**DOING, ("", "say"): "asking the noise floor"}


def change_task(
    change: Change,
    *,
    name: str = CHANGE,
    max_new_tokens: int = 64,
    mode: MatchMode = "says",
    judge: Respondent | None = None,
    floor: bool = False,
) -> Task[ProbeResult]:
    """Return the task of one change. judge: may be None; floor: the noise floor is examined, for progress messages."""
    new_objects = [answer for target in change.target for answer in target.answer]
    judged = "" if judge is None else judge.fingerprint
    settings = content_id(new_objects, max_new_tokens, mode, judged)[:8]
    return Task(
        name=name,
        kind=CHANGE,
        change=change.name,
        items=_items(change, max_new_tokens),
        judge=partial(_judge, new_objects, mode, judge is not None),
        then=partial(_then, judge),
        headline=HEADLINE,
        capabilities=CHANGE_EXAM,
        signature=f"change|{mode}|{max_new_tokens} tokens|{settings}|v{MEASURE}",
        scores=SPECS,
        aggregate=score,
        finish=lambda respondent, samples: notes_of(samples),
        outcomes=outcomes,
        read=ProbeResult.from_json,
        location=lambda item: change.location_of(item.group, item.doc["index"]),
        doing=DOING_OF_FLOOR if floor else DOING,
    )


@dataclass(frozen=True)
class ChangeExam(Exam):
    """The exam of the changes of a sitting, each compared with the untouched model."""

    config: ExamConfig
    max_new_tokens: int = 64
    mode: MatchMode = "says"
    judge: str = ""
    compares = True

    @property
    def parts(self) -> tuple[Part, ...]:
        """The exam itself, without items: its questions are in the changes."""
        info = ExamInfo(
            name=self.name,
            kind=CHANGE,
            role=self.config.role,
            headline=HEADLINE,
            capabilities=dict(CHANGE_EXAM),
            scores=SPECS,
        )
        return (Part(info, ()),)

    @property
    def fingerprint(self) -> str:
        """A hash of its settings."""
        return content_id(self.max_new_tokens, self.mode, self.judge, MEASURE)

    def tasks(
        self, changes: Sequence[Change], judge: Respondent | None = None, *, floor: bool = False
    ) -> list[Task[Any]]:
        """Return one task for each change."""
        made = partial(change_task, name=self.name, max_new_tokens=self.max_new_tokens, mode=self.mode)
        return [made(change, judge=judge, floor=floor) for change in changes]

    def take(self, sitting: Sitting) -> list[TaskResult[Any]]:
        """Examine each change in turn; all changes share samples.jsonl. ConfigError without a model before
        the change.
        """
        before = sitting.before
        if before is None:
            raise needs_two()
        judge = sitting.open(self.judge) if self.judge else None
        tasks = self.tasks(sitting.changes, judge, floor=sitting.floor)
        after = [sitting.told(sitting.respondent, one) for one in sitting.changes]
        log: SampleLog[ProbeResult] | None = None
        if sitting.folder is not None:
            both = [({"": one, "before": before}, task) for one, task in zip(after, tasks, strict=True)]
            path = sitting.folder / "samples.jsonl"
            log = open_log(path, both, restart=sitting.restart, discard=sitting.discard)
        found: list[TaskResult[Any]] = []
        for one, task in zip(after, tasks, strict=True):
            found.append(
                run_task(
                    one,
                    task,
                    before=before,
                    judge=judge,
                    cache=sitting.cache(task.change),
                    log=log,
                    chunk=sitting.chunk,
                    on_progress=sitting.telling(self.name),
                )
            )
            sitting.done(sitting.respondent, found[-1:])
        if log is not None:
            log.rewrite([(one.change, sample.key) for one in found for sample in one.samples])
        return found


def needs_two() -> ConfigError:
    """Return the error for an exam without a model to compare with, or without a change."""
    cause = "compares two models and needs a change file"
    return ConfigError(Problem("exam change", cause, "use --change FILE --before MODEL"))


def _items(change: Change, max_new_tokens: int) -> list[Item]:
    """Return every probe: targets first, then generality, then locality. A probe that occurs twice in a group
    is kept twice, with different ids."""
    items: list[Item] = []
    seen: Counter[str] = Counter()
    for group, index, question in change.probes():
        said = question.prompt
        prompt = said if isinstance(said, str) else tuple(Message(turn.role, turn.content) for turn in said)
        own = _id(group, prompt, question)
        seen[own] += 1
        after = Ask("say", prompt, max_new_tokens=max_new_tokens)
        doc = {
            "index": index,
            "answer": question.answer,
            "answer_contains": question.answer_contains,
            "keeps": question.keeps,
        }
        name = own if seen[own] == 1 else f"{own}#{seen[own]}"
        items.append(Item(name, question.question, (after._replace(of="before"), after), group, doc))
    return items


def _id(group: str, prompt: Spoken, question: Question) -> str:
    """Return an id that is equal for the same question in the same group, at any position in the file."""
    spoken = prompt if isinstance(prompt, str) else [[m.role, m.content] for m in prompt]
    parts = [group, spoken, question.answer, question.answer_contains, *([question.keeps] if question.keeps else [])]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


def _both(replies: Sequence[Reply]) -> tuple[Answer, Answer, list[str]]:
    """Return the answers before and after, and the judge's replies."""
    before, after, *opinions = [reply for reply in replies if isinstance(reply, Answer)]
    return before, after, [one.text for one in opinions]


def _then(judge: Respondent | None, item: Item, replies: Sequence[Reply]) -> list[Ask]:
    """Return what is asked when both answers are known. These are the judge's opinion, how likely both
    answers are, and the distributions along the answer before."""
    before, after, _ = _both(replies)
    prompt, asks = item.asks[-1].prompt, []
    if judge is not None and _is_judged(item, before):
        prompts = prompts_of(judge, item.question, before.text, after.text)
        asks += [Ask("say", one, max_new_tokens=MAX_NEW_TOKENS, of="judge") for one in prompts]
    new = item.doc["answer"]
    if new and normalise(before.text) and normalise(new[0]) != normalise(before.text):
        asks += [Ask("score", prompt, text) for text in (new[0], before.text)]
    if item.group in DRIFT_GROUPS:
        asks += [Ask("next", prompt, before.text, of="before"), Ask("next", prompt, before.text)]
    return asks


def _is_judged(item: Item, before: Answer) -> bool:
    """Whether the judge is asked about this item: a locality probe that is not about refusals."""
    return item.group.startswith("locality.") and item.group != "locality.refusal" and bool(before.text)


def _judge(
    new_objects: Sequence[str], mode: MatchMode, has_judge: bool, item: Item, replies: Sequence[Reply]
) -> ProbeResult:
    before, after, opinions = _both(replies)
    result = ProbeResult(
        key=item.id,
        group=item.group,
        index=item.doc["index"],
        prompt=item.question,
        answer=item.doc["answer"],
        answer_contains=item.doc["answer_contains"],
        before=before.text,
        after=after.text,
        ok=None,
        judged=opinion_of(opinions) if has_judge and _is_judged(item, before) else None,
        tokens_before=before.tokens,
        tokens_after=after.tokens,
        ended_before=before.ended,
        ended_after=after.ended,
    )
    if scored := the_scored(replies):
        new, old = (one.sum_nats for one in scored)
        result = replace(result, logp_new_nats=new, logp_old_nats=old, new_beats_old=new > old)
    result = _with_drift(result, [reply for reply in replies if isinstance(reply, Distributions)])
    if not item.group.startswith("locality."):
        met = [_met(result, text, mode, old) for text, old in ((after.text, [before.text]), (before.text, []))]
        return replace(result, ok=met[0], ok_before=met[1])
    is_new, was_new = (names(text, new_objects, prompt=item.question) for text in (after.text, before.text))
    result = replace(
        result,
        strict=before.text == after.text,
        leak=is_new and not was_new,
        manner=manner(item.question, before.text, after.text).score,
    )
    return _stayed(result, item.doc["keeps"])


def _with_drift(result: ProbeResult, shown: Sequence[Distributions]) -> ProbeResult:
    for p, q in zip(shown[::2], shown[1::2], strict=True):
        if p.ids == q.ids and p.logprobs.shape == q.logprobs.shape and p.ids:
            kl = kl_nats(p.logprobs, q.logprobs)
            if math.isfinite(kl):  # infinite if a model gives a token probability 0
                return replace(result, kl_nats=kl, kl_tokens=len(p.ids))
    return result


def _met(result: ProbeResult, text: str, mode: MatchMode, old: Sequence[str]) -> bool:
    said = bool(result.answer) and matches(text, result.answer, mode=mode, old=old, prompt=result.prompt)
    return said or (bool(result.answer_contains) and contains(text, result.answer_contains))


def _stayed(result: ProbeResult, keeps: Sequence[str]) -> ProbeResult:
    """Return the result with whether the required content stayed, and with the reason if a probe is not counted."""
    before, after = result.before, result.after
    if result.group == "locality.refusal" and not keeps:
        if not is_refusal(before):
            return replace(result, note=NO_REFUSAL)
        return replace(result, ok=is_refusal(after))
    missing = [word for word in keeps if not contains(before, [word])]
    if missing:
        return replace(result, note=lacking(missing))
    had, has = (formatting(text) for text in (before, after))
    structured = json_values(before) is not None
    if result.group == "locality.format" and not (keeps or structured or any(had[form] for form in FORMS)):
        return replace(result, note=NO_FORM if result.ended_before else CUT_FORM)
    content = kept(
        result.prompt, before, after, truncated_before=not result.ended_before, truncated_after=not result.ended_after
    )
    result = replace(result, kept=content.score, band=content.band, why=content.reason)
    if keeps:
        return replace(result, ok=all(contains(after, [word]) for word in keeps))
    if result.group == "locality.format":
        if structured:
            return replace(result, ok=same_values(before, after))
        still = all(has[form] for form in FORMS if had[form])
        return replace(result, ok=still and content.band != "changed")
    return replace(result, ok=content.band != "changed")


def kl_nats(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return KL(before ‖ after) in nats, summed over positions.

        sum_t sum_v p(t, v) * (log p(t, v) - log q(t, v))

    before, after: next-token log-probabilities in nats, shape (A, V). Never below 0: negative rounding errors become 0.
    """  # fmt: skip
    p = before.double().exp()
    terms = torch.where(p > 0, p * (before.double() - after.double()), 0.0)
    return max(0.0, float(terms.sum()))
