"""Put a task to a respondent: few large calls, every sample written at once, no question asked twice, costs counted.

All `score` requests of a chunk go into one `logprobs` call, so that shared prefixes are shared; all `say` requests with
equal settings into one `answers` call; all `text` requests into one `rolling` call; `next` requests in parts of 32
texts, because whole distributions are large. An item is judged and its sample is written as soon as its last reply has
arrived. A second start reads the samples that are there and asks only the rest.

Some tasks also ask the model before the change (`Ask.of`), if there is one. Its replies are kept in a cache that the
caller gives. A task that compares makes a second round of requests once it has the first replies (`Task.then`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

import torch

from posttrain.errors import ConfigError, DataError, PosttrainError, Problem
from posttrain.exams.perturb import Variant, calibration, location_in, robustness, variants_of
from posttrain.exams.records import Record, Sample
from posttrain.exams.results import ExamInfo
from posttrain.exams.sample_log import SampleKey, SampleLog
from posttrain.exams.statistics import Interval, Score
from posttrain.exams.task import Ask, Item, R, Reply, Task, content_id
from posttrain.inference.encoding import PromptReader
from posttrain.inference.locations import located
from posttrain.inference.protocol import Distributions, Respondent, Scored, Usage
from posttrain.inference.state import StateFile
from posttrain.models.memory import peak_gib
from posttrain.models.meter import Meter

__all__ = ["Cache", "TaskProgress", "TaskResult", "check_task", "open_log", "result_of", "run_task"]

CHUNK = 8192
"""Requests put to the respondent at once. It holds all their tokens in memory; a prefix that two chunks share is
forwarded once more."""
NEXT_CHUNK = 32
"""Number of texts for which whole distributions are held at once."""
KEPT_BYTES = 16 << 20
"""In bytes: larger distributions are computed again instead of kept (a vocabulary of 150k, a very long answer)."""
KNOWN = 0.02
"""Share of the work after which its speed counts as known: the first replies wait for the prefixes of all requests."""
WEIGHT = {"score": 1.0, "text": 4.0, "say": 8.0, "next": 1.0}
"""Rough cost of a request by kind, for the remaining time: an answer takes many forward passes, a text has many
tokens."""
AGAIN = "the same command asks this part again"

Parties = Mapping[str, Respondent]
"""`Ask.of` -> the respondent that is asked."""
Cache = MutableMapping[tuple[str, Ask], Reply]
"""(fingerprint, request) -> reply of the model before the change. The cells of a study share one cache."""
_Call = list[list[Ask]]
"""Requests that are put together, in parts."""
NOTHING = Distributions((), torch.empty(0))
"""The distributions of a respondent that shows none."""


@dataclass(frozen=True)
class TaskProgress:
    """Progress of a task. done, total: requests, or items when the task compares; tokens: spent so far; left_s:
    expected remaining seconds, None at first.
    """

    done: int
    total: int
    wall_s: float
    tokens: int
    left_s: float | None


@dataclass(frozen=True)
class TaskResult(Generic[R]):
    """A task's scores of one respondent, the records behind them, and the cost.

    cost: `wall_s`, `forwarded_tokens` (`scored_tokens` + `prompt_tokens`), the numbers of `Usage`, and `peak_gib` of
    the process. It covers this call only, also when an earlier call had asked a part. earlier: number of records that
    the earlier call had left; change: name of the change that the task asks about, empty for most tasks; outcomes: as
    in `exams/floor.py`.
    """

    info: ExamInfo
    scores: dict[str, float]
    ci95: dict[str, Interval]
    n: dict[str, int]
    samples: list[R]
    cost: dict[str, float]
    notes: list[str]
    earlier: int = 0
    change: str = ""
    outcomes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)


def result_of(
    info: ExamInfo, scores: Mapping[str, Score], samples: list[R], cost: dict[str, float], notes: list[str]
) -> TaskResult[R]:
    """Return a `TaskResult` built from scores with their intervals."""
    ci95 = {name: score.ci95 for name, score in scores.items() if score.ci95 is not None}
    values, n = {name: score.value for name, score in scores.items()}, {name: score.n for name, score in scores.items()}
    return TaskResult(info, values, ci95, n, samples, cost, notes)


def open_log(
    path: Path, taken: Sequence[tuple[Parties, Task[R]]], *, restart: bool = False, discard: bool = False
) -> SampleLog[R]:
    """Open the sample file of tasks, each given with its respondents by `Ask.of`; see `SampleLog`."""
    keys = {}
    for parties, task in taken:
        whose = content_id(*(party.fingerprint for of, party in parties.items() if of != "judge"))
        for variant in variants_of(task)[0]:
            keys[task.change, variant.key] = SampleKey(whose, task.settings, content_id(variant.item.asked))
    return SampleLog(path, keys, taken[0][1].read, restart=restart, discard=discard)


def run_task(
    respondent: Respondent,
    task: Task[R],
    *,
    before: Respondent | None = None,
    judge: Respondent | None = None,
    cache: Cache | None = None,
    samples_path: Path | None = None,
    log: SampleLog[R] | None = None,
    chunk: int = CHUNK,
    on_progress: Callable[[TaskProgress], None] | None = None,
    restart: bool = False,
    discard: bool = False,
) -> TaskResult[R]:
    """Ask, judge and score a task, and return the result.

    before, judge: the other respondents that a task may ask; cache: replies that `before` has given already;
    samples_path: each sample is appended to this file at once, and samples found there are not asked again, also when
    they were written for fewer questions; restart: delete that file first; log: a sample file that several tasks share,
    used instead of `samples_path`; the caller puts it in order; chunk: number of requests at once: smaller chunks lose
    less work after a kill, but are slower.

    ConfigError when the file holds samples of another model, of other settings or of questions that are not asked; with
    discard these samples are deleted instead. ConfigError when the task wants a chat template and the respondent has
    none. PosttrainError when `before` is stateful. DataError when the model has no token for an answer that is scored.
    """
    _can_chat(respondent.tokenizer, respondent.name, task)
    if before is not None and before.stateful:
        cause = "it adapts to what it is asked, so what it said before a change cannot be kept"
        raise PosttrainError(Problem(before.name, cause, "compare with the model that it starts from"))
    parties = {"": respondent}
    parties |= {of: one for of, one in (("before", before), ("judge", judge)) if one is not None}
    if samples_path is not None:
        log = open_log(samples_path, [(parties, task)], restart=restart, discard=discard)
    variants, unchanged = variants_of(task)
    done = {v.key: log.done[task.change, v.key] for v in variants if log and (task.change, v.key) in log.done}
    ending = f".{content_id(task.change)}.state" if task.change else ".state"
    state = None if log is None else log.path.with_suffix(ending)
    keys = {v.key: v.key if log is None else str(log.keys[task.change, v.key]) for v in variants}
    states = StateFile(state, respondent, keys)  # the state of a stateful respondent, next to its samples
    states.resume(done)
    earlier = len(done)
    waiting = [variant for variant in variants if variant.key not in done]

    def keep(record: R) -> None:
        done[record.key] = record
        if log is not None:
            log.append(record, task.change)

    meter = _Progress(respondent, task, waiting, parties, on_progress)
    asking = _Asking(parties, task, {} if cache is None else cache, meter, keep)
    # a stateful respondent gets the items one by one, in order
    for part in _chunks(waiting, 1 if respondent.stateful else chunk):
        asking.ask(part)
        states.keep(len(done))
    states.remove()
    if samples_path is not None and log is not None:
        log.rewrite([(task.change, variant.key) for variant in variants])
    return _scored(respondent, task, [done[variant.key] for variant in variants], meter, unchanged, earlier)


def _can_chat(tokenizer: Any, name: str, task: Task[Any]) -> None:
    """Raise ConfigError for `template: chat` if the model has no template: it would be asked in plain text."""
    if task.chat and tokenizer is not None and not tokenizer.chat_template:
        cause = f"the exam asks in the chat template (template: chat), and {name} has none"
        raise ConfigError(Problem(task.name, cause, "template: plain, or a chat model"))


def check_task(reader: PromptReader, name: str, task: Task[Any]) -> None:
    """Raise the errors of `run_task` that can be known before a model is loaded: texts that it cannot be asked.

    reader: encodes prompts as the model does; name: the model's name. ConfigError for a missing chat template;
    DataError with every text that cannot be asked.
    """
    _can_chat(reader.tokenizer, name, task)
    asked_by: dict[Ask, Variant] = {}
    for variant in variants_of(task)[0]:
        # all choices of a question have one prompt, and the model before has the same one
        for ask in variant.item.asks:
            ask = ask._replace(of="")
            asked_by.setdefault(ask if ask.kind != "score" else ask._replace(continuation=""), variant)
    problems: list[Problem] = []
    for asks in (part for call in _calls(asked_by) for part in call):
        try:
            with located(lambda number, asks=asks: location_in(task, asked_by[asks[number]])):  # type: ignore[misc]
                if asks[0].kind == "text":
                    reader.check_documents([ask.continuation for ask in asks])
                else:
                    reader.check([ask.prompt for ask in asks], scored=asks[0].kind == "score")
        except PosttrainError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)


def _chunks(variants: Sequence[Variant], most: int) -> Iterator[list[Variant]]:
    """Yield the variants in order, in parts with about `most` requests to the examined respondent."""
    part: list[Variant] = []
    asks = 0
    for variant in variants:
        part.append(variant)
        asks += sum(not ask.of for ask in variant.item.asks)
        if asks >= most:
            yield part
            part, asks = [], 0
    if part:
        yield part


# ---- asking ----------------------------------------------------------------------------------------------------------


class _Progress:
    """The progress of a task: what is done, what it cost, and what is left."""

    def __init__(
        self,
        respondent: Respondent,
        task: Task[Any],
        variants: Sequence[Variant],
        parties: Parties,
        tell: Callable[[TaskProgress], None] | None,
    ) -> None:
        self.respondent = respondent
        self.before = replace(respondent.usage)
        self.tell = tell
        # a task that compares counts items: how many requests its second round has is not known yet
        each = [WEIGHT[ask.kind] for v in variants for ask in _asked(v.item, parties)]
        asked = [1.0 for _ in variants] if task.compares else each
        self.total, self.whole = len(asked), sum(asked)
        self.done = 0
        self.weight = 0.0
        self.began = time.perf_counter()

    def spent(self) -> dict[str, float]:
        """Return every number of `Usage` since the start of this task."""
        was = asdict(self.before)
        now = asdict(self.respondent.usage)
        return {name: value - was[name] for name, value in now.items() if name != "plain_reason"}

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self.began

    def step(self, done: int, weight: float) -> None:
        """Count `done` more requests (or items of a task that compares) of this `weight`, and report the progress."""
        self.done += done
        self.weight += weight
        if self.tell is not None:
            spent = self.spent()
            tokens = int(spent["scored_tokens"] + spent["prompt_tokens"] + spent["generated_tokens"])
            known = self.weight >= KNOWN * self.whole
            left_s = self.wall_s * (self.whole / self.weight - 1) if known else None
            self.tell(TaskProgress(self.done, self.total, self.wall_s, tokens, left_s))


class _Asking(Generic[R]):
    """Put requests to the respondents, each once, and judge an item when its last reply has arrived."""

    def __init__(
        self, parties: Parties, task: Task[R], cache: Cache, progress: _Progress, keep: Callable[[R], None]
    ) -> None:
        self.parties, self.task, self.cache, self.progress, self.keep = parties, task, cache, progress, keep
        self.mute = False
        """Whether a respondent shows no distributions: then nothing is compared."""

    def ask(self, variants: Sequence[Variant]) -> None:
        """Ask everything that these items need, in one round or (`Task.then`) two."""
        then, asks = self.task.then, [_asked(variant.item, self.parties) for variant in variants]
        replies: dict[Ask, Reply] = {}
        if then is not None:
            self._round(variants, asks, replies, last=False)
            first = [[replies[ask] for ask in each] for each in asks]
            asks = [(*each, *then(v.item, said)) for v, each, said in zip(variants, asks, first, strict=True)]
        self._round(variants, asks, replies, last=True)

    def _round(
        self, variants: Sequence[Variant], asks: Sequence[Sequence[Ask]], replies: dict[Ask, Reply], *, last: bool
    ) -> None:
        waits: dict[Ask, list[int]] = {}  # request -> indices of the items that wait for it
        for i, each in enumerate(asks):
            for ask in each:
                if ask not in replies:
                    waits.setdefault(ask, []).append(i)
        missing = [len({ask for ask in each if ask not in replies}) for each in asks]

        def complete(i: int) -> None:
            if last:
                made = self.task.judge(variants[i].item, [replies[ask] for ask in asks[i]])
                self.keep(made.disturbed(variants[i].perturbation))
                if self.task.compares:
                    self.progress.step(1, 1.0)

        def arrived(ask: Ask, reply: Reply) -> None:
            if isinstance(reply, Scored) and ask.kind == "score" and not reply.tokens and not self.task.compares:
                text = ask.continuation  # with no token it would have 0 nats and look likelier than every other answer
                cause = f"the model has no token for the answer {text!r}, so it cannot be told how likely it is"
                where = location_in(self.task, variants[waits[ask][0]])
                raise DataError(Problem(where, cause, "change the answer, or take the item out"))
            replies[ask] = reply
            for i in dict.fromkeys(waits[ask]):
                missing[i] -= 1
                if not missing[i]:
                    complete(i)
            if not self.task.compares:
                self.progress.step(len(waits[ask]), WEIGHT[ask.kind] * len(waits[ask]))

        for i, count in enumerate(missing):
            if not count:
                complete(i)
        for call in _calls(waits):
            with self._meter(call) as meter:
                for part in call:
                    for of in dict.fromkeys(ask.of for ask in part):
                        own = [ask for ask in part if ask.of == of]
                        for ask in own:  # a request with a reply in the cache is not asked
                            if (known := self._known(ask)) is not None:
                                arrived(ask, known)
                        asked = [variants[waits[ask][0]] for ask in own if ask not in replies]
                        if asked:
                            with located(lambda i, asked=asked: location_in(self.task, asked[i])):  # type: ignore[misc]
                                self._call([ask for ask in own if ask not in replies], arrived, meter)
                    # distributions are large, and their items are judged now
                    for ask in part if part[0].kind == "next" else ():
                        del replies[ask]

    def _known(self, ask: Ask) -> Reply | None:
        if ask.kind == "next" and self.mute:
            return NOTHING
        return self.cache.get((self.parties[ask.of].fingerprint, ask)) if ask.of == "before" else None

    def _meter(self, call: _Call) -> Meter | nullcontext[None]:
        """Return a meter for a call that has a name in `Task.doing`, otherwise a context that does nothing. It counts
        the requests that are really asked; for pairs of distributions, one of the two."""
        asks = [ask for part in call for ask in part]
        what = self.task.doing.get((asks[-1].of, asks[-1].kind))
        total = sum(ask.of == asks[-1].of and self._known(ask) is None for ask in asks)
        if what is None or not total:
            return nullcontext()
        most = total * asks[0].max_new_tokens if asks[0].kind == "say" else None
        return Meter(what, total, "probes", most_tokens=most, kept=AGAIN)

    def _call(self, asks: Sequence[Ask], arrived: Callable[[Ask, Reply], None], meter: Meter | None) -> None:
        """Put requests with equal settings to one respondent."""
        first, party = asks[0], self.parties[asks[0].of]

        def told(number: int, reply: Reply) -> None:
            ask = asks[number]
            if ask.of == "before" and not (isinstance(reply, Distributions) and reply.logprobs.nbytes > KEPT_BYTES):
                self.cache[party.fingerprint, ask] = reply
            arrived(ask, reply)
            if meter is not None and (ask.kind != "next" or not ask.of):
                meter.more(1)

        if first.kind == "score":
            party.logprobs([(ask.prompt, ask.continuation) for ask in asks], on_scored=told)
        elif first.kind == "text":
            party.rolling([ask.continuation for ask in asks], on_scored=told)
        elif first.kind == "say":
            prompts = [ask.prompt for ask in asks]
            party.answers(prompts, max_new_tokens=first.max_new_tokens, stop=first.stop, on_answer=told)
        else:
            shown = party.next_token_logprobs([ask.prompt for ask in asks], [ask.continuation for ask in asks])
            self.mute = shown is None
            for number in range(len(asks)):
                told(number, NOTHING if shown is None else shown[number])


def _asked(item: Item, parties: Parties) -> tuple[Ask, ...]:
    """Return the requests of an item, without those to the model before the change if there is none."""
    return tuple(ask for ask in item.asks if ask.of != "before" or "before" in parties)


def _calls(asks: Iterable[Ask]) -> list[_Call]:
    """Sort requests into calls: by respondent, by kind, and for answers by their length limit and stop strings.
    Requests for distributions come last, those of both models side by side, NEXT_CHUNK texts per part."""
    calls: dict[tuple[object, ...], list[Ask]] = {}
    texts: dict[tuple[object, ...], list[Ask]] = {}
    for ask in asks:
        settings = (ask.max_new_tokens, ask.stop) if ask.kind == "say" else ()
        if ask.kind == "next":
            texts.setdefault((ask.prompt, ask.continuation), []).append(ask)
        else:
            calls.setdefault((ask.of, ask.kind, *settings), []).append(ask)
    each = list(texts.values())
    parts = [[ask for pair in each[i : i + NEXT_CHUNK] for ask in pair] for i in range(0, len(each), NEXT_CHUNK)]
    return [*([part] for part in calls.values()), *([parts] if parts else [])]


# ---- scores ----------------------------------------------------------------------------------------------------------


def _scored(
    respondent: Respondent,
    task: Task[R],
    samples: list[R],
    progress: _Progress,
    unchanged: Mapping[str, int],
    earlier: int,
) -> TaskResult[R]:
    originals = [sample for sample in samples if not sample.perturbation]
    scores = dict(task.aggregate(originals))
    robust, notes = robustness(task, samples)
    sure, doubts = calibration([sample for sample in originals if isinstance(sample, Sample)])
    scores |= robust | sure
    for name in scores:
        task.declared(name)
    beyond = [name for name, score in scores.items() if not math.isfinite(score.value)]  # JSON has no infinity
    scores = {name: score for name, score in scores.items() if name not in beyond}
    spent = progress.spent()
    cost = {
        "wall_s": progress.wall_s,
        "forwarded_tokens": spent["scored_tokens"] + spent["prompt_tokens"],
        **spent,
        "peak_gib": peak_gib(),
    }
    total = len(task.items)
    notes = [
        *task.notes,
        *(f"{kind} changes nothing in {count} of {total} questions" for kind, count in unchanged.items() if count),
        *notes,
        *doubts,
        *(f"{name} is left out: it is too large for a number, or none" for name in beyond),
        *(() if task.compares else _cost_notes(cost, respondent.usage, samples, earlier)),
    ]
    if task.finish is not None:
        notes += task.finish(respondent.name, samples)
    result = result_of(task.info, scores, samples, cost, notes)
    return replace(result, earlier=earlier, change=task.change, outcomes=task.outcomes(samples))


def _cost_notes(cost: Mapping[str, float], usage: Usage, samples: Sequence[Record], earlier: int) -> Iterator[str]:
    cut = sum(isinstance(sample, Sample) and not sample.ended for sample in samples)
    if cut:
        yield f"{cut} of {len(samples)} samples have an answer cut at max_new_tokens"
    if cost["truncated"]:
        were = "request was" if cost["truncated"] == 1 else "requests were"
        yield f"{cost['truncated']:.0f} {were} longer than the model's context and cut on the left"
    if cost["plain_requests"]:
        plain = f"{cost['plain_requests']:.0f} request{'' if cost['plain_requests'] == 1 else 's'}"
        yield f"{plain} shared no prefix: {usage.plain_reason}"
    if earlier:
        yield f"{earlier} of {len(samples)} samples were there already; time and tokens are of the others"
