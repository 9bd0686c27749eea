"""Decide from results whether a changed model may be shipped: required scores, and losses that must not be exceeded.

    minimum   every named score is at least this high
    loss      how much a score has fallen, compared with the model before: for locality 1 - score (before the change it
              is 1), for another exam the difference of its headline in the worse direction

A loss within the noise floor does not count: the paired test does not find it below the untouched model in other
arithmetic (`exams/floor.py`), or its paired interval contains 0 (`exams/compare.py`). If so few questions were asked
that no test could find a loss, this does not prove that there is none: such a fall holds the model back, and the reason
is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Literal, NamedTuple

from posttrain.errors import ConfigError, Problem
from posttrain.exams.compare import Comparison
from posttrain.exams.floor import NOISE_FLOOR, BesideFloor
from posttrain.exams.results import Results, Summary
from posttrain.exams.score_spec import find_spec

__all__ = ["Verdict", "gate"]


EXACT = 1e-9
"""Tolerance of comparisons: 1 - 0.95 is a little more than 0.05 in binary numbers."""


class Reason(NamedTuple):
    """The decision on one demand. limit: the demanded value; value: the score or the loss; met, why: the decision and
    its cause.
    """

    kind: Literal["minimum", "loss"]
    score: str
    limit: float
    value: float
    met: bool
    why: str

    def __str__(self) -> str:
        if self.kind == "minimum":
            least = f"{self.score} {self.value:.3f} >= {self.limit:g}"
            return f"{least}: ok" if self.met else f"{least}: not ok"
        most = f"loss of {self.score} {self.value:.3f} <= {self.limit:g}"
        told = f" ({self.why})" if self.why else ""
        return f"{most}: ok{told}" if self.met else f"{most}: not ok{told}"


class Verdict(NamedTuple):
    """The verdict on one model and method."""

    model: str
    method: str
    reasons: tuple[Reason, ...]

    @property
    def ship(self) -> bool:
        """Whether every demand is met."""
        return all(reason.met for reason in self.reasons)

    @property
    def word(self) -> Literal["SHIP", "HOLD"]:
        """The verdict in one word."""
        return "SHIP" if self.ship else "HOLD"


def gate(
    results: Results,
    *,
    method: str = "",
    checkpoint: str = "final",
    minimum: Mapping[str, float],
    max_loss: Mapping[str, float],
    noise_floor: bool = True,
) -> tuple[Verdict, ...]:
    """Return one verdict per model of a method; `method` may be empty if there is only one.

    minimum, max_loss: score, or group of scores (`locality`), -> the limit that each of them must meet; noise_floor: a
    loss that no test finds does not count. ConfigError if nothing is demanded, for a method, point or score that is not
    there, for a cell that failed, for an exam that has chosen a setting (`role: select`), and for a loss without a
    model before.
    """
    known = list(dict.fromkeys(row.method for row in results.summary if row.method != NOISE_FLOOR))
    if not minimum and not max_loss:
        raise ConfigError(Problem("", "nothing is demanded", "--min reliability=0.9, --max-loss locality=0.05"))
    if not method and len(known) != 1:
        cause = f"{len(known)} methods were examined" if known else "nothing was examined"
        raise ConfigError(Problem("--method", cause, f"name one: {', '.join(known)}" if known else ""))
    name = method or known[0]
    if broken := [line for line in results.cells if line.method == name and not line.done]:
        causes = (Problem(f"{line.method} | {line.change} | seed {line.seed}", line.error) for line in broken)
        cause = f"{len(broken)} cells of '{name}' failed, so there is nothing to judge"
        others = ", ".join(one for one in known if one != name)
        raise ConfigError(Problem("--method", cause, f"known: {others}" if others else ""), *causes)
    if name not in known:
        raise ConfigError(Problem("--method", f"no method '{name}' here", f"known: {', '.join(known) or 'none'}"))
    rows = [row for row in results.summary if row.method == name and row.checkpoint == checkpoint]
    if not rows:
        points = dict.fromkeys(row.checkpoint for row in results.summary if row.method == name)
        raise ConfigError(Problem("--checkpoint", f"'{name}' has no '{checkpoint}'", f"known: {', '.join(points)}"))
    return tuple(
        Verdict(row.model, name, tuple(_reasons(results, row, minimum, max_loss, noise_floor))) for row in rows
    )


def _reasons(
    results: Results, row: Summary, minimum: Mapping[str, float], max_loss: Mapping[str, float], noise_floor: bool
) -> Iterator[Reason]:
    for wanted, limit in minimum.items():
        for key in _keys(results, row, wanted, "--min"):
            value = row.scores[key]
            yield Reason("minimum", key, limit, value, value >= limit - EXACT, "")
    for wanted, limit in max_loss.items():
        for key in _keys(results, row, wanted, "--max-loss"):
            yield _loss(results, row, key, limit, noise_floor)


def _keys(results: Results, row: Summary, wanted: str, option: str) -> list[str]:
    """Return the scores that a name stands for: one score, the headline of an exam, or every score of a group."""
    exam = results.exams.get(wanted)
    if wanted in row.scores:
        found = [wanted]
    elif exam is not None and exam.key in row.scores:
        found = [exam.key]
    else:
        change = results.change_exam
        specs = change.scores if change is not None else ()
        found = [key for key in row.scores if (spec := find_spec(key, specs)) is not None and spec.group == wanted]
    if not found:
        groups = [spec.group for key in row.scores if (spec := results.spec(key)) is not None and spec.group]
        known = list(dict.fromkeys([*groups, *results.exams, *row.scores]))
        close = get_close_matches(wanted, known, 3)
        mend = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(Problem(f"{option} {wanted}", "no such score here", mend))
    for key in found:
        owner = results.exam_of(key)
        if owner is not None and owner.role == "select":
            cause = f"the exam '{owner.name}' has chosen a setting, so its scores prove nothing"
            raise ConfigError(Problem(f"{option} {wanted}", cause, "name a score of an exam with role: report"))
    return found


def _loss(results: Results, row: Summary, key: str, limit: float, noise_floor: bool) -> Reason:
    if key.startswith("locality."):
        loss = 1.0 - row.scores[key]
        beside = row.floor.get(key)
        lost = beside is None or beside.below or beside.unsure
        why = _beside_floor(beside)
    else:
        exam = results.exam_of(key)
        of = (row.model, row.method, row.checkpoint)
        lines = [line for line in results.cells if (line.model, line.method, line.checkpoint) == of]
        each = [] if exam is None else [line.compare[exam.name] for line in lines if exam.name in line.compare]
        if exam is None or key != exam.key or not each:
            cause = "was not compared with a model before"
            mend = "losses are of locality and of exams' headlines; `posttrain exam` needs --before"
            raise ConfigError(Problem(f"--max-loss {key}", cause, mend))
        sign = -1.0 if exam.higher_is_better else 1.0
        losses = [sign * one.difference for one in each if one.difference is not None]
        if not losses:
            raise ConfigError(Problem(f"--max-loss {key}", "there was nothing to compare"))
        loss = sum(losses) / len(losses)
        lost = any(one.different or one.too_few for one in each)
        why = _compared(each)
    if loss <= limit + EXACT or not noise_floor:
        return Reason("loss", key, limit, loss, loss <= limit + EXACT, "")
    return Reason("loss", key, limit, loss, not lost, why)


def _beside_floor(beside: BesideFloor | None) -> str:
    """Return what decided whether a fall in locality is a loss."""
    if beside is None:
        return "no noise floor was examined"
    if beside.below:
        return f"below the noise floor, p = {beside.p_value:.3g}"
    if beside.unsure:
        return f"fell below the noise floor ({beside.floor:.3f}), with too few questions to tell: {beside.n}"
    if beside.score < beside.floor:
        return f"no paired test tells it from the noise floor, {1 - beside.floor:.3f}"
    return f"within the noise floor, {1 - beside.floor:.3f}"


def _compared(each: Sequence[Comparison]) -> str:
    """Return what decided this over several cells (changes, seeds): a loss found in any of them is a loss."""
    if any(one.different for one in each):
        return "the paired interval excludes 0"
    few = next((one.too_few for one in each if one.too_few), "")
    return few or "not told from chance by a paired test"
