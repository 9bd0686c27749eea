"""What an exam keeps of a question: a judged answer, which is one line of a sample file (`sample_log.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self

__all__ = ["ProbeResult", "Record", "Sample"]


class Record(Protocol):
    """A line of a sample file. key: unique within one change of the file; perturbation: empty for the original."""

    @property
    def key(self) -> str: ...

    @property
    def perturbation(self) -> str: ...

    def disturbed(self, how: str) -> Self:
        """Return this record for a question that was disturbed with `how`."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        ...


class _Line:
    """A record that is a dataclass of plain values."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values; mappings are its own, because deep copies take most of the time."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Return the record of a row; keys that are not fields are ignored."""
        own = {f.name: row[f.name] for f in fields(cls) if f.name in row}  # type: ignore[arg-type]
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})


@dataclass(frozen=True)
class Sample(_Line):
    """One judged item: a line of `exams/<task>.jsonl`. None: does not apply.

    answer: the answer, or the likeliest choice; target: the expected answer, for people to read; scores: this item's
    own scores by name, averaged by `averages`; correct: right or wrong, for comparisons of two models; choices: the k
    of a k-way choice, for chance adjustment; confidence: the probability (0 to 1) that the model gave to its choice,
    for calibration; perturbation: how the question was disturbed, empty for the original.
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
        """Return this sample for a question that was disturbed with `how`; the same sample if `how` is empty."""
        return replace(self, perturbation=how) if how else self


@dataclass(frozen=True)
class ProbeResult(_Line):
    """One line of `samples.jsonl`. None: does not apply to this probe, or could not be counted (`note` says why).

    prompt: the user's last words; ok_before: for targets and generality, whether the answer before already matched;
    kept: how much of the content is kept, 0 to 1; band: same, drifted or changed; why: what decided the band; manner:
    how much of the manner is kept, 0 to 1; judged: whether the judge finds that both answers say the same; kl_nats: in
    nats, summed over `kl_tokens` positions; ended_before, ended_after: False for an answer cut at max_new_tokens.
    """

    key: str
    group: str
    index: int
    prompt: str
    answer: tuple[str, ...]
    answer_contains: tuple[str, ...]
    before: str
    after: str
    ok: bool | None
    ok_before: bool | None = None
    kept: float | None = None
    band: str = ""
    why: str = ""
    manner: float | None = None
    judged: bool | None = None
    strict: bool | None = None
    leak: bool | None = None
    new_beats_old: bool | None = None
    logp_new_nats: float | None = None
    logp_old_nats: float | None = None
    kl_nats: float | None = None
    kl_tokens: int | None = None
    tokens_before: int = 0
    tokens_after: int = 0
    ended_before: bool = True
    ended_after: bool = True
    note: str = ""

    @property
    def perturbation(self) -> str:
        """Always empty: probes are not disturbed."""
        return ""

    def disturbed(self, how: str) -> ProbeResult:
        """Return the record unchanged: probes are not disturbed."""
        return self
