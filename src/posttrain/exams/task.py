"""A task: questions, how an answer is judged, how judgements become scores, and the declarations of these scores.

A task does not use a model: `items` say what to ask (`Ask`), `judge` turns the replies to one item into a record, and
`aggregate` turns records into scores, each of which `scores` declares. `exams/running.py` asks, keeps every record, and
continues after a kill.

A kind of task is a module in `exams/tasks/`, registered with its config::

    @register("exam", "gsm8k", config=Gsm8kConfig, paper="arXiv:2110.14168")
    def gsm8k(config: Gsm8kConfig, base: Path) -> Task: ...
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple

from pydantic import Field
from typing_extensions import TypeVar

from posttrain.data.records import Message
from posttrain.errors import ConfigError, MissingError, PosttrainError, Problem
from posttrain.exams.exam_config import ExamConfig
from posttrain.exams.records import Record, Sample
from posttrain.exams.results import ExamInfo, Role
from posttrain.exams.score_spec import ScoreSpec, find_spec
from posttrain.exams.statistics import Score, bootstrap_over_changes, wilson
from posttrain.inference.protocol import Answer, Distributions, Plain, Prompt, Scored

__all__ = [
    "Ask",
    "Item",
    "Perturbation",
    "Reply",
    "Task",
    "TaskConfig",
    "answered",
    "averages",
    "by_group",
    "choice_asks",
    "chosen",
    "content_id",
    "draw",
    "resolve",
    "the_answer",
    "the_scored",
    "turns",
]

BUILTIN = "builtin:"
"""A path that begins with this names a file of this package."""
DATA = Path(__file__).parent / "data"

R = TypeVar("R", bound=Record, default=Sample)
Reply = Answer | Scored | Distributions
Perturbation = Literal["typos", "spaces", "lower", "width", "simplified", "traditional", "variants"]


class TaskConfig(ExamConfig):
    """What every kind has that asks the questions of a file."""

    path: str | None = None
    """The file of the questions, relative to the study."""
    limit: int | None = Field(default=None, gt=0)
    """Only so many items, drawn evenly by the seed, to try things out; a larger limit has them all, and more."""
    seed: int = 0
    """For every draw: few-shot examples, the order of options, perturbations, the limit."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """Ask as a user of the model's chat template, or continue plain text; auto: as the benchmark's standard has it."""
    perturbations: tuple[Perturbation, ...] = ()
    """Also ask every question disturbed in these ways; robustness is the worst case."""

    def files(self) -> list[str]:
        """Return the path of the questions' file in a list; empty for no file or a file of this package."""
        return [self.path] if self.path and not self.path.startswith(BUILTIN) else []

    def source(self, base: Path, *, what: str) -> Path:
        """Return the file or folder of the questions. ConfigError, which asks for `what`, when no path is given."""
        if self.path is None:
            mend = f"name {what}: {self.kind}=PATH, or path: in the YAML"
            raise ConfigError(Problem(self.kind, "'path' is missing", mend))
        return resolve(self.path, base)


class Ask(NamedTuple):
    """One request.

    kind: `say` asks for an answer of at most max_new_tokens that ends before any of `stop`; `score` asks how likely
    `continuation` is after `prompt`; `text` asks how likely the whole of `continuation` is by itself; `next` asks for
    the distributions along `continuation` (without ids if a respondent shows none). of: who is asked: the examined
    model (empty), the model before the change, or the judge. Where there is no model before, what only it is asked is
    left out, with its reply (`answered`).
    """

    kind: Literal["say", "score", "text", "next"]
    prompt: Prompt
    continuation: str = ""
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    of: Literal["", "before", "judge"] = ""


@dataclass(frozen=True)
class Item:
    """One question.

    id: unique in its task and the same in every run; question: the words that a perturbation changes, which occur in
    every request's prompt; group: subject or category; doc: plain JSON values that `judge` needs; location: file and
    line, for errors.
    """

    id: str
    question: str
    asks: tuple[Ask, ...]
    group: str = ""
    doc: Mapping[str, Any] = field(default_factory=dict)
    location: str = field(default="", compare=False)

    @property
    def asked(self) -> list[Any]:
        """All that a sample of this item depends on, except the settings of the task."""
        asks = [ask if ask.of else ask[:-1] for ask in self.asks]
        return [self.id, self.question, self.group, asks, self.doc]

    def sample(
        self,
        answer: str,
        target: str,
        scores: Mapping[str, float],
        said: Answer | None = None,
        *,
        correct: bool | None = None,
        choices: int | None = None,
        confidence: float | None = None,
        tokens: int = 0,
        extra: Mapping[str, Any] | None = None,
    ) -> Sample:
        """Return the judged sample of this item. said: the answer behind it, if there is one."""
        tokens, ended = (tokens, True) if said is None else (said.tokens, said.ended)
        judged = (answer, target, scores, correct, choices, confidence)
        return Sample(self.id, self.group, self.question, *judged, tokens=tokens, ended=ended, extra=extra or {})


def answered(item: Item, replies: Sequence[Reply]) -> list[tuple[int, Reply]]:
    """Return the replies to an item, each with the index of its request. Without a model before the change there are no
    replies to its requests.
    """
    asked = [i for i, ask in enumerate(item.asks) if len(replies) == len(item.asks) or ask.of != "before"]
    return list(zip(asked, replies, strict=True))


def the_answer(replies: Sequence[Reply]) -> Answer:
    """Return the first answer among the replies, for an item that asks for one answer."""
    return next(reply for reply in replies if isinstance(reply, Answer))


def the_scored(replies: Sequence[Reply]) -> list[Scored]:
    """Return the scores of the continuations, in the order of the requests."""
    return [reply for reply in replies if isinstance(reply, Scored)]


def averages(samples: Sequence[Sample]) -> dict[str, Score]:
    """Return the mean of each score over the samples that have it, overall and by group. A score that no sample has is
    absent.
    """
    return by_group(samples, means)


def by_group(samples: Sequence[Sample], scores: Callable[[Sequence[Sample]], dict[str, Score]]) -> dict[str, Score]:
    """Return the scores of all samples and, if there are several groups, those of each group as `<score>/<group>`."""
    made = scores(samples)
    groups = list(dict.fromkeys(s.group for s in samples if s.group))
    for group in groups if len(groups) > 1 else ():
        own = scores([s for s in samples if s.group == group])
        made |= {f"{name}/{group}": score for name, score in own.items()}
    return made


def means(samples: Sequence[Sample]) -> dict[str, Score]:
    """Return the mean of each score over the samples that have it."""
    names = dict.fromkeys(name for s in samples for name in s.scores)
    return {name: mean_score([float(s.scores[name]) for s in samples if name in s.scores]) for name in names}


def mean_score(values: Sequence[float]) -> Score:
    """Return the mean of at least one value with its interval: Wilson's if all are 0 or 1, else the bootstrap's."""
    if all(v in (0.0, 1.0) for v in values):
        return Score(sum(values) / len(values), wilson(int(sum(values)), len(values)), len(values))
    return Score(sum(values) / len(values), bootstrap_over_changes(values), len(values))


COMMON = (
    ScoreSpec("calibration.ece_em10", "ece_em10", "grade", "less", "calibration"),
    ScoreSpec("calibration.ece_ew10", "ece_ew10", "grade", "less", "calibration"),
    ScoreSpec("calibration.selective_acc", "selective_acc", "grade", group="calibration"),
    ScoreSpec("calibration.selective_area", "selective_area", "grade", group="calibration"),
)
"""Scores of every task that has samples with a confidence."""


@dataclass(frozen=True)
class Task(Generic[R]):
    """A task that is ready to be put to a respondent.

    headline: the score that stands for the task; capabilities: score name -> capability (`exams/capabilities.py`), at
    least for the headline; signature: one line with everything that the scores depend on (dataset, shots, template,
    metric versions), as in sacrebleu; scores: every score that `aggregate` makes, except those by group (`acc/law`);
    chance: the headline that guessing reaches, where known; notes: what a reader must know (rows left out, files
    without answers); finish: called with the respondent's name and every record once all are there (CapTrack's response
    files), returns notes; outcomes: score -> for each probe: 1 kept, 0 not kept, None not counted, for the comparison
    with the noise floor.

    From the config: name, kind, role, perturbations, seed, and chat: the chat template was requested, so that a model
    without one is refused.

    For the change exam: read: makes a record from a line of the sample file; then: returns the second round of
    requests, given the first replies; `judge` then gets the replies to both rounds; change: the change that the task
    asks about; location: the location of an item for errors, used instead of `Item.location`; doing: (of, kind) of
    requests -> what this work is called in progress messages; requests without a name are not reported.
    """

    items: Sequence[Item]
    judge: Callable[[Item, Sequence[Reply]], R]
    headline: str
    capabilities: Mapping[str, str]
    signature: str
    scores: tuple[ScoreSpec, ...]
    aggregate: Callable[[Sequence[R]], dict[str, Score]] = averages  # type: ignore[assignment]  # takes Sample, not R
    chance: float | None = None
    notes: tuple[str, ...] = ()
    finish: Callable[[str, Sequence[R]], Sequence[str]] | None = None
    name: str = ""
    kind: str = ""
    role: Role = "report"
    perturbations: tuple[Perturbation, ...] = ()
    seed: int = 0
    chat: bool = False
    read: Callable[[Mapping[str, Any]], R] = Sample.from_json  # type: ignore[assignment]
    then: Callable[[Item, Sequence[Reply]], Sequence[Ask]] | None = None
    change: str = ""
    location: Callable[[Item], str] | None = None
    doing: Mapping[tuple[str, str], str] = field(default_factory=dict)
    outcomes: Callable[[Sequence[R]], dict[str, tuple[int | None, ...]]] = lambda samples: {}

    @property
    def compares(self) -> bool:
        """Whether it also asks the model before the change."""
        return self.then is not None

    @property
    def asks_before(self) -> bool:
        """Whether some of its requests are to the model before the change, if there is one."""
        return any(ask.of == "before" for item in self.items for ask in item.asks)

    @property
    def specs(self) -> tuple[ScoreSpec, ...]:
        """Every score that it may have: its own, the headline on disturbed questions, and those of confidence."""
        derived = [f"{self.headline}~{kind}" for kind in self.perturbations]
        derived += [f"robust.{self.headline}"] if derived else []
        return (*self.scores, *(replace(self.spec, key=key, label=key, group="robust") for key in derived), *COMMON)

    @property
    def spec(self) -> ScoreSpec:
        """The declaration of the headline."""
        return self.declared(self.headline)

    def declared(self, score: str) -> ScoreSpec:
        """Return the declaration of one of its scores. PosttrainError when the kind has not declared it."""
        spec = find_spec(score, self.scores) or find_spec(score, COMMON)
        if spec is None:
            cause = f"the kind '{self.kind}' makes the score '{score}' and does not declare it"
            raise PosttrainError(Problem(f"exam {self.name}", cause, "add it to the `scores` of its task"))
        return spec

    @property
    def info(self) -> ExamInfo:
        """The entry of this exam in results.json, without any respondent's scores."""
        return ExamInfo(
            name=self.name,
            kind=self.kind,
            role=self.role,
            headline=self.headline,
            signature=self.whole_signature,
            capabilities=dict(self.capabilities),
            chance=self.chance,
            scores=self.specs,
            notes=self.notes,
        )

    @property
    def fingerprint(self) -> str:
        """A hash of the questions, the settings and the way of judging."""
        return content_id(self.name, self.signature, [i.asked for i in self.items], self.perturbations, self.seed)

    @property
    def settings(self) -> str:
        """A hash of the settings and the way of judging, without the questions."""
        return content_id(self.name, self.signature, self.perturbations, self.seed)

    @property
    def whole_signature(self) -> str:
        """For results: the kind's signature, the number of questions, and a hash of the questions with all prompts."""
        return f"{self.signature}|n {len(self.items)}|#{content_id([i.asked for i in self.items])[:8]}"


def content_id(*parts: Any) -> str:
    """Return sha256 (the first 16 hex digits) of JSON values; tuples count as lists."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve(path: str, base: Path) -> Path:
    """Return a path of a config, relative to the study's folder; `builtin:NAME` is a file that comes with posttrain.
    MissingError for an unknown NAME.
    """
    if not path.startswith(BUILTIN):
        return base / Path(path).expanduser()
    name = path.removeprefix(BUILTIN)
    shipped = {p.stem: p for p in sorted(DATA.iterdir()) if p.is_file()} if DATA.is_dir() else {}
    if name not in shipped:
        raise MissingError(Problem(path, "there is no such file in the box", f"known: {', '.join(shipped)}"))
    return shipped[name]


def turns(examples: Iterable[tuple[str, str]], asked: str) -> tuple[Message, ...]:
    """Return examples of (question, answer) as earlier turns, then the question that is asked now."""
    earlier = (Message(role, text) for pair in examples for role, text in zip(("user", "assistant"), pair, strict=True))
    return (*earlier, Message("user", asked))


def draw(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """Return at most `limit` items in their order, drawn with equal chances; all of them without a limit. A larger
    limit returns all the items of a smaller one, and more.
    """
    if limit is None or limit >= len(items):
        return list(items)
    kept = set(random.Random(f"limit {seed}").sample(range(len(items)), len(items))[:limit])
    return [item for i, item in enumerate(items) if i in kept]


class Chosen(NamedTuple):
    """The choice that the model prefers.

    best: index of the likeliest choice; shares: each choice's probability among the choices; normed: index of the
    choice that is likeliest per byte, which does not favour short choices (lm-eval's `acc_norm`).
    """

    best: int
    shares: tuple[float, ...]
    normed: int


def choice_asks(prompt: Prompt, choices: Sequence[str]) -> tuple[Ask, ...]:
    """Return one request for each choice. After plain text a space is put before the choice, unless the text ends or
    the choice begins with a space or a non-ASCII (such as Chinese) character.
    """
    if isinstance(prompt, Plain):
        bare = prompt.text[-1:].isspace() or not prompt.text[-1:].isascii()
        choices = [c if bare or c[:1].isspace() or not c[:1].isascii() else f" {c}" for c in choices]
    return tuple(Ask("score", prompt, choice) for choice in choices)


def chosen(replies: Sequence[Reply], choices: Sequence[str]) -> Chosen:
    """Return the likeliest choice by total log-probability in nats; the first one if several are equal."""
    nats = [reply.sum_nats for reply in the_scored(replies)]
    top = max(nats)
    weights = [math.exp(one - top) for one in nats]
    per_byte = [one / max(1, len(choice.encode())) for one, choice in zip(nats, choices, strict=True)]
    return Chosen(nats.index(top), tuple(w / sum(weights) for w in weights), per_byte.index(max(per_byte)))
