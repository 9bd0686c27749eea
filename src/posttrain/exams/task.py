"""A task: questions, how an answer is judged, and how judgements become scores.

A task knows nothing of models: `items` say what to ask (`Ask`), `judge` turns the replies to one item into a `Sample`,
`aggregate` turns samples into scores. `exams/running.py` asks, keeps every sample, and goes on after a kill.

A kind of task is a module in `exams/tasks/`, registered with its config::

    @register("exam", "gsm8k", config=Gsm8kConfig, paper="arXiv:2110.14168")
    def gsm8k(config: Gsm8kConfig, base: Path) -> Task: ...
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from posttrain import registry
from posttrain.config.base import Config
from posttrain.errors import MissingError, Problem
from posttrain.exams.statistics import Interval, bootstrap_over_changes, wilson
from posttrain.inference.protocol import Answer, Prompt, Scored

__all__ = [
    "Ask",
    "Item",
    "Judge",
    "Perturbation",
    "Reply",
    "Sample",
    "Score",
    "Task",
    "TaskConfig",
    "averages",
    "build",
    "content_id",
    "draw",
    "resolve",
]

BUILTIN = "builtin:"
"""A path that begins so is a file of this package."""
DATA = Path(__file__).parent / "data"

Reply = Answer | Scored
Perturbation = Literal["typos", "spaces", "lower", "width", "simplified", "traditional", "variants"]


class TaskConfig(Config):
    """What every kind of task has; the fields of each kind are in its own file under exams/tasks/."""

    kind: str
    """Which task: see `posttrain list exams`."""
    name: str = ""
    """The name in tables and score keys; the kind when left out."""
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

    @property
    def label(self) -> str:
        """The name in tables and keys."""
        return self.name or self.kind

    def files(self) -> list[str]:
        """Paths of the files that this task reads; their bytes are part of its fingerprint. `builtin:` is no file."""
        return [self.path] if self.path and not self.path.startswith(BUILTIN) else []


class Ask(NamedTuple):
    """One request. say: an answer is wanted, of at most max_new_tokens, ending before any of `stop`;
    score: how likely `continuation` is after `prompt`; text: how likely the whole of `continuation` is by itself.
    """

    kind: Literal["say", "score", "text"]
    prompt: Prompt
    continuation: str = ""
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One question. id: unique in its task and the same in every run; question: the words that a perturbation changes,
    occurring in every ask's prompt; group: subject or category; doc: plain JSON values that `judge` needs;
    location: its file and line, for errors.
    """

    id: str
    question: str
    asks: tuple[Ask, ...]
    group: str = ""
    doc: Mapping[str, Any] = field(default_factory=dict)
    location: str = field(default="", compare=False)

    @property
    def asked(self) -> list[Any]:
        """All that its sample depends on beside the task's settings."""
        return [self.id, self.question, self.group, self.asks, self.doc]


@dataclass(frozen=True)
class Sample:
    """One judged item: a line of `exams/<task>.jsonl`. None: does not apply.

    answer: what was said, or the choice that was likeliest; target: what was wanted, for people to read;
    scores: this item's own score by name, averaged by `averages`; correct: right or wrong, for comparisons of two
    models; choices: the k of a k-way choice, for chance adjustment; confidence: the probability (0 to 1) that the
    model gave to its choice, for calibration; perturbation: how the question was disturbed, empty for the original.
    """

    id: str
    group: str
    question: str
    answer: str
    target: str
    scores: Mapping[str, float]
    correct: bool | None = None
    choices: int | None = None
    confidence: float | None = None
    perturbation: str = ""
    tokens: int = 0
    ended: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unique within a task's file."""
        return f"{self.id}|{self.perturbation}"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Sample:
        """The other way; keys of callers are left aside."""
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})


class Score(NamedTuple):
    """A score with its 95 % interval (None where there is none) and how many samples it is over."""

    value: float
    ci95: Interval | None
    n: int


Judge = Callable[[Item, Sequence[Reply]], Sample]
Aggregate = Callable[[Sequence[Sample]], dict[str, Score]]


def averages(samples: Sequence[Sample]) -> dict[str, Score]:
    """Mean of each score over the samples that have it: Wilson where all are 0 or 1, else the bootstrap; then the same
    by group as `<score>/<group>`. A score over no samples is absent.
    """
    groups = list(dict.fromkeys(s.group for s in samples if s.group))
    made: dict[str, Score] = {}
    for group in ["", *groups] if len(groups) > 1 else [""]:
        own = [s for s in samples if not group or s.group == group]
        for name in dict.fromkeys(name for s in own for name in s.scores):
            values = [float(s.scores[name]) for s in own if name in s.scores]
            made[f"{name}/{group}" if group else name] = mean_score(values)
    return made


def mean_score(values: Sequence[float]) -> Score:
    """The mean of at least one value with its interval."""
    if all(v in (0.0, 1.0) for v in values):
        return Score(sum(values) / len(values), wilson(int(sum(values)), len(values)), len(values))
    return Score(sum(values) / len(values), bootstrap_over_changes(values), len(values))


@dataclass(frozen=True)
class Task:
    """A task ready to be put to a respondent.

    headline: the score that stands for the task; capabilities: score name -> capability (`exams/capabilities.py`), the
    headline's at least; chance: the headline of guessing, where known; signature: in one line, everything that the
    scores depend on (dataset, shots, template, metric versions), as sacrebleu has it; higher_is_better: of the
    headline.
    """

    name: str
    items: Sequence[Item]
    judge: Judge
    headline: str
    capabilities: Mapping[str, str]
    signature: str
    aggregate: Aggregate = averages
    chance: float | None = None
    higher_is_better: bool = True
    perturbations: tuple[Perturbation, ...] = ()
    seed: int = 0
    notes: tuple[str, ...] = ()
    """What a reader has to know: rows left out, files of no answers."""
    finish: Callable[[str, Sequence[Sample]], Sequence[str]] | None = None
    """Called with the respondent's name and every sample once all are in (CapTrack's response files); says notes."""
    chat: bool = False
    """The chat template was asked for: a model without one is refused."""

    @property
    def fingerprint(self) -> str:
        """The same only for the same questions, settings and ways of judging."""
        return content_id(self.name, self.signature, self._asked, self.perturbations, self.seed)

    @property
    def settings(self) -> str:
        """The same whatever is asked: for the same settings and ways of judging."""
        return content_id(self.name, self.signature, self.perturbations, self.seed)

    @property
    def whole_signature(self) -> str:
        """For results: the kind's signature, how many questions were asked, and a digest of them and of all prompts."""
        return f"{self.signature}|n {len(self.items)}|#{content_id(self._asked)[:8]}"

    @property
    def _asked(self) -> list[list[Any]]:
        return [i.asked for i in self.items]


def content_id(*parts: Any) -> str:
    """sha256 (first 16 hex digits) of JSON values; tuples count as lists."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(config: TaskConfig, base: Path) -> Task:
    """The task that a config describes; base: its paths are relative to it. Errors as the kind's builder has them."""
    made: Task = registry.load("exam", config.kind).function(config, base)
    return replace(made, chat=config.template == "chat")


def resolve(path: str, base: Path) -> Path:
    """A path of a config, relative to the study's folder; `builtin:NAME` is the file that comes with posttrain."""
    if not path.startswith(BUILTIN):
        return base / Path(path).expanduser()
    name = path.removeprefix(BUILTIN)
    shipped = {p.stem: p for p in sorted(DATA.iterdir()) if p.is_file()} if DATA.is_dir() else {}
    if name not in shipped:
        raise MissingError(Problem(path, "there is no such file in the box", f"known: {', '.join(shipped)}"))
    return shipped[name]


def draw(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """At most `limit` items in their order, each as likely as any other; all of them without a limit.

    A larger limit has all the items of a smaller one, and more.
    """
    if limit is None or limit >= len(items):
        return list(items)
    kept = set(random.Random(f"limit {seed}").sample(range(len(items)), len(items))[:limit])
    return [item for i, item in enumerate(items) if i in kept]
