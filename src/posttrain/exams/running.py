"""A task is put to a respondent: few large calls, every sample on the disk at once, nothing asked twice, costs counted.

All `score` asks of a chunk go into one `logprobs` call, so that shared prefixes are shared; all `say` asks with equal
settings into one `answers` call; all `text` asks into one `rolling` call. An item is judged and written as soon as its
last reply is there. A second start reads what is there and asks only the rest.

A perturbed question is an item of its own with the same id. Where a perturbation changes nothing in a text, nothing is
asked: an answer to the same words is no evidence of robustness.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.data.records import Message
from posttrain.errors import ConfigError, DataError, PosttrainError, Problem
from posttrain.exams.perturb import perturb
from posttrain.exams.statistics import Interval
from posttrain.exams.task import Ask, Item, Perturbation, Reply, Sample, Score, Task, content_id, mean_score
from posttrain.exams.task_files import SampleFile, SampleKey
from posttrain.inference.encoding import PromptEncoder, PromptReader
from posttrain.inference.places import placed
from posttrain.inference.protocol import Plain, Prompt, Respondent, Scored, Usage
from posttrain.inference.respondents import PromptedRespondent
from posttrain.inference.shards import ShardedRespondent
from posttrain.models.memory import peak_gib

__all__ = ["TaskProgress", "TaskResult", "check_task", "run_task"]

CHUNK = 8192
"""Asks put to the respondent at once: it holds all their tokens in memory, and a border between two chunks costs one
more forward of the prefix that they share."""
ENOUGH_FOR_CALIBRATION = 300
"""Fewer samples give a calibration error that is mostly noise (HELM says so of its own)."""
KNOWN = 0.02
"""The share of the work after which its pace is taken to be known: the first replies wait for the prefixes of all."""
WEIGHT = {"score": 1.0, "text": 4.0, "say": 8.0}
"""What an ask takes, roughly, for the time left: an answer is many forward passes, a text many tokens."""


@dataclass(frozen=True)
class TaskProgress:
    """How far a task is. done, total: asks; tokens: forwarded and generated so far; left_s: expected, None at first."""

    done: int
    total: int
    wall_s: float
    tokens: int
    left_s: float | None


@dataclass(frozen=True)
class TaskResult:
    """A task's scores over one respondent, the samples behind them, and what it cost.

    cost: `wall_s`, `forwarded_tokens` (`scored_tokens` + `prompt_tokens`), the numbers of `Usage`, and `peak_gib` of
    the process; of this call only, when an earlier one had asked a part.
    """

    task: str
    scores: dict[str, float]
    ci95: dict[str, Interval]
    n: dict[str, int]
    samples: list[Sample]
    cost: dict[str, float]
    notes: list[str]
    headline: str
    capabilities: Mapping[str, str]
    signature: str
    chance: float | None
    higher_is_better: bool = True
    earlier: int = 0
    """Samples that an earlier call had left."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the samples, which have their own file."""
        return {
            "task": self.task,
            "headline": self.headline,
            "scores": self.scores,
            "ci95": {name: list(interval) for name, interval in self.ci95.items()},
            "n": self.n,
            "cost": self.cost,
            "notes": self.notes,
            "capabilities": dict(self.capabilities),
            "signature": self.signature,
            "chance": self.chance,
            "higher_is_better": self.higher_is_better,
        }


def _sample_keys(respondent: Respondent, task: Task, forms: Mapping[str, Form]) -> dict[str, SampleKey]:
    """What each sample of a file must carry to be this respondent's answer to this task: by `Sample.key`."""
    who, how = content_id(respondent.fingerprint), task.settings
    return {key: SampleKey(who, how, content_id(form.item.asked)) for key, form in forms.items()}


def run_task(
    respondent: Respondent,
    task: Task,
    *,
    samples_path: Path | None = None,
    on_progress: Callable[[TaskProgress], None] | None = None,
    restart: bool = False,
    discard: bool = False,
) -> TaskResult:
    """Ask, judge, score. samples_path: every sample is appended there at once, and those there are not asked again, of
    fewer questions too; restart: throw that file away first. ConfigError when it holds samples of another model, of
    other settings or of questions that are not asked; with discard these are thrown away.
    """
    _check_template(respondent, task)
    forms, unchanged = _forms(task)
    wanted = {_key(form): form for form in forms}
    keys = _sample_keys(respondent, task, wanted) if samples_path else {}
    file = SampleFile(samples_path, keys, restart=restart, discard=discard) if samples_path else None
    done: dict[str, Sample] = dict(file.done) if file else {}
    earlier = sum(key in done for key in wanted)
    waiting = [form for key, form in wanted.items() if key not in done]

    def keep(sample: Sample) -> None:
        done[sample.key] = sample
        if file:
            file.append(sample)

    meter = _Meter(respondent, waiting, on_progress)
    try:
        for chunk in _chunks(waiting):
            _ask(respondent, task, chunk, meter, keep)
    finally:
        if file:
            file.close()
    samples = [done[key] for key in wanted]
    if file:
        file.rewrite(samples)
    return _scored(respondent, task, samples, meter, unchanged, earlier)


def _check_template(respondent: Respondent, task: Task) -> None:
    """ConfigError for `template: chat` and a model without one, which would be asked in plain text instead."""
    inner = respondent
    while isinstance(inner, PromptedRespondent | ShardedRespondent):
        inner = inner.inner
    if isinstance(inner, PromptEncoder):
        _can_chat(inner, respondent.name, task)


def _can_chat(encoder: PromptEncoder, name: str, task: Task) -> None:
    if task.chat and not encoder.tokenizer.chat_template:
        cause = f"the exam asks in the chat template (template: chat), and {name} has none"
        raise ConfigError(Problem(task.name, cause, "template: plain, or a chat model"))


def check_task(reader: PromptReader, name: str, task: Task) -> None:
    """The errors of `run_task` that are known before a model is loaded: of texts that it cannot be asked.

    name: the model's; reader: what it makes of prompts.
    """
    _can_chat(reader, name, task)
    places: dict[Ask, Form] = {}
    for form in _forms(task)[0]:
        for ask in form.item.asks:  # the choices of a question have one prompt
            places.setdefault(ask if ask.kind != "score" else ask._replace(continuation=""), form)
    problems: list[Problem] = []
    for asks in _calls(places):
        try:
            with placed(partial(_place, task, [places[ask] for ask in asks])):
                if asks[0].kind == "text":
                    reader.check_documents([ask.continuation for ask in asks])
                else:
                    reader.check([ask.prompt for ask in asks], scored=asks[0].kind == "score")
        except PosttrainError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)


# ---- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """An item as it is asked: in its own words, or perturbed."""

    item: Item
    perturbation: str = ""


def _key(form: Form) -> str:
    return f"{form.item.id}|{form.perturbation}"


def _forms(task: Task) -> tuple[list[Form], dict[str, int]]:
    """Every item, then every item as each perturbation has it; and how many texts each one leaves as they are."""
    if not task.items:
        raise DataError(Problem(task.name, "the task has no items", "look at its file and its limit"))
    twice = [name for name, count in Counter(item.id for item in task.items).items() if count > 1]
    if twice:
        raise DataError(*(Problem(task.name, f"two items have the id '{name}'", "give each its own") for name in twice))
    forms = [Form(item) for item in task.items]
    unchanged: dict[str, int] = {}
    for kind in task.perturbations:
        other = [_perturbed(task, item, kind) for item in task.items]
        forms += [Form(item, kind) for item in other if item is not None]
        unchanged[kind] = sum(item is None for item in other)
    return forms, unchanged


def _perturbed(task: Task, item: Item, kind: Perturbation) -> Item | None:
    """The item with its question disturbed; None where nothing changes."""
    words = perturb(item.question, kind, seed=task.seed)
    if words == item.question:
        return None
    try:
        asks = tuple(ask._replace(prompt=_said(ask.prompt, item.question, words)) for ask in item.asks)
    except ValueError as error:
        cause = f"the task cannot be asked with '{kind}': the words of item '{item.id}' are not in its prompt"
        raise PosttrainError(Problem(_place(task, [Form(item)]), cause, "leave the perturbation out")) from error
    return replace(item, question=words, asks=asks)


def _said(prompt: Prompt, old: str, new: str) -> Prompt:
    """The prompt with the last `old` replaced: what stands before may be examples. ValueError when it is not there."""
    if isinstance(prompt, Plain):
        return Plain(_last_replaced(prompt.text, old, new))
    if isinstance(prompt, str):
        return _last_replaced(prompt, old, new)
    for at in range(len(prompt) - 1, -1, -1):
        if old and old in prompt[at].content:
            turn: Message = replace(prompt[at], content=_last_replaced(prompt[at].content, old, new))
            return (*prompt[:at], turn, *prompt[at + 1 :])
    raise ValueError(old)


def _last_replaced(text: str, old: str, new: str) -> str:
    if not old:
        raise ValueError(old)
    at = text.rindex(old)
    return text[:at] + new + text[at + len(old) :]


def _chunks(forms: Sequence[Form]) -> Iterator[list[Form]]:
    """Items in order, about CHUNK asks at a time."""
    part: list[Form] = []
    asks = 0
    for form in forms:
        part.append(form)
        asks += len(form.item.asks)
        if asks >= CHUNK:
            yield part
            part, asks = [], 0
    if part:
        yield part


# ---- asking ----------------------------------------------------------------------------------------------------------


class _Meter:
    """What is done, what it took, and what is left."""

    def __init__(
        self, respondent: Respondent, forms: Sequence[Form], tell: Callable[[TaskProgress], None] | None
    ) -> None:
        self.respondent = respondent
        self.before = replace(respondent.usage)
        self.tell = tell
        self.total = sum(len(form.item.asks) for form in forms)
        self.whole = sum(WEIGHT[ask.kind] for form in forms for ask in form.item.asks)
        self.done = 0
        self.weight = 0.0
        self.began = time.perf_counter()

    def spent(self) -> dict[str, float]:
        """Every number of `Usage`, since the beginning."""
        was = asdict(self.before)
        return {
            name: value - was[name] for name, value in asdict(self.respondent.usage).items() if name != "plain_reason"
        }

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self.began

    def step(self, ask: Ask, times: int) -> None:
        """An ask was answered, which stands in so many places."""
        self.done += times
        self.weight += WEIGHT[ask.kind] * times
        if self.tell is not None:
            spent = self.spent()
            tokens = int(spent["scored_tokens"] + spent["prompt_tokens"] + spent["generated_tokens"])
            known = self.weight >= KNOWN * self.whole
            left_s = self.wall_s * (self.whole / self.weight - 1) if known else None
            self.tell(TaskProgress(self.done, self.total, self.wall_s, tokens, left_s))


def _ask(
    respondent: Respondent, task: Task, forms: Sequence[Form], meter: _Meter, keep: Callable[[Sample], None]
) -> None:
    """Put every ask of these items, each once; judge an item with its last reply."""
    places: dict[Ask, list[int]] = {}  # ask -> the items that wait for it
    for i, form in enumerate(forms):
        for ask in form.item.asks:
            places.setdefault(ask, []).append(i)
    replies: dict[Ask, Reply] = {}
    missing = [len(set(form.item.asks)) for form in forms]

    def judged(i: int) -> None:
        form = forms[i]
        sample = task.judge(form.item, [replies[ask] for ask in form.item.asks])
        keep(replace(sample, id=form.item.id, perturbation=form.perturbation))

    def arrived(ask: Ask, reply: Reply) -> None:
        if ask.kind == "score" and isinstance(reply, Scored) and not reply.tokens:
            raise _no_tokens(task, forms[places[ask][0]], ask.continuation)
        replies[ask] = reply
        for i in dict.fromkeys(places[ask]):
            missing[i] -= 1
            if not missing[i]:
                judged(i)
        meter.step(ask, len(places[ask]))

    for i, form in enumerate(forms):  # an item of no asks is judged by itself
        if not form.item.asks:
            judged(i)
    for asks in _calls(places):
        items = [forms[places[ask][0]] for ask in asks]
        with placed(partial(_place, task, items)):
            _call(respondent, asks, arrived)


def _place(task: Task, forms: Sequence[Form], number: int = 0) -> str:
    """The exam, an item, and where that stands in a file."""
    form = forms[number]
    disturbed = f", disturbed by '{form.perturbation}'" if form.perturbation else ""
    item = replace(form.item, id=form.item.id.removeprefix(":"))  # :1 where the file names no subject
    named = f"exam {task.name}, item '{item.id}'{disturbed}"
    return f"{form.item.location} ({named})" if form.item.location else named


def _no_tokens(task: Task, form: Form, text: str) -> DataError:
    """An answer of no tokens has 0 nats, and would be likelier than every other one."""
    cause = f"the model has no token for the answer {text!r}, so it cannot be told how likely it is"
    return DataError(Problem(_place(task, [form]), cause, "change the answer, or take the item out"))


def _calls(asks: Iterable[Ask]) -> list[list[Ask]]:
    """The asks that one call can put: by kind, and answers by their length and where they stop."""
    calls: dict[tuple[object, ...], list[Ask]] = {}
    for ask in asks:
        settings = (ask.max_new_tokens, ask.stop) if ask.kind == "say" else ()
        calls.setdefault((ask.kind, *settings), []).append(ask)
    return list(calls.values())


def _call(respondent: Respondent, asks: Sequence[Ask], arrived: Callable[[Ask, Reply], None]) -> None:
    first = asks[0]

    def told(number: int, reply: Reply) -> None:
        arrived(asks[number], reply)

    if first.kind == "score":
        respondent.logprobs([(ask.prompt, ask.continuation) for ask in asks], on_scored=told)
    elif first.kind == "text":
        respondent.rolling([ask.continuation for ask in asks], on_scored=told)
    else:
        prompts = [ask.prompt for ask in asks]
        respondent.answers(prompts, max_new_tokens=first.max_new_tokens, stop=first.stop, on_answer=told)


# ---- scores ----------------------------------------------------------------------------------------------------------


def _scored(
    respondent: Respondent,
    task: Task,
    samples: list[Sample],
    meter: _Meter,
    unchanged: Mapping[str, int],
    earlier: int,
) -> TaskResult:
    originals = [sample for sample in samples if not sample.perturbation]
    scores = dict(task.aggregate(originals))
    robust, notes = _robustness(task, samples)
    calibration, doubts = _calibration(originals)
    scores |= robust | calibration
    beyond = [name for name, score in scores.items() if not math.isfinite(score.value)]  # JSON has no infinity
    scores = {name: score for name, score in scores.items() if name not in beyond}
    spent = meter.spent()
    cost = {
        "wall_s": meter.wall_s,
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
        *_cost_notes(cost, respondent.usage, samples, earlier),
    ]
    if task.finish is not None:
        notes += task.finish(respondent.name, samples)
    return TaskResult(
        task=task.name,
        scores={name: score.value for name, score in scores.items()},
        ci95={name: score.ci95 for name, score in scores.items() if score.ci95 is not None},
        n={name: score.n for name, score in scores.items()},
        samples=samples,
        cost=cost,
        notes=notes,
        headline=task.headline,
        capabilities=task.capabilities,
        signature=task.whole_signature,
        chance=task.chance,
        higher_is_better=task.higher_is_better,
        earlier=earlier,
    )


def _robustness(task: Task, samples: Sequence[Sample]) -> tuple[dict[str, Score], list[str]]:
    """`<headline>~<perturbation>`: the headline over the questions that it changed; `robust.<headline>`: the mean over
    questions, changed at least once, of the worst among the original and its disturbed forms.
    """
    name = task.headline
    scores: dict[str, Score] = {}
    notes: list[str] = []
    for kind in task.perturbations:
        own = [sample for sample in samples if sample.perturbation == kind]
        made = task.aggregate(own) if own else {}
        if name in made:
            scores[f"{name}~{kind}"] = made[name]
    if not task.perturbations:
        return scores, notes
    forms: dict[str, list[Sample]] = {}
    for sample in samples:
        forms.setdefault(sample.id, []).append(sample)
    several = [own for own in forms.values() if len(own) > 1]
    if several and all(name in sample.scores for own in several for sample in own):
        worst = min if task.higher_is_better else max
        scores[f"robust.{name}"] = mean_score([worst(sample.scores[name] for sample in own) for own in several])
    elif several:
        notes.append(f"no robust.{name}: it is not a mean over questions; see its values by perturbation")
    return scores, notes


def _calibration(samples: Sequence[Sample]) -> tuple[dict[str, Score], list[str]]:
    """Where the respondent shows how sure it is."""
    sure = [s for s in samples if s.confidence is not None and s.correct is not None]
    if not sure:
        return {}, []
    from posttrain.exams.metrics import calibration as metrics

    confidence = [float(s.confidence or 0.0) for s in sure]
    correct = [bool(s.correct) for s in sure]
    made = {
        "ece_em10": metrics.ece_equal_mass(confidence, correct, bins=10),
        "ece_ew10": metrics.ece_equal_width(confidence, correct, bins=10),
        "selective_acc": metrics.selective_accuracy(confidence, correct, coverage=0.1),
        "selective_area": metrics.selective_area(confidence, correct),
    }
    few = len(sure) < ENOUGH_FOR_CALIBRATION
    notes = [f"calibration is over {len(sure)} samples only; below 300 it is mostly noise"] if few else []
    return {f"calibration.{name}": Score(value, None, len(sure)) for name, value in made.items()}, notes


def _cost_notes(cost: Mapping[str, float], usage: Usage, samples: Sequence[Sample], earlier: int) -> Iterator[str]:
    cut = sum(not sample.ended for sample in samples)
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
