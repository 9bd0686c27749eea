"""The declaration of a score by the exam that makes it: its unit, whether more is better, and its group.

Tables, colours, plots, comparisons and `posttrain gate` read these declarations; nothing is guessed from a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Better", "ScoreSpec", "Unit", "base_key", "find_spec", "specs"]

Unit = Literal["share", "grade", "nats", "bits", "tokens", "points", "ratio", "number"]
"""share: of samples, 0 to 1, shown in per cent; grade: a mean of values between 0 and 1; nats, bits; tokens: a mean
length; points: 0 to 100; ratio: after over before or similar; number: anything else."""
Better = Literal["more", "less", "none"]
"""none: neither direction is better, such as for a length."""


@dataclass(frozen=True)
class ScoreSpec:
    """One score of an exam.

    key: its name among the exam's scores; label: its name within its group, for tables; group: scores of one group are
    shown together; ends: for a score of which less is better, the value that is neither good nor bad and the value from
    which on it is bad, for colours.
    """

    key: str
    label: str
    unit: Unit = "share"
    better: Better = "more"
    group: str = ""
    ends: tuple[float, float] | None = None

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is better, or counts as a rise because neither direction is better."""
        return self.better != "less"


def specs(*keys: str, unit: Unit = "share", better: Better = "more", group: str = "") -> tuple[ScoreSpec, ...]:
    """Return the declarations of similar scores; their labels are their keys."""
    return tuple(ScoreSpec(key, key, unit, better, group) for key in keys)


def base_key(key: str) -> str:
    """Return the declared score of a derived one: `acc/physics` (by group), `acc~typos` (disturbed), `robust.acc`."""
    return key.partition("/")[0].partition("~")[0].removeprefix("robust.")


def find_spec(key: str, specs: Iterable[ScoreSpec] | Mapping[str, ScoreSpec]) -> ScoreSpec | None:
    """Return the declaration of a score or of the score that it is derived from; None if there is none."""
    known = specs if isinstance(specs, Mapping) else {spec.key: spec for spec in specs}
    return known.get(key) or known.get(base_key(key))
