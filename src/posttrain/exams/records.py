"""What an exam keeps of a question: a judged answer, one line of a sample file (`sample_log.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol, Self

__all__ = ["ProbeResult", "Record", "Sample"]


class Record(Protocol):
    """A line of a sample file. key: unique within the file, or within one change of it; perturbation: how the question
    was disturbed, empty for the original.
    """

    @property
    def key(self) -> str: ...

    @property
    def perturbation(self) -> str: ...

    def disturbed(self, how: str) -> Self:
        """The same of a question that was asked so."""
        ...

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        ...


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

    def disturbed(self, how: str) -> Sample:
        """The same of a question that was asked so."""
        return replace(self, perturbation=how) if how else self

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Sample:
        """The other way; keys of callers are left aside."""
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})


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

    @property
    def perturbation(self) -> str:
        """Probes are not disturbed."""
        return ""

    def disturbed(self, how: str) -> ProbeResult:
        """The same: probes are not disturbed."""
        return self

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ProbeResult:
        """The other way; keys of callers are left aside."""
        own: dict[str, Any] = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        return cls(**own | {name: tuple(own[name]) for name in ("answer", "answer_contains")})
